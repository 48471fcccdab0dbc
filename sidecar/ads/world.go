package ads

import (
	"fmt"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// world is a state-of-the-world stream: each response has all resources of
// its type that were asked for.
type world struct {
	c      *Client
	g      discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	types  map[string]*worldType
	greets bool // the node was sent
}

// worldType is the state of one type on one stream.
type worldType struct {
	names []string // as asked for last
	nonce string   // of the last response, accepted or not
	// version is that of the last response that was accepted; it outlives the stream.
	version string
}

func newWorld(c *Client, g discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient) *world {
	return &world{c: c, g: g, types: map[string]*worldType{}}
}

func (w *world) start() error { return w.subscribe() }

func (w *world) subscribe() error {
	for _, t := range Types {
		names, ok := w.c.wanted(t)
		if !ok {
			continue
		}
		s := w.types[t]
		if s != nil && slices.Equal(s.names, names) {
			continue
		}
		if s == nil {
			if len(names) == 0 && !slices.Contains(w.c.o.Wildcard, t) {
				continue // an empty first request would ask for everything
			}
			// No version: on a new stream we want to hear what is in
			// force there, also from another server that counts its
			// versions otherwise. What did not change is recognized by its bytes.
			s = &worldType{}
			w.types[t] = s
		}
		s.names = names
		if sent, err := w.c.flushHeld(t); err != nil {
			return err
		} else if sent {
			continue
		}
		if err := w.request(t, s, nil); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) request(typeURL string, s *worldType, refused []Refused) error {
	r := &discoveryv3.DiscoveryRequest{TypeUrl: typeURL, VersionInfo: s.version, ResponseNonce: s.nonce, ResourceNames: s.names}
	if !w.greets {
		r.Node, w.greets = w.c.o.Node, true
	}
	r.ErrorDetail = w.c.detail(typeURL, refused)
	return w.g.Send(r)
}

func (w *world) receive() (any, error) { return w.g.Recv() }

func (w *world) handle(a any) error {
	m := a.(*discoveryv3.DiscoveryResponse)
	w.c.control(m.GetControlPlane())
	s := w.types[m.GetTypeUrl()]
	if s == nil {
		w.c.o.Log.Warn("a response of a type that was not asked for", "type", m.GetTypeUrl())
		return nil
	}
	s.nonce = m.GetNonce()
	r := Response{Type: m.GetTypeUrl(), Version: m.GetVersionInfo(), Full: true}
	var bad []Refused
	now := time.Now()
	for i, body := range m.GetResources() {
		res := Resource{Version: m.GetVersionInfo(), Body: body}
		if body.MessageIs((*discoveryv3.Resource)(nil)) {
			var wrapped discoveryv3.Resource
			if err := body.UnmarshalTo(&wrapped); err != nil {
				bad = append(bad, Refused{Err: fmt.Errorf("resources[%d]: cannot be read as envoy.service.discovery.v3.Resource", i)})
				continue
			}
			w.c.ttl.renew(r.Type, wrapped.GetName(), wrapped.GetTtl(), now)
			if wrapped.GetResource() == nil {
				// A heartbeat: nothing but the lease is renewed, and this
				// response is not the state of the world.
				r.Full = false
				continue
			}
			res.Name, res.Body = wrapped.GetName(), wrapped.GetResource()
		}
		r.Resources = append(r.Resources, res)
	}
	return w.c.take(r, bad, func(refused []Refused) error {
		if len(refused) == 0 {
			s.version = r.Version
		}
		// What Apply made us want is asked for after this answer, in the order of types.
		if err := w.request(r.Type, s, refused); err != nil {
			return err
		}
		return w.subscribe()
	})
}
