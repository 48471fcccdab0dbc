package active

import (
	"fmt"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"sallyport/sidecar/ads"
	"sallyport/sidecar/config"
	"sallyport/sidecar/listener"
	"sallyport/sidecar/upstream"
)

func (s *State) setCluster(in *incoming) error {
	if c := s.clusters[in.name]; c != nil && c.static {
		s.log.Warn("a cluster of the control plane has the name of a static one, which stays", "cluster", in.name)
		return nil
	}
	compiled, err := config.CompileCluster(in.message.(*clusterv3.Cluster), s.env)
	if err != nil {
		return err
	}
	s.addCluster(in.name, in.resource(), compiled)
	return nil
}

// addCluster takes a compiled cluster: into force at once, or when it is warm.
func (s *State) addCluster(name string, r resource, compiled *config.Cluster) {
	c := s.clusters[name]
	if c == nil {
		c = &cluster{}
		s.clusters[name] = c
	}
	s.warn(c.warnings, compiled.Warnings)
	c.resource, c.warnings = r, compiled.Warnings
	s.release(c.wait)
	c.next = compiled
	s.use(compiled.Needs.EDS, name, true)
	s.wants = true
	try := func(late bool) bool { return s.activate(name, c, compiled, late) }
	if !try(false) {
		c.wait = s.hold("cluster "+name, compiled.Needs.Fetch, try)
	}
}

// activate publishes a cluster if it need not wait.
func (s *State) activate(name string, c *cluster, compiled *config.Cluster, late bool) bool {
	eds := compiled.Needs.EDS
	var list []upstream.Endpoint
	var drop uint32
	if e := s.endpoints[eds]; eds != "" && e != nil && e.compiled != nil {
		list, drop = e.compiled.List, e.compiled.Drop
	} else if eds != "" && !late {
		return false
	}
	if !compiled.Needs.Ready() && !late {
		return false
	}
	old := c.active
	c.active, c.next, c.wait = compiled, nil, nil
	s.publisher.SetCluster(compiled.Config)
	if eds != "" {
		s.publisher.SetEndpoints(name, list, drop)
	}
	if old != nil && old.Needs.EDS != eds {
		s.use(old.Needs.EDS, name, false)
	}
	s.wants = true
	return true
}

// use notes that a cluster's endpoints come under a name, or no longer do.
func (s *State) use(eds, cluster string, yes bool) {
	if eds == "" {
		return
	}
	if yes {
		if s.users[eds] == nil {
			s.users[eds] = map[string]bool{}
		}
		s.users[eds][cluster] = true
		return
	}
	delete(s.users[eds], cluster)
	if len(s.users[eds]) == 0 {
		delete(s.users, eds)
	}
}

func (s *State) removeCluster(name string) {
	c := s.clusters[name]
	s.release(c.wait)
	for _, v := range []*config.Cluster{c.active, c.next} {
		if v != nil {
			s.use(v.Needs.EDS, name, false)
		}
	}
	delete(s.clusters, name)
	if c.active != nil {
		s.publisher.RemoveCluster(name)
	}
	s.wants = true
}

func (s *State) setEndpoints(in *incoming) error {
	if s.users[in.name] == nil {
		return nil // no cluster wants it any more: the request to unsubscribe and this have crossed
	}
	compiled, err := config.CompileEndpoints(in.message.(*endpointv3.ClusterLoadAssignment))
	if err != nil {
		return err
	}
	e := s.endpoints[in.name]
	if e == nil {
		e = &endpoints{}
		s.endpoints[in.name] = e
	}
	if e.compiled != nil {
		s.warn(e.compiled.Warnings, compiled.Warnings)
	} else {
		s.warn(nil, compiled.Warnings)
	}
	e.resource, e.compiled = in.resource(), compiled
	s.publishEndpoints(in.name)
	return nil
}

// publishEndpoints gives them to the clusters in force; those that warm look for themselves.
func (s *State) publishEndpoints(eds string) {
	e := s.endpoints[eds].compiled
	for name := range s.users[eds] {
		if c := s.clusters[name]; c != nil && c.active != nil && c.active.Needs.EDS == eds {
			s.publisher.SetEndpoints(name, e.List, e.Drop)
		}
	}
}

func (s *State) setListener(in *incoming) error {
	if l := s.listeners[in.name]; l != nil && l.static {
		s.log.Warn("a listener of the control plane has the name of a static one, which stays", "listener", in.name)
		return nil
	}
	m := in.message.(*listenerv3.Listener)
	if m.GetName() == "" {
		m.Name = in.name
	}
	compiled, err := config.CompileListener(m, s.env)
	if err != nil {
		return err
	}
	return s.addListener(in.name, in.resource(), compiled)
}

// addListener takes a compiled listener: into force at once, or when it is
// warm. The error says that its sockets cannot be had now.
func (s *State) addListener(name string, r resource, compiled *config.Listener) error {
	l := s.listeners[name]
	fresh := l == nil
	if fresh {
		l = &listening{}
		s.listeners[name] = l
	}
	s.release(l.wait)
	s.abandon(name)
	before := *l
	undo := func() { // nothing half-applied: as it was before
		s.release(l.wait)
		if fresh || before.active == nil {
			delete(s.listeners, name)
		} else {
			*l = before
			l.next, l.wait = nil, nil
		}
	}
	s.warn(l.warnings, compiled.Warnings)
	l.resource, l.warnings = r, compiled.Warnings
	l.next, l.wait = compiled, nil
	s.wants = true
	var now error
	try := func(late bool) bool {
		for _, n := range compiled.Needs.Routes {
			if s.handle(n).Table() == nil && (!late || slices.Contains(s.withheld[ads.RouteType], n)) {
				return false
			}
		}
		if !compiled.Needs.Ready() && !late {
			return false
		}
		if s.batch == nil {
			now = s.listened(l, r, compiled, s.putListeners([]*listener.Config{compiled.Config}, nil)[0])
		}
		return true
	}
	one := &batched{l: l, r: r, compiled: compiled, undo: undo}
	if s.batch != nil {
		s.batch.set = append(s.batch.set, one)
	}
	if s.clustersReady() && try(false) {
		if now == nil {
			return nil
		}
		undo()
		s.unbound[name].accepted = false
		return fmt.Errorf("listener %q: %w", name, now)
	}
	one.waits = true
	l.wait = s.hold("listener "+name, compiled.Needs.Fetch, try)
	return nil
}

func (s *State) removeListener(name string) {
	l := s.listeners[name]
	s.release(l.wait)
	delete(s.listeners, name)
	switch {
	case l.active == nil:
	case s.batch != nil:
		s.batch.remove[name] = l.active.Config
	default:
		s.putListeners(nil, []string{name})
	}
	s.wants = true
}

func (s *State) setRoutes(in *incoming) error {
	r := s.routes[in.name]
	if r == nil {
		return nil // no listener wants it any more
	}
	table, warnings, err := config.CompileRoutes(in.message.(*routev3.RouteConfiguration), s.env)
	if err != nil {
		return err
	}
	s.warn(r.warnings, warnings)
	r.resource, r.warnings = in.resource(), warnings
	before := r.handle.Table()
	r.handle.Publish(table)
	if before != nil && s.routesChanged != nil {
		s.routesChanged()
	}
	return nil
}

func (s *State) setSecret(in *incoming) error {
	m := in.message.(*tlsv3.Secret)
	if m.GetName() == "" {
		m.Name = in.name
	}
	if err := s.secrets.Set(m); err != nil {
		return err
	}
	r := in.resource()
	s.secret[in.name] = &r
	return nil
}
