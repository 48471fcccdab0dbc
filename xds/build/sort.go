package build

import (
	"cmp"
	"slices"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
)

// sort orders the resources by name.
func (r *Resources) sort() {
	byName(r.Listeners)
	byName(r.Routes)
	byName(r.Clusters)
	slices.SortFunc(r.Endpoints, func(a, b *endpointv3.ClusterLoadAssignment) int {
		return cmp.Compare(a.GetClusterName(), b.GetClusterName())
	})
	byName(r.Secrets)
}

func byName[T interface{ GetName() string }](list []T) {
	slices.SortFunc(list, func(a, b T) int { return cmp.Compare(a.GetName(), b.GetName()) })
}

// Named is a resource with the name that a client asks for it by.
type Named struct {
	Name     string
	Resource proto.Message
}

// Type URLs of the kinds of resources, in the order in which a client wants them: what is referred to comes before what
// refers to it, except that listeners name routes (xDS protocol, "Eventual consistency considerations").
const (
	ClusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	SecretType   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// Types are all of them in that order.
var Types = []string{ClusterType, EndpointType, SecretType, ListenerType, RouteType}

// Of are the resources of a type.
func (r *Resources) Of(typeURL string) []Named {
	switch typeURL {
	case ClusterType:
		return named(r.Clusters)
	case SecretType:
		return named(r.Secrets)
	case ListenerType:
		return named(r.Listeners)
	case RouteType:
		return named(r.Routes)
	case EndpointType:
		out := make([]Named, len(r.Endpoints))
		for i, m := range r.Endpoints {
			out[i] = Named{m.GetClusterName(), m}
		}
		return out
	}
	return nil
}

func named[T interface {
	proto.Message
	GetName() string
}](list []T) []Named {
	out := make([]Named, len(list))
	for i, m := range list {
		out[i] = Named{m.GetName(), m}
	}
	return out
}
