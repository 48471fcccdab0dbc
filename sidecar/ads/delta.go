package ads

import (
	"fmt"
	"maps"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
)

// delta is an incremental stream: each response has what changed.
type delta struct {
	c      *Client
	g      discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	types  map[string][]string // the names subscribed to, by type
	greets bool
}

func newDelta(c *Client, g discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient) *delta {
	return &delta{c: c, g: g, types: map[string][]string{}}
}

func (d *delta) start() error { return d.subscribe() }

func (d *delta) subscribe() error {
	for _, t := range Types {
		names, ok := d.c.wanted(t)
		if !ok {
			continue
		}
		old, asked := d.types[t]
		if asked && slices.Equal(old, names) {
			continue
		}
		wildcard := slices.Contains(d.c.o.Wildcard, t)
		if !asked && len(names) == 0 && !wildcard {
			continue // an empty first request would ask for everything
		}
		r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: t}
		r.ResourceNamesSubscribe = less(names, old)
		r.ResourceNamesUnsubscribe = less(old, names)
		if !asked {
			r.InitialResourceVersions = d.versions(t, names, wildcard)
		}
		for _, n := range r.ResourceNamesUnsubscribe {
			d.c.ttl.drop(t, n)
		}
		d.types[t] = names
		if err := d.send(r); err != nil {
			return err
		}
	}
	return nil
}

// versions are what the server need not send again.
func (d *delta) versions(typeURL string, names []string, wildcard bool) map[string]string {
	all := d.c.o.Sink.Versions(typeURL)
	if wildcard {
		return all
	}
	out := maps.Clone(all)
	maps.DeleteFunc(out, func(n, _ string) bool {
		_, found := slices.BinarySearch(names, n)
		return !found
	})
	return out
}

// less is what is in a and not in b, both sorted.
func less(a, b []string) (out []string) {
	for _, n := range a {
		if _, found := slices.BinarySearch(b, n); !found {
			out = append(out, n)
		}
	}
	return out
}

func (d *delta) send(r *discoveryv3.DeltaDiscoveryRequest) error {
	if !d.greets {
		r.Node, d.greets = d.c.o.Node, true
	}
	return d.g.Send(r)
}

func (d *delta) receive() (any, error) { return d.g.Recv() }

func (d *delta) handle(a any) error {
	m := a.(*discoveryv3.DeltaDiscoveryResponse)
	d.c.control(m.GetControlPlane())
	t := m.GetTypeUrl()
	if _, ok := d.types[t]; !ok {
		d.c.o.Log.Warn("a response of a type that was not asked for", "type", t)
		return nil
	}
	r := Response{Type: t, Version: m.GetSystemVersionInfo(), Removed: m.GetRemovedResources()}
	var bad []Refused
	now := time.Now()
	for i, res := range m.GetResources() {
		if res.GetName() == "" {
			bad = append(bad, Refused{Err: fmt.Errorf("resources[%d]: has no name", i)})
			continue
		}
		d.c.ttl.renew(t, res.GetName(), res.GetTtl(), now)
		if res.GetResource() == nil {
			continue // a heartbeat
		}
		r.Resources = append(r.Resources, Resource{Name: res.GetName(), Version: res.GetVersion(), Body: res.GetResource()})
	}
	for _, n := range r.Removed {
		d.c.ttl.drop(t, n)
	}
	nonce := m.GetNonce()
	return d.c.take(r, bad, func(refused []Refused) error {
		if err := d.answer(t, nonce, d.c.detail(t, refused)); err != nil {
			return err
		}
		return d.subscribe()
	})
}

func (d *delta) answer(typeURL, nonce string, detail *status.Status) error {
	return d.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: nonce, ErrorDetail: detail})
}
