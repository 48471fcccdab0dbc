package serve

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/xds/build"
)

// resource is one resource as it is sent. Immutable.
type resource struct {
	version string // names its content: the same in every control plane
	any     *anypb.Any
}

// typeSet are the resources of a type. Immutable.
type typeSet struct {
	version   string
	resources map[string]resource
}

// set is all that a proxy has. Immutable.
type set map[string]*typeSet

// newSet marshals resources.
func newSet(r *build.Resources) (set, error) {
	s := set{}
	for _, t := range build.Types {
		list := map[string]resource{}
		for _, n := range r.Of(t) {
			// Every message with its maps in order, so that the same content has the same bytes.
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(n.Resource)
			if err != nil {
				return nil, fmt.Errorf("%s %q: %w", t, n.Name, err)
			}
			if _, twice := list[n.Name]; twice {
				return nil, fmt.Errorf("%s %q was made twice", t, n.Name)
			}
			list[n.Name] = resource{strconv.FormatUint(xxhash.Sum64(b), 16), &anypb.Any{TypeUrl: t, Value: b}}
		}
		s[t] = newTypeSet(list)
	}
	return s, nil
}

func newTypeSet(list map[string]resource) *typeSet {
	h := xxhash.New()
	for _, name := range slices.Sorted(maps.Keys(list)) {
		fmt.Fprintf(h, "%q=%s\n", name, list[name].version)
	}
	return &typeSet{strconv.FormatUint(h.Sum64(), 16), list}
}

// of is never nil.
func (s set) of(typeURL string) *typeSet {
	if t := s[typeURL]; t != nil {
		return t
	}
	return emptyType
}

var emptyType = newTypeSet(nil)

// emptySet is for a proxy whose Gateway was removed.
var emptySet = set{}

// lingering types are kept for a while when they are removed: routes that still name them may be in force for a moment.
var lingering = []string{build.ClusterType, build.EndpointType}

// withRemoved is s with what old has and s has not, of the lingering types. It is s itself where that is nothing.
func (s set) withRemoved(old set) set {
	var merged set
	for _, t := range lingering {
		var list map[string]resource
		for name, r := range old.of(t).resources {
			if _, ok := s.of(t).resources[name]; ok {
				continue
			}
			if list == nil {
				list = maps.Clone(s.of(t).resources)
				if list == nil {
					list = map[string]resource{}
				}
			}
			list[name] = r
		}
		if list == nil {
			continue
		}
		if merged == nil {
			merged = maps.Clone(s)
		}
		merged[t] = newTypeSet(list)
	}
	if merged == nil {
		return s
	}
	return merged
}
