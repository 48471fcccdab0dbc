package config

import (
	"errors"
	"fmt"
	"strconv"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"

	"sallyport/sidecar/config/document"
	"sallyport/sidecar/config/fields"

	// Messages that a file may hold in an Any and that nothing else here
	// refers to. Only what is implemented: each costs memory.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/regex_engines/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
)

// Bootstrap is what a process starts with.
type Bootstrap struct {
	*bootstrapv3.Bootstrap
	Warnings []Warning
	docs     []*document.Document
	split    sections // how much of the lists came from docs[0]
}

type sections struct{ listeners, clusters, secrets int }

var (
	bootstrapFields = fields.Of(&bootstrapv3.Bootstrap{}, "node", "static_resources", "dynamic_resources", "admin", "default_regex_engine").
		// Statistics, watching over threads and the like are done in this program's own way.
		Harmless(&bootstrapv3.Bootstrap{}, "watchdog", "watchdogs", "enable_dispatcher_stats", "stats_flush_interval", "stats_config", "flags_path",
			"stats_server_version_override", "deferred_stat_options", "cluster_manager", "node_context_params", "memory_allocator_manager",
			"enable_worker_cpu_affinity", "grpc_async_client_manager_config").
		Refuse(&bootstrapv3.Bootstrap{}, "overload_manager", "config_sources", "default_config_source", "header_prefix", "tracing")
	staticFields  = fields.Of(&bootstrapv3.Bootstrap_StaticResources{}, "listeners", "clusters", "secrets")
	dynamicFields = fields.Of(&bootstrapv3.Bootstrap_DynamicResources{}, "lds_config", "cds_config", "ads_config").
			Refuse(&bootstrapv3.Bootstrap_DynamicResources{}, "lds_resources_locator", "cds_resources_locator")
	adminFields = fields.Of(&bootstrapv3.Admin{}, "address").
			Harmless(&bootstrapv3.Admin{}, "access_log", "access_log_path", "profile_path", "ignore_global_conn_limit").
			Refuse(&bootstrapv3.Admin{}, "allow_paths")
	sourceFields = fields.Of(&corev3.ConfigSource{}, "ads", "api_config_source", "initial_fetch_timeout", "resource_api_version").
			Refuse(&corev3.ConfigSource{}, "path", "path_config_source", "self", "authorities")
	apiFields = fields.Of(&corev3.ApiConfigSource{}, "api_type", "transport_api_version", "grpc_services", "set_node_on_first_message_only").
			Harmless(&corev3.ApiConfigSource{}, "refresh_delay", "request_timeout").
			Refuse(&corev3.ApiConfigSource{}, "cluster_names", "config_validators")
	grpcFields      = fields.Of(&corev3.GrpcService{}, "envoy_grpc", "initial_metadata").Refuse(&corev3.GrpcService{}, "google_grpc")
	envoyGRPCFields = fields.Of(&corev3.GrpcService_EnvoyGrpc{}, "cluster_name", "authority").
			Harmless(&corev3.GrpcService_EnvoyGrpc{}, "skip_envoy_headers", "max_receive_message_length")
)

const re2URL = "type.googleapis.com/envoy.extensions.regex_engines.v3.GoogleRE2"

// LoadFile reads a bootstrap from a YAML or JSON file.
func LoadFile(path string) (*Bootstrap, error) { return Load(path, "") }

// LoadYAML reads a bootstrap from text (--config-yaml).
func LoadYAML(text string) (*Bootstrap, error) { return Load("", text) }

// Load reads a bootstrap from a file and puts the text over it, as Envoy does
// with --config-yaml: messages are merged, lists are joined. Either may be "".
func Load(path, text string) (*Bootstrap, error) {
	b := &Bootstrap{Bootstrap: &bootstrapv3.Bootstrap{}}
	if path != "" {
		d, err := document.Load(path)
		if err != nil {
			return nil, err
		}
		if err := d.Decode(b.Bootstrap); err != nil {
			return nil, err
		}
		b.docs = append(b.docs, d)
	}
	s := b.GetStaticResources()
	b.split = sections{len(s.GetListeners()), len(s.GetClusters()), len(s.GetSecrets())}
	if text != "" {
		d, err := document.Parse("--config-yaml", []byte(text))
		if err != nil {
			return nil, err
		}
		over := &bootstrapv3.Bootstrap{}
		if err := d.Decode(over); err != nil {
			return nil, err
		}
		if len(b.docs) == 0 {
			s = over.GetStaticResources()
			b.split = sections{len(s.GetListeners()), len(s.GetClusters()), len(s.GetSecrets())}
		}
		proto.Merge(b.Bootstrap, over)
		b.docs = append(b.docs, d)
	}
	if len(b.docs) == 0 {
		return nil, errors.New("there is no configuration; name a file with -c FILE or give it with --config-yaml TEXT")
	}
	if b.docs[0].Empty() && len(b.docs) == 1 {
		return nil, b.docs[0].Error("", "is empty; needs an Envoy bootstrap, with static_resources or dynamic_resources")
	}
	if err := b.docs[0].Check(b.Bootstrap); err != nil {
		return nil, err
	}
	return b, b.check()
}

// check reports the fields of the bootstrap itself that are not implemented.
func (b *Bootstrap) check() error {
	r := &report{}
	c := &compiler{report: r}
	checkFields(r, "", b.Bootstrap, bootstrapFields)
	checkFields(r, "static_resources", b.GetStaticResources(), staticFields)
	checkFields(r, "dynamic_resources", b.GetDynamicResources(), dynamicFields)
	if a := b.GetAdmin(); a != nil {
		checkFields(r, "admin", a, adminFields)
		if a.GetAddress() != nil {
			c.address("admin.address", a.GetAddress())
		}
	}
	if e := b.GetDefaultRegexEngine(); e != nil && e.GetTypedConfig().GetTypeUrl() != re2URL {
		r.Errorf("default_regex_engine.typed_config", "%s is not implemented; only %s is", e.GetTypedConfig().GetTypeUrl(), re2URL)
	}
	b.dynamic(r)
	b.Warnings = r.Warnings
	return b.At("", 0, r.Err())
}

// Release forgets the text of the files, which only errors need and which is
// many times larger than what it says. At and UnknownCluster must not be called after it.
func (b *Bootstrap) Release() { b.docs = nil }

// At says where in the files the errors of a resource stand: err is what the
// compile of the i-th element of a list of static_resources ("listeners", …)
// returned; with "" that of the bootstrap itself.
func (b *Bootstrap) At(section string, i int, err error) error {
	if err == nil {
		return nil
	}
	doc, prefix := b.docs[0], ""
	if section != "" {
		n := map[string]int{"listeners": b.split.listeners, "clusters": b.split.clusters, "secrets": b.split.secrets}[section]
		if i >= n && len(b.docs) > 1 {
			doc, i = b.docs[1], i-n
		}
		prefix = "static_resources." + section + "[" + strconv.Itoa(i) + "]"
	}
	var out document.Errors
	for _, e := range flatten(err) {
		var f *fields.Error
		if errors.As(e, &f) {
			out = append(out, doc.Error(fields.At(prefix, f.Path), f.Text))
		} else {
			out = append(out, doc.Error(prefix, e.Error()))
		}
	}
	if len(out) == 1 {
		return out[0]
	}
	return out
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range many.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	return []error{err}
}

// UnknownCluster is the error of the i-th static listener, which names a
// cluster that is not there and that nobody will send.
func (b *Bootstrap) UnknownCluster(i int, name string, known []string) error {
	text := fmt.Sprintf("there is no cluster %q in static_resources.clusters%s", name, document.DidYouMean(name, known))
	doc, n := b.docs[0], i
	if i >= b.split.listeners && len(b.docs) > 1 {
		doc, n = b.docs[1], i-b.split.listeners
	}
	prefix := "static_resources.listeners[" + strconv.Itoa(n) + "]"
	for _, key := range []string{"cluster", "name"} {
		if path, ok := doc.Find(prefix, key, name); ok {
			return doc.Error(path, text)
		}
	}
	return doc.Error(prefix, text)
}

// Dynamic says where dynamic resources come from.
type Dynamic struct {
	LDS, CDS bool
	// Cluster is the static cluster of the control plane; "" where there is none.
	Cluster   string
	Authority string
	Delta     bool
	Metadata  []*corev3.HeaderValue // initial_metadata
	// Timeouts of the first LDS and CDS response (initial_fetch_timeout): 15 s; 0 waits for ever.
	LDSSource, CDSSource *corev3.ConfigSource
}

// Dynamic reads dynamic_resources, which were checked when b was loaded.
func (b *Bootstrap) Dynamic() Dynamic {
	return b.dynamic(&report{})
}

func (b *Bootstrap) dynamic(r *report) (d Dynamic) {
	m := b.GetDynamicResources()
	d.LDS, d.CDS, d.LDSSource, d.CDSSource = m.GetLdsConfig() != nil, m.GetCdsConfig() != nil, m.GetLdsConfig(), m.GetCdsConfig()
	if m == nil {
		return d
	}
	var at string
	api := m.GetAdsConfig()
	if api != nil {
		at = "dynamic_resources.ads_config"
	}
	for _, s := range []struct {
		name string
		m    *corev3.ConfigSource
	}{{"cds_config", d.CDSSource}, {"lds_config", d.LDSSource}} {
		if s.m == nil {
			continue
		}
		path := "dynamic_resources." + s.name
		checkFields(r, path, s.m, sourceFields)
		switch t := s.m.GetConfigSourceSpecifier().(type) {
		case *corev3.ConfigSource_Ads:
			if m.GetAdsConfig() == nil {
				r.Errorf(fields.At(path, "ads"), "there is no ads_config that it could mean")
			}
		case *corev3.ConfigSource_ApiConfigSource:
			// A stream for one type is an aggregated stream on which nothing
			// else is asked for; all must go to one control plane.
			if api == nil {
				api, at = t.ApiConfigSource, fields.At(path, "api_config_source")
			} else if !proto.Equal(api, t.ApiConfigSource) {
				r.Errorf(fields.At(path, "api_config_source"), `differs from %s; all dynamic resources come from one control plane: use "ads: {}"`, at)
			}
		case nil:
			r.Errorf(path, `says nothing of where the resources come from; use "ads: {}"`)
		}
	}
	if api == nil {
		return d
	}
	checkFields(r, at, api, apiFields)
	switch api.GetApiType() {
	case corev3.ApiConfigSource_GRPC, corev3.ApiConfigSource_AGGREGATED_GRPC:
	case corev3.ApiConfigSource_DELTA_GRPC, corev3.ApiConfigSource_AGGREGATED_DELTA_GRPC:
		d.Delta = true
	default:
		r.Errorf(fields.At(at, "api_type"), "%s is not implemented; use GRPC or DELTA_GRPC", api.GetApiType())
	}
	if api.GetTransportApiVersion() != corev3.ApiVersion_V3 {
		r.Errorf(fields.At(at, "transport_api_version"), "must be V3")
	}
	if len(api.GetGrpcServices()) != 1 {
		r.Errorf(fields.At(at, "grpc_services"), "needs exactly one service; endpoints of its cluster are tried in turn")
		return d
	}
	g := api.GetGrpcServices()[0]
	at = fields.Index(at, "grpc_services", 0)
	checkFields(r, at, g, grpcFields)
	e := g.GetEnvoyGrpc()
	if e == nil {
		r.Errorf(at, "needs envoy_grpc with cluster_name")
		return d
	}
	checkFields(r, fields.At(at, "envoy_grpc"), e, envoyGRPCFields)
	d.Cluster, d.Authority, d.Metadata = e.GetClusterName(), e.GetAuthority(), g.GetInitialMetadata()
	var names []string
	found := false
	for _, c := range b.GetStaticResources().GetClusters() {
		names = append(names, c.GetName())
		found = found || c.GetName() == d.Cluster
	}
	if !found {
		r.Errorf(fields.At(at, "envoy_grpc.cluster_name"), "there is no cluster %q in static_resources.clusters%s", d.Cluster, document.DidYouMean(d.Cluster, names))
	}
	return d
}
