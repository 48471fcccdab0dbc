package active

import (
	"errors"
	"fmt"
	"maps"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/ads"
	"sallyport/sidecar/config"
	"sallyport/sidecar/listener"
	"sallyport/sidecar/panics"
)

// incoming is a resource on its way in.
type incoming struct {
	name    string
	version string
	body    *anypb.Any
	sum     uint64
	message proto.Message // nil where the bytes are those in force
}

// kind is what Apply needs to know of a type of resources.
type kind struct {
	new func() proto.Message
	// name of a decoded resource.
	name func(proto.Message) string
	// known is the resource in force with that name, or nil.
	known func(s *State, name string) *resource
	set   func(s *State, in *incoming) error
	// remove takes a resource away; nil where it only stops being sent:
	// what refers to it decides whether it is needed.
	remove func(s *State, name string)
	// names of all that came from the control plane.
	names func(s *State) []string
}

var kinds = map[string]*kind{
	ads.ClusterType: {
		new:  func() proto.Message { return &clusterv3.Cluster{} },
		name: func(m proto.Message) string { return m.(*clusterv3.Cluster).GetName() },
		known: func(s *State, n string) *resource {
			if c := s.clusters[n]; c != nil {
				return &c.resource
			}
			return nil
		},
		set:    (*State).setCluster,
		remove: (*State).removeCluster,
		names:  func(s *State) []string { return dynamic(s.clusters, func(c *cluster) *resource { return &c.resource }) },
	},
	ads.EndpointType: {
		new:  func() proto.Message { return &endpointv3.ClusterLoadAssignment{} },
		name: func(m proto.Message) string { return m.(*endpointv3.ClusterLoadAssignment).GetClusterName() },
		known: func(s *State, n string) *resource {
			if e := s.endpoints[n]; e != nil && e.compiled != nil {
				return &e.resource
			}
			return nil
		},
		set: (*State).setEndpoints,
	},
	ads.ListenerType: {
		new:  func() proto.Message { return &listenerv3.Listener{} },
		name: func(m proto.Message) string { return m.(*listenerv3.Listener).GetName() },
		known: func(s *State, n string) *resource {
			if l := s.listeners[n]; l != nil {
				return &l.resource
			}
			return nil
		},
		set:    (*State).setListener,
		remove: (*State).removeListener,
		names: func(s *State) []string {
			names := dynamic(s.listeners, func(l *listening) *resource { return &l.resource })
			return append(names, dynamic(s.unbound, func(u *unbound) *resource { return &u.resource })...)
		},
	},
	ads.RouteType: {
		new:  func() proto.Message { return &routev3.RouteConfiguration{} },
		name: func(m proto.Message) string { return m.(*routev3.RouteConfiguration).GetName() },
		known: func(s *State, n string) *resource {
			if r := s.routes[n]; r != nil && r.body != nil {
				return &r.resource
			}
			return nil
		},
		set: (*State).setRoutes,
	},
	ads.SecretType: {
		new:   func() proto.Message { return &tlsv3.Secret{} },
		name:  func(m proto.Message) string { return m.(*tlsv3.Secret).GetName() },
		known: func(s *State, n string) *resource { return s.secret[n] },
		set:   (*State).setSecret,
	},
}

func dynamic[T any](m map[string]T, of func(T) *resource) (names []string) {
	for n, v := range m {
		if !of(v).static {
			names = append(names, n)
		}
	}
	return names
}

// Apply takes a response of the control plane (ads.Sink).
func (s *State) Apply(r ads.Response) []ads.Refused {
	s.mu.Lock()
	defer s.mu.Unlock()
	refused := s.apply(r, true)
	if len(refused) == 0 {
		s.cache.dirty(r.Type)
	}
	return refused
}

func (s *State) apply(r ads.Response, fromServer bool) (refused []ads.Refused) {
	k := kinds[r.Type]
	if k == nil {
		return []ads.Refused{{Err: fmt.Errorf("resources of type %s are not implemented", r.Type)}}
	}
	seen := make(map[string]int, len(r.Resources))
	list := make([]incoming, 0, len(r.Resources))
	refuse := func(in *incoming, err error) {
		s.fail(r.Type, in.name, in.version, in.body, err)
		refused = append(refused, ads.Refused{Name: in.name, Err: err})
	}
	if r.Type == ads.ListenerType {
		s.batch = &batch{remove: map[string]*listener.Config{}}
		defer func() { s.batch = nil }() // after a panic, too
	}
	same := s.bytes(k, r)
	for i := range r.Resources {
		in, err := s.guardedRead(k, r.Type, &r.Resources[i], same)
		if err != nil {
			refuse(in, fmt.Errorf("resources[%d]: %w", i, err))
			continue
		}
		seen[in.name]++
		list = append(list, *in)
	}
	for i := range list {
		in := &list[i]
		switch {
		case seen[in.name] < 0: // the second of two, which was reported
		case seen[in.name] > 1:
			refuse(in, fmt.Errorf("%q is the name of %d resources; a name may occur once", in.name, seen[in.name]))
			seen[in.name] = -1
		case in.message == nil: // as it is in force
			k.known(s, in.name).version = in.version
			s.succeed(r.Type, in.name)
			s.unwant(r.Type, in.name) // another version that could not be opened
		default:
			if err := s.guarded(k, in); err != nil {
				refuse(in, err)
			} else {
				s.succeed(r.Type, in.name)
			}
		}
	}
	for _, n := range r.Removed {
		s.drop(k, r.Type, n)
	}
	if r.Full && k.names != nil {
		for _, n := range k.names(s) {
			// What was refused is named too: its last good version stays.
			if seen[n] == 0 && !named(refused, n) {
				s.drop(k, r.Type, n)
			}
		}
	}
	if s.batch != nil {
		s.publishBatch(func(name string, err error) {
			for i := range list {
				if list[i].name == name {
					refuse(&list[i], err)
				}
			}
		})
	}
	if r.Full && k.names != nil {
		// What is no longer sent is no longer refused.
		maps.DeleteFunc(s.failures[r.Type], func(n string, _ *failure) bool { return seen[n] == 0 && !named(refused, n) })
	}
	if len(refused) == 0 {
		s.versions[r.Type] = r.Version
		s.accepted[r.Type] = true
		s.succeed(r.Type, "")
	}
	if fromServer {
		delete(s.withheld, r.Type)
		switch r.Type {
		case ads.ClusterType:
			s.awaitCDS = false
		case ads.ListenerType:
			s.awaitLDS = false
		}
	}
	s.settle()
	return refused
}

// guarded puts a resource in force. A resource that makes us panic is refused as any other that cannot be used.
func (s *State) guarded(k *kind, in *incoming) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%q: %w", in.name, panics.Error(s.log, "compiling it", r))
		}
	}()
	return k.set(s, in)
}

func (s *State) guardedRead(k *kind, typeURL string, r *ads.Resource, same map[uint64]string) (in *incoming, err error) {
	in = &incoming{name: r.Name, version: r.Version, body: r.Body}
	if p := panics.Guard(s.log, "reading it", func() { in, err = s.read(k, typeURL, r, same) }); p != nil {
		return in, p
	}
	return in, err
}

func named(refused []ads.Refused, name string) bool {
	for _, r := range refused {
		if r.Name == name {
			return true
		}
	}
	return false
}

// bytes maps what is in force by its bytes, so that a state of the world in
// which little changed is not decoded.
func (s *State) bytes(k *kind, r ads.Response) map[uint64]string {
	if !r.Full {
		return nil
	}
	var names []string
	switch {
	case k.names != nil:
		names = k.names(s)
	case r.Type == ads.EndpointType:
		for n := range s.endpoints {
			names = append(names, n)
		}
	}
	m := make(map[uint64]string, len(names))
	for _, n := range names {
		if x := k.known(s, n); x != nil && x.body != nil {
			m[x.sum] = n
		}
	}
	return m
}

func (s *State) read(k *kind, typeURL string, r *ads.Resource, same map[uint64]string) (*incoming, error) {
	in := &incoming{name: r.Name, version: r.Version, body: r.Body, sum: sum(r.Body)}
	if r.Body.GetTypeUrl() != typeURL {
		return in, fmt.Errorf("is of type %s", r.Body.GetTypeUrl())
	}
	if in.name == "" {
		in.name = same[in.sum]
	}
	if in.name != "" && k.unchanged(s, in) {
		return in, nil
	}
	m := k.new()
	if err := r.Body.UnmarshalTo(m); err != nil {
		return in, fmt.Errorf("cannot be read as %s", m.ProtoReflect().Descriptor().FullName())
	}
	name := k.name(m)
	if name == "" {
		name = r.Name // listeners and route configurations may leave theirs to the envelope
	}
	if name == "" {
		return in, errors.New("has no name")
	}
	if r.Name != "" && r.Name != name {
		return in, fmt.Errorf("is named %q in its envelope and %q in itself", r.Name, name)
	}
	in.name = name
	if !k.unchanged(s, in) {
		in.message = m
	}
	return in, nil
}

// unchanged says that the bytes are those in force.
func (k *kind) unchanged(s *State, in *incoming) bool {
	x := k.known(s, in.name)
	return x != nil && x.body != nil && x.sum == in.sum && string(x.body.GetValue()) == string(in.body.GetValue())
}

func (s *State) drop(k *kind, typeURL, name string) {
	s.succeed(typeURL, name)
	s.unwant(typeURL, name)
	if k.remove == nil {
		// Endpoints, routes and secrets go with what refers to them; until
		// then they stay: removing what is in use serves nobody.
		return
	}
	if x := k.known(s, name); x != nil && !x.static {
		k.remove(s, name)
	}
}

// Versions are those of the resources of a type in force (ads.Sink).
func (s *State) Versions(typeURL string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	note := func(name string, r *resource) {
		if !r.static && r.body != nil && r.version != "" {
			out[name] = r.version
		}
	}
	switch typeURL {
	case ads.ClusterType:
		for n, c := range s.clusters {
			note(n, &c.resource)
		}
	case ads.EndpointType:
		for n, e := range s.endpoints {
			note(n, &e.resource)
		}
	case ads.ListenerType:
		for n, l := range s.listeners {
			note(n, &l.resource)
		}
	case ads.RouteType:
		for n, r := range s.routes {
			note(n, &r.resource)
		}
	case ads.SecretType:
		for n, r := range s.secret {
			note(n, r)
		}
	}
	return out
}

// Expire takes away a resource whose time to live is over (ads.Sink).
func (s *State) Expire(typeURL, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch typeURL {
	case ads.EndpointType:
		// A cluster without endpoints is what the control plane asked for by giving them a time.
		if e := s.endpoints[name]; e != nil && e.compiled != nil {
			e.compiled, e.body, e.version = &config.Endpoints{Cluster: name}, nil, ""
			s.publishEndpoints(name)
		}
	case ads.RouteType:
		if r := s.routes[name]; r != nil {
			r.handle.Publish(nil)
			r.resource = resource{}
		}
	case ads.SecretType:
		delete(s.secret, name)
		s.secrets.Remove(name)
	default:
		if k := kinds[typeURL]; k != nil {
			s.drop(k, typeURL, name)
		}
	}
	s.settle()
}

func (in *incoming) resource() resource {
	return resource{body: in.body, sum: in.sum, version: in.version, updated: time.Now()}
}
