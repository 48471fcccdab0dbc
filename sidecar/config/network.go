package config

import (
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/filter"
	"sallyport/sidecar/filter/list"
	"sallyport/sidecar/listener"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

var (
	networkFilterFields = fields.Of(&listenerv3.Filter{}, "name", "typed_config").Refuse(&listenerv3.Filter{}, "config_discovery")

	tcpFields = fields.Of(&tcpv3.TcpProxy{}, "stat_prefix", "cluster", "weighted_clusters", "idle_timeout", "max_downstream_connection_duration",
		"max_connect_attempts", "hash_policy", "access_log").
		// These send the bytes elsewhere, or other bytes.
		Refuse(&tcpv3.TcpProxy{}, "tunneling_config", "on_demand", "metadata_match", "proxy_protocol_tlvs")
	tcpWeightedFields = fields.Of(&tcpv3.TcpProxy_WeightedCluster{}, "clusters")
	tcpWeightFields   = fields.Of(&tcpv3.TcpProxy_WeightedCluster_ClusterWeight{}, "name", "weight").
				Refuse(&tcpv3.TcpProxy_WeightedCluster_ClusterWeight{}, "metadata_match")
	tcpHashFields = fields.Of(&typev3.HashPolicy{}, "source_ip").Refuse(&typev3.HashPolicy{}, "filter_state")

	managerURL = typeURL((*hcmv3.HttpConnectionManager)(nil))
	tcpURL     = typeURL((*tcpv3.TcpProxy)(nil))
)

// networkFilter compiles one filter of a chain: the last one takes the
// connection, those before judge it.
func (c *compiler) networkFilter(path string, f *listenerv3.Filter, last bool, ch *listener.Chain) {
	checkFields(c.report, path, f, networkFilterFields)
	at := fields.At(path, "typed_config")
	a := f.GetTypedConfig()
	switch url := a.GetTypeUrl(); {
	case url == "":
		c.Errorf(at, "is required")
	case url == managerURL || url == tcpURL:
		if !last {
			c.Errorf(path, "%s takes the connection, so that it must be the last filter", f.GetName())
			return
		}
		if url == managerURL {
			var m hcmv3.HttpConnectionManager
			if c.decode(at, a, &m) {
				ch.HTTP = c.manager(at, &m)
			}
			return
		}
		var m tcpv3.TcpProxy
		if c.decode(at, a, &m) {
			ch.TCP = c.tcp(at, &m)
		}
	default:
		k := list.Network(url)
		if k == nil {
			c.Errorf(at, "%s (%s) is not implemented; %s, %s, %s are", url, f.GetName(), strings.Join(list.Names(true), ", "), managerURL, tcpURL)
			return
		}
		if last {
			c.Errorf(path, "the last filter of a chain is http_connection_manager or tcp_proxy")
		}
		if n := k.CompileNetwork(c.filterCompiler(at, f.GetName(), ""), a); n != nil {
			ch.Network = append(ch.Network, n)
		}
	}
}

func (c *compiler) filterCompiler(path, name, prefix string) *filter.Compiler {
	return &filter.Compiler{Report: c.report, Path: path, FilterName: name, StatPrefix: prefix, Metrics: c.env.Metrics, Memory: c.env.Memory,
		Format: c.env.HeaderFormat}
}

// clusterRef interns the name of a cluster.
func (c *compiler) clusterRef(name string) route.ClusterRef {
	ref := route.ClusterRef{Name: name}
	if c.env.Cluster != nil {
		ref.Ref = c.env.Cluster(name)
	}
	return ref
}

func (c *compiler) tcp(path string, m *tcpv3.TcpProxy) *listener.TCPProxy {
	checkFields(c.report, path, m, tcpFields)
	o := &listener.TCPProxy{
		StatPrefix:  m.GetStatPrefix(),
		Idle:        c.duration(fields.At(path, "idle_timeout"), m.GetIdleTimeout(), defaultIdle),
		MaxDuration: c.duration(fields.At(path, "max_downstream_connection_duration"), m.GetMaxDownstreamConnectionDuration(), 0),
		Attempts:    max(number(m.GetMaxConnectAttempts(), 1), 1),
		AccessLogs:  c.accessLogs(path, m.GetAccessLog()),
	}
	if c.env.Stats != nil {
		o.Stats = c.env.Stats("tcp", m.GetStatPrefix(), listener.TCPStats)
	}
	switch t := m.GetClusterSpecifier().(type) {
	case *tcpv3.TcpProxy_Cluster:
		o.Clusters = []route.WeightedCluster{{Cluster: c.clusterRef(t.Cluster), Weight: 1}}
		o.TotalWeight = 1
	case *tcpv3.TcpProxy_WeightedClusters:
		at := fields.At(path, "weighted_clusters")
		checkFields(c.report, at, t.WeightedClusters, tcpWeightedFields)
		total := uint64(0)
		for i, w := range t.WeightedClusters.GetClusters() {
			checkFields(c.report, fields.Index(at, "clusters", i), w, tcpWeightFields)
			o.Clusters = append(o.Clusters, route.WeightedCluster{Cluster: c.clusterRef(w.GetName()), Weight: w.GetWeight()})
			total += uint64(w.GetWeight())
		}
		if total > 1<<32-1 {
			c.Errorf(at, "the weights add up to more than %d", uint32(1<<32-1))
		}
		o.TotalWeight = uint32(total)
	}
	for i, h := range m.GetHashPolicy() {
		checkFields(c.report, fields.Index(path, "hash_policy", i), h, tcpHashFields)
		o.HashSource = o.HashSource || h.GetSourceIp() != nil
	}
	return o
}

// accessLogs compiles the access_log of the message at path.
func (c *compiler) accessLogs(path string, list []*accesslogv3.AccessLog) (out []stream.AccessLog) {
	for i, m := range list {
		if c.env.AccessLog == nil {
			continue
		}
		l, err := c.env.AccessLog(m)
		if err != nil {
			c.Fail(fields.Index(path, "access_log", i), err)
			continue
		}
		out = append(out, l)
	}
	return out
}
