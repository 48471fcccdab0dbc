package active

import (
	"maps"
	"slices"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"sallyport/sidecar/ads"
	"sallyport/sidecar/secret"
)

// Dump is what is in force, what warms and what was refused, as Envoy's
// /config_dump shows it. Secrets are blotted out.
func (s *State) Dump() *adminv3.ConfigDump {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &adminv3.ConfigDump{}
	add := func(m proto.Message) {
		if a, err := anypb.New(m); err == nil {
			out.Configs = append(out.Configs, a)
		}
	}
	if s.boot != nil {
		add(&adminv3.BootstrapConfigDump{Bootstrap: secret.Redact[*bootstrapv3.Bootstrap](s.boot.Bootstrap), LastUpdated: timestamppb.New(s.started)})
	}
	add(s.dumpClusters())
	add(s.dumpListeners())
	add(s.dumpRoutes())
	add(s.dumpEndpoints())
	add(s.dumpSecrets())
	return out
}

// shown is a resource's body for a dump.
func (s *State) shown(r *resource, section string) *anypb.Any {
	if !r.static {
		if r.body == nil {
			return nil
		}
		return secret.Redact(r.body)
	}
	var m proto.Message
	res := s.boot.GetStaticResources()
	if section == "clusters" {
		m = res.GetClusters()[r.index]
	} else {
		m = res.GetListeners()[r.index]
	}
	a, err := anypb.New(secret.Redact(m))
	if err != nil {
		return nil
	}
	return a
}

func (s *State) failed(typeURL, name string) *adminv3.UpdateFailureState {
	f := s.failures[typeURL][name]
	if f == nil {
		return nil
	}
	u := &adminv3.UpdateFailureState{LastUpdateAttempt: timestamppb.New(f.at), Details: f.err, VersionInfo: f.version}
	if f.body != nil {
		u.FailedConfiguration = secret.Redact(f.body)
	}
	return u
}

// status is what the resource came to.
func (s *State) status(typeURL, name string, present bool) adminv3.ClientResourceStatus {
	switch {
	case s.failures[typeURL][name] != nil:
		return adminv3.ClientResourceStatus_NACKED
	case present:
		return adminv3.ClientResourceStatus_ACKED
	}
	return adminv3.ClientResourceStatus_REQUESTED
}

// onlyFailed are names that were refused and are not in force.
func (s *State) onlyFailed(typeURL string, known func(string) bool) (names []string) {
	for _, n := range slices.Sorted(maps.Keys(s.failures[typeURL])) {
		if n != "" && !known(n) {
			names = append(names, n)
		}
	}
	return names
}

func (s *State) dumpClusters() proto.Message {
	d := &adminv3.ClustersConfigDump{VersionInfo: s.versions[ads.ClusterType]}
	for _, name := range slices.Sorted(maps.Keys(s.clusters)) {
		c := s.clusters[name]
		at := timestamppb.New(c.updated)
		if c.static {
			d.StaticClusters = append(d.StaticClusters, &adminv3.ClustersConfigDump_StaticCluster{Cluster: s.shown(&c.resource, "clusters"), LastUpdated: at})
			continue
		}
		x := &adminv3.ClustersConfigDump_DynamicCluster{VersionInfo: c.version, Cluster: s.shown(&c.resource, "clusters"), LastUpdated: at,
			ErrorState: s.failed(ads.ClusterType, name), ClientStatus: s.status(ads.ClusterType, name, true)}
		if c.next != nil {
			d.DynamicWarmingClusters = append(d.DynamicWarmingClusters, x)
		} else {
			d.DynamicActiveClusters = append(d.DynamicActiveClusters, x)
		}
	}
	for _, name := range s.onlyFailed(ads.ClusterType, func(n string) bool { return s.clusters[n] != nil }) {
		d.DynamicActiveClusters = append(d.DynamicActiveClusters, &adminv3.ClustersConfigDump_DynamicCluster{
			ErrorState: s.failed(ads.ClusterType, name), ClientStatus: adminv3.ClientResourceStatus_NACKED})
	}
	return d
}

func (s *State) dumpListeners() proto.Message {
	d := &adminv3.ListenersConfigDump{VersionInfo: s.versions[ads.ListenerType]}
	for _, name := range slices.Sorted(maps.Keys(s.listeners)) {
		l := s.listeners[name]
		at := timestamppb.New(l.updated)
		if l.static {
			d.StaticListeners = append(d.StaticListeners, &adminv3.ListenersConfigDump_StaticListener{Listener: s.shown(&l.resource, "listeners"), LastUpdated: at})
			continue
		}
		state := &adminv3.ListenersConfigDump_DynamicListenerState{VersionInfo: l.version, Listener: s.shown(&l.resource, "listeners"), LastUpdated: at}
		x := &adminv3.ListenersConfigDump_DynamicListener{Name: name, ErrorState: s.failed(ads.ListenerType, name), ClientStatus: s.status(ads.ListenerType, name, true)}
		if l.next != nil {
			x.WarmingState = state
		} else {
			x.ActiveState = state
		}
		d.DynamicListeners = append(d.DynamicListeners, x)
	}
	for _, name := range s.onlyFailed(ads.ListenerType, func(n string) bool { return s.listeners[n] != nil }) {
		d.DynamicListeners = append(d.DynamicListeners, &adminv3.ListenersConfigDump_DynamicListener{Name: name,
			ErrorState: s.failed(ads.ListenerType, name), ClientStatus: adminv3.ClientResourceStatus_NACKED})
	}
	return d
}

func (s *State) dumpRoutes() proto.Message {
	d := &adminv3.RoutesConfigDump{}
	for _, name := range slices.Sorted(maps.Keys(s.routes)) {
		r := s.routes[name]
		d.DynamicRouteConfigs = append(d.DynamicRouteConfigs, &adminv3.RoutesConfigDump_DynamicRouteConfig{VersionInfo: r.version,
			RouteConfig: s.shown(&r.resource, ""), LastUpdated: timestamppb.New(r.updated),
			ErrorState: s.failed(ads.RouteType, name), ClientStatus: s.status(ads.RouteType, name, r.body != nil)})
	}
	return d
}

func (s *State) dumpEndpoints() proto.Message {
	d := &adminv3.EndpointsConfigDump{}
	for _, name := range slices.Sorted(maps.Keys(s.endpoints)) {
		e := s.endpoints[name]
		d.DynamicEndpointConfigs = append(d.DynamicEndpointConfigs, &adminv3.EndpointsConfigDump_DynamicEndpointConfig{VersionInfo: e.version,
			EndpointConfig: s.shown(&e.resource, ""), LastUpdated: timestamppb.New(e.updated),
			ErrorState: s.failed(ads.EndpointType, name), ClientStatus: s.status(ads.EndpointType, name, e.body != nil)})
	}
	return d
}

func (s *State) dumpSecrets() proto.Message {
	d := &adminv3.SecretsConfigDump{}
	if s.boot != nil {
		for _, m := range s.boot.GetStaticResources().GetSecrets() {
			if a, err := anypb.New(secret.Redact[*tlsv3.Secret](m)); err == nil {
				d.StaticSecrets = append(d.StaticSecrets, &adminv3.SecretsConfigDump_StaticSecret{Name: m.GetName(), Secret: a, LastUpdated: timestamppb.New(s.started)})
			}
		}
	}
	for _, name := range s.asked[ads.SecretType] {
		x := &adminv3.SecretsConfigDump_DynamicSecret{Name: name, ErrorState: s.failed(ads.SecretType, name),
			ClientStatus: s.status(ads.SecretType, name, s.secret[name] != nil)}
		if r := s.secret[name]; r != nil {
			x.VersionInfo, x.LastUpdated, x.Secret = r.version, timestamppb.New(r.updated), s.shown(r, "")
			d.DynamicActiveSecrets = append(d.DynamicActiveSecrets, x)
		} else {
			d.DynamicWarmingSecrets = append(d.DynamicWarmingSecrets, x)
		}
	}
	return d
}
