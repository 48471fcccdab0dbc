package catalog

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/hashicorp/consul/api"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// consulService is what is known of one name in Consul's list of services. Guarded by the lock of Consul.
type consulService struct {
	ctx       context.Context
	stop      context.CancelFunc
	instances []*api.ServiceEntry
	sidecars  []*api.ServiceEntry
	read      [2]bool // instances, sidecars
	typical   bool    // it has instances that are no proxies or gateways
	asked     bool    // the sidecars are asked for
}

// complete says that all was read that is needed to tell what it is.
func (v *consulService) complete() bool { return v.read[0] && (v.read[1] || !v.typical) }

// list begins to follow new services and forgets those that are gone.
func (c *Consul) list(services map[string][]string, index uint64) {
	c.loaded[queryServices] = true
	c.status.LastIndex = index
	for name, v := range c.services {
		if _, ok := services[name]; !ok {
			v.stop()
			delete(c.services, name)
			c.forget("service " + name)
			c.forget("sidecars of " + name)
		}
	}
	for name := range services {
		if c.services[name] != nil {
			continue
		}
		if len(c.services) >= maxServices {
			c.complain("consul has more services than are followed", "limit", maxServices)
			break
		}
		v := &consulService{}
		v.ctx, v.stop = context.WithCancel(c.ctx)
		c.services[name] = v
		c.askInstances(name, v)
	}
	// Anything may have been registered: a sidecar of a service that had none is not told otherwise.
	c.poll.hint(true, nil)
}

func (c *Consul) askInstances(name string, v *consulService) {
	c.poll.add(&query{name: "service " + name, need: needServices, service: name, ctx: v.ctx,
		// Proxies are read by the service that they stand before.
		active: func() bool { return v.typical },
		ask: func(o *api.QueryOptions) (*api.QueryMeta, answer, error) {
			list, meta, err := c.client.Health().Service(name, "", false, o)
			return meta, answer{idsOf(list), func() {
				v.instances, v.read[0] = list, true
				v.typical = slices.ContainsFunc(list, isTypical)
				if v.typical && !v.asked {
					v.asked = true
					c.askSidecars(name, v)
				}
			}}, err
		}}, 0)
}

func (c *Consul) askSidecars(name string, v *consulService) {
	c.poll.add(&query{name: "sidecars of " + name, need: needServices, service: name, ctx: v.ctx,
		active: func() bool { return len(v.sidecars) > 0 },
		ask: func(o *api.QueryOptions) (*api.QueryMeta, answer, error) {
			list, meta, err := c.client.Health().Connect(name, "", false, o)
			return meta, answer{idsOf(list), func() { v.sidecars, v.read[1] = list, true }}, err
		}}, 0)
}

func isTypical(e *api.ServiceEntry) bool { return e.Service.Kind == api.ServiceKindTypical }

func idOf(e *api.ServiceEntry) string { return e.Node.Node + "/" + e.Service.ID }

// idsOf are the entries of an answer, and apart from them that they are well: an instance whose checks have not run
// yet after a restart of Consul is as good as lost.
func idsOf(list []*api.ServiceEntry) []string {
	out := make([]string, 0, 2*len(list))
	for _, e := range list {
		out = append(out, idOf(e))
		if passing(e) {
			out = append(out, idOf(e)+" passing")
		}
	}
	return out
}

// snapshot makes a Snapshot of what was read.
func (c *Consul) snapshot() *Snapshot {
	s := &Snapshot{Services: map[Name]*Service{}, Intentions: slices.Clone(c.intents), DefaultIntention: c.byDefault}
	for name, v := range c.services {
		if !v.complete() {
			continue // read in part: it would seem to have no sidecars
		}
		if !v.typical && len(v.instances) > 0 {
			continue // these are proxies and gateways themselves
		}
		c.byNamespace(s, name, v)
	}
	s.sort()
	return s
}

// metaNamespace is the meta data in which an instance says its namespace, of which Consul has none outside its Enterprise
// edition: sidecars register so (package sidecar/register). Instances of one name in two namespaces are two services: each
// has an identity of its own.
const metaNamespace = "sallyport-namespace"

// byNamespace adds the services of a name.
func (c *Consul) byNamespace(s *Snapshot, name string, v *consulService) {
	if !c.segment(name, "service", name) {
		return
	}
	instances := map[string][]Instance{}
	for _, i := range c.instances(name, v) {
		namespace := cmp.Or(i.Meta[metaNamespace], DefaultNamespace)
		if c.segment(namespace, "service", name, "instance", i.ID) {
			instances[namespace] = append(instances[namespace], i)
		}
	}
	if len(v.instances) == 0 {
		instances[DefaultNamespace] = nil // it is known, and has none at the moment
	}
	for namespace, list := range instances {
		out := &Service{Name: Name{namespace, name}, Instances: list}
		out.Protocol = cmp.Or(c.protocol[name], protocolIn(list), c.fallback, HTTP)
		s.Services[out.Name] = out
	}
}

// segment says whether a name can be a part of a SPIFFE ID, which is what a service is known by.
func (c *Consul) segment(name string, about ...any) bool {
	err := spiffeid.ValidatePathSegment(name)
	if err != nil {
		c.complain("left out: its name or namespace cannot be part of a SPIFFE ID", append(about, "name", name, "reason", err)...)
	}
	return err == nil
}

// protocolIn is what the instances say of themselves, in their meta data "protocol"; the first that says it counts.
func protocolIn(instances []Instance) Protocol {
	var first string
	var protocol Protocol
	for i := range instances {
		in := &instances[i]
		if p := protocolOf(in.Meta["protocol"]); p != "" && (first == "" || in.ID < first) {
			first, protocol = in.ID, p
		}
	}
	return protocol
}

// instances joins a service's instances with their sidecars.
func (c *Consul) instances(service string, v *consulService) (out []Instance) {
	sidecars := c.pair(service, v)
	for _, e := range v.instances {
		if !isTypical(e) {
			continue
		}
		i := Instance{
			ID: idOf(e), Endpoint: endpointOf(e), Healthy: passing(e), Weight: weight(e),
			Tags: slices.Clone(e.Service.Tags), Meta: maps.Clone(e.Service.Meta),
		}
		if l := cmp.Or(e.Service.Locality, e.Node.Locality); l != nil {
			i.Region, i.Zone = l.Region, l.Zone
		}
		if p := sidecars[i.ID]; p != nil {
			i.Sidecar = endpointOf(p)
			// A sidecar may be well while what it stands before is not, and the other way round.
			i.Healthy = i.Healthy && passing(p)
		} else if e.Service.Connect != nil && e.Service.Connect.Native {
			i.Sidecar = i.Endpoint
		}
		if i.InMesh() && !addr(i.Sidecar.Address).IsValid() {
			c.complain("instance left out: its sidecar's address is not an IP address", "service", service, "instance", i.ID,
				"address", i.Sidecar.Address)
			i.Sidecar = Endpoint{}
		}
		out = append(out, i)
	}
	return out
}

// pair finds the sidecar of each instance, by the instance's ID. A sidecar names the instance before which it stands; one
// that names only the service stands before the one instance of it on its node that no other sidecar names.
func (c *Consul) pair(service string, v *consulService) map[string]*api.ServiceEntry {
	out := map[string]*api.ServiceEntry{}
	var unnamed []*api.ServiceEntry
	for _, e := range v.sidecars {
		p := e.Service.Proxy
		switch {
		case e.Service.Kind != api.ServiceKindConnectProxy || p == nil:
		case p.DestinationServiceID == "":
			unnamed = append(unnamed, e)
		default:
			// Of two sidecars of one instance the same one counts each time, whatever the order of the answer.
			id := e.Node.Node + "/" + p.DestinationServiceID
			if had := out[id]; had == nil || idOf(e) < idOf(had) {
				out[id] = e
			}
		}
	}
	slices.SortFunc(unnamed, func(a, b *api.ServiceEntry) int { return cmp.Compare(idOf(a), idOf(b)) })
	for _, e := range unnamed {
		var on []string
		for _, i := range v.instances {
			if i.Node.Node == e.Node.Node && isTypical(i) && out[idOf(i)] == nil {
				on = append(on, idOf(i))
			}
		}
		exact := e.Node.Node + "/" + service // the ID that Consul gives where none is given
		switch {
		case slices.Contains(on, exact):
			out[exact] = e
		case len(on) == 1:
			out[on[0]] = e
		default:
			c.complain("sidecar left out: it does not tell before which instance it stands; set Proxy.DestinationServiceID",
				"service", service, "sidecar", idOf(e), "instances on its node", len(on))
		}
	}
	return out
}

func endpointOf(e *api.ServiceEntry) Endpoint {
	return Endpoint{cmp.Or(e.Service.Address, e.Node.Address), uint32(max(e.Service.Port, 0))}
}

// passing is Consul's own rule for DNS: passing or warning. A status that is not known is not well.
func passing(e *api.ServiceEntry) bool {
	switch e.Checks.AggregatedStatus() {
	case api.HealthPassing, api.HealthWarning:
		return true
	}
	return false
}

func weight(e *api.ServiceEntry) uint32 {
	w := e.Service.Weights.Passing
	if e.Checks.AggregatedStatus() == api.HealthWarning {
		w = e.Service.Weights.Warning
	}
	return uint32(min(max(w, 1), maxWeight))
}
