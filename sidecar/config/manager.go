package config

import (
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/filter/list"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

var (
	managerFields = fields.Of(&hcmv3.HttpConnectionManager{}, "codec_type", "stat_prefix", "rds", "route_config", "http_filters", "tracing",
		"common_http_protocol_options", "http_protocol_options", "http2_protocol_options", "server_name", "server_header_transformation",
		"max_request_headers_kb", "stream_idle_timeout", "request_timeout", "request_headers_timeout", "drain_timeout", "delayed_close_timeout",
		"access_log", "use_remote_address", "xff_num_trusted_hops", "internal_address_config", "skip_xff_append", "via", "generate_request_id",
		"preserve_external_request_id", "always_set_request_id_in_response", "forward_client_cert_details", "set_current_client_cert_details",
		"proxy_100_continue", "upgrade_configs", "normalize_path", "merge_slashes", "path_with_escaped_slashes_action",
		"strip_matching_host_port", "strip_any_host_port", "request_id_extension").
		// HTTP/3 comes with a UDP listener, which is refused; a malformed message is always an error of its stream alone where the protocol allows it.
		Harmless(&hcmv3.HttpConnectionManager{}, "http3_protocol_options", "stream_error_on_invalid_http_message", "drain_timeout_jitter",
			"record_route_resolution_stats", "http1_safe_max_connection_duration").
		Refuse(&hcmv3.HttpConnectionManager{}, "scoped_routes", "forward_client_cert_matcher", "path_normalization_options", "strip_trailing_host_dot",
			"forward_proto_config", "typed_header_validation_config")

	rdsFields    = fields.Of(&hcmv3.Rds{}, "config_source", "route_config_name")
	commonFields = fields.Of(&corev3.HttpProtocolOptions{}, "idle_timeout", "max_connection_duration", "max_headers_count", "max_stream_duration",
		"headers_with_underscores_action", "max_requests_per_connection").
		Harmless(&corev3.HttpProtocolOptions{}, "max_connection_duration_jitter")
	internalFields       = fields.Of(&hcmv3.HttpConnectionManager_InternalAddressConfig{}, "unix_sockets", "cidr_ranges")
	certFields           = fields.Of(&hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{}, "subject", "cert", "chain", "dns", "uri")
	managerUpgradeFields = fields.Of(&hcmv3.HttpConnectionManager_UpgradeConfig{}, "upgrade_type", "enabled").Refuse(&hcmv3.HttpConnectionManager_UpgradeConfig{}, "filters")
	httpFilterFields     = fields.Of(&hcmv3.HttpFilter{}, "name", "typed_config", "is_optional").Refuse(&hcmv3.HttpFilter{}, "config_discovery", "disabled")
	routerFields         = fields.Of(&routerv3.Router{}, "suppress_envoy_headers").
				Harmless(&routerv3.Router{}, "dynamic_stats", "suppress_grpc_request_failure_code_stats").
				Refuse(&routerv3.Router{}, "strict_check_headers", "upstream_http_filters")

	routerURL = typeURL((*routerv3.Router)(nil))
)

// uuidURL is the request id extension that is built in.
const uuidURL = "type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig"

const (
	defaultStreamIdle    = 5 * time.Minute
	defaultDrain         = 5 * time.Second
	defaultDelayedClose  = time.Second
	defaultRequestHeader = 60 // KiB
	serverName           = "sallyport"
)

// manager compiles an HttpConnectionManager.
func (c *compiler) manager(path string, m *hcmv3.HttpConnectionManager) *stream.Manager {
	at := func(field string) string { return fields.At(path, field) }
	checkFields(c.report, path, m, managerFields)
	o := &stream.Manager{
		StatPrefix: m.GetStatPrefix(),
		Options: codec.Options{
			HTTP1: c.http1Options(at("http_protocol_options"), m.GetHttpProtocolOptions()),
			HTTP2: c.http2Options(at("http2_protocol_options"), m.GetHttp2ProtocolOptions()),
		},
		StreamIdle:        c.duration(at("stream_idle_timeout"), m.GetStreamIdleTimeout(), defaultStreamIdle),
		RequestTime:       c.duration(at("request_timeout"), m.GetRequestTimeout(), 0),
		RequestHeaders:    c.duration(at("request_headers_timeout"), m.GetRequestHeadersTimeout(), 0),
		Drain:             c.duration(at("drain_timeout"), m.GetDrainTimeout(), defaultDrain),
		DelayedClose:      c.duration(at("delayed_close_timeout"), m.GetDelayedCloseTimeout(), defaultDelayedClose),
		ConnectionIdle:    defaultIdle,
		UseRemoteAddress:  m.GetUseRemoteAddress().GetValue(),
		TrustedHops:       m.GetXffNumTrustedHops(),
		SkipXFF:           m.GetSkipXffAppend(),
		ServerName:        m.GetServerName(),
		Via:               m.GetVia(),
		NormalizePath:     m.GetNormalizePath().GetValue(),
		MergeSlashes:      m.GetMergeSlashes(),
		GenerateRequestID: boolean(m.GetGenerateRequestId(), true),
		PreserveRequestID: m.GetPreserveExternalRequestId(),
		RequestIDResponse: m.GetAlwaysSetRequestIdInResponse(),
		AccessLogs:        c.accessLogs(path, m.GetAccessLog()),
		Proxy100:          m.GetProxy_100Continue(),
	}
	if o.ServerName == "" {
		o.ServerName = serverName
	}
	o.Stats = c.stats("http", o.StatPrefix)
	c.managerCommon(at("common_http_protocol_options"), m.GetCommonHttpProtocolOptions(), o)
	o.HTTP1.MaxHeaderBytes = int(number(m.GetMaxRequestHeadersKb(), defaultRequestHeader)) << 10
	o.HTTP2.MaxHeaderBytes, o.HTTP2.MaxHeaderCount = o.HTTP1.MaxHeaderBytes, o.HTTP1.MaxHeaderCount
	c.managerEnums(path, m, o)
	c.managerClient(path, m, o)
	for i, u := range m.GetUpgradeConfigs() {
		checkFields(c.report, fields.Index(path, "upgrade_configs", i), u, managerUpgradeFields)
		o.Upgrades = append(o.Upgrades, route.Upgrade{Protocol: strings.ToLower(u.GetUpgradeType()), Enabled: boolean(u.GetEnabled(), true)})
	}
	if e := m.GetRequestIdExtension(); e != nil && e.GetTypedConfig().GetTypeUrl() != uuidURL {
		c.Errorf(at("request_id_extension.typed_config"), "%s is not implemented; only %s is", e.GetTypedConfig().GetTypeUrl(), uuidURL)
	}
	if t := m.GetTracing(); t != nil && c.env.Tracer != nil {
		tracer, err := c.env.Tracer(t)
		if err != nil {
			c.Fail(at("tracing"), err)
		} else {
			o.Tracer = tracer
		}
	}
	o.Routes = c.routes(path, m)
	c.httpFilters(path, m.GetHttpFilters(), o)
	return o
}

// stats are the counters of that kind and name.
func (c *compiler) stats(kind, name string) *metric.Set {
	if c.env.Stats == nil {
		return metric.NewSet(stream.Stats, 0)
	}
	return c.env.Stats(kind, name, stream.Stats)
}

func (c *compiler) managerCommon(path string, m *corev3.HttpProtocolOptions, o *stream.Manager) {
	if m == nil {
		return
	}
	checkFields(c.report, path, m, commonFields)
	o.ConnectionIdle = c.duration(fields.At(path, "idle_timeout"), m.GetIdleTimeout(), defaultIdle)
	o.MaxConnection = c.duration(fields.At(path, "max_connection_duration"), m.GetMaxConnectionDuration(), 0)
	o.MaxStream = c.duration(fields.At(path, "max_stream_duration"), m.GetMaxStreamDuration(), 0)
	o.MaxRequests = m.GetMaxRequestsPerConnection().GetValue()
	o.HTTP1.MaxHeaderCount = int(m.GetMaxHeadersCount().GetValue())
	o.HTTP1.Underscores = underscores(m.GetHeadersWithUnderscoresAction())
	switch m.GetHeadersWithUnderscoresAction() {
	case corev3.HttpProtocolOptions_REJECT_REQUEST:
		o.Underscores = stream.UnderscoreReject
	case corev3.HttpProtocolOptions_DROP_HEADER:
		o.Underscores = stream.UnderscoreDrop
	}
}

func (c *compiler) managerEnums(path string, m *hcmv3.HttpConnectionManager, o *stream.Manager) {
	switch m.GetCodecType() {
	case hcmv3.HttpConnectionManager_AUTO:
		o.Codec = codec.Auto
	case hcmv3.HttpConnectionManager_HTTP1:
		o.Codec = codec.HTTP1
	case hcmv3.HttpConnectionManager_HTTP2:
		o.Codec = codec.HTTP2
	default:
		c.Errorf(fields.At(path, "codec_type"), "%s is not implemented", m.GetCodecType())
	}
	switch m.GetServerHeaderTransformation() {
	case hcmv3.HttpConnectionManager_APPEND_IF_ABSENT:
		o.ServerHeader = stream.ServerAppendIfAbsent
	case hcmv3.HttpConnectionManager_PASS_THROUGH:
		o.ServerHeader = stream.ServerPassThrough
	}
	switch m.GetPathWithEscapedSlashesAction() {
	case hcmv3.HttpConnectionManager_REJECT_REQUEST:
		o.Slashes = stream.SlashReject
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT:
		o.Slashes = stream.SlashRedirect
	case hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD:
		o.Slashes = stream.SlashUnescapeForward
	}
	switch {
	case m.GetStripMatchingHostPort() && m.GetStripAnyHostPort():
		c.Errorf(fields.At(path, "strip_any_host_port"), "cannot be together with strip_matching_host_port")
	case m.GetStripMatchingHostPort():
		o.StripPort = stream.StripMatchingPort
	case m.GetStripAnyHostPort():
		o.StripPort = stream.StripAnyPort
	}
}

// managerClient reads what concerns who the client is.
func (c *compiler) managerClient(path string, m *hcmv3.HttpConnectionManager, o *stream.Manager) {
	switch m.GetForwardClientCertDetails() {
	case hcmv3.HttpConnectionManager_FORWARD_ONLY:
		o.ForwardCert = stream.CertForwardOnly
	case hcmv3.HttpConnectionManager_APPEND_FORWARD:
		o.ForwardCert = stream.CertAppendForward
	case hcmv3.HttpConnectionManager_SANITIZE_SET:
		o.ForwardCert = stream.CertSanitizeSet
	case hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY:
		o.ForwardCert = stream.CertAlwaysForwardOnly
	}
	if d := m.GetSetCurrentClientCertDetails(); d != nil {
		checkFields(c.report, fields.At(path, "set_current_client_cert_details"), d, certFields)
		o.CertDetails = stream.CertDetails{Subject: d.GetSubject().GetValue(), Cert: d.GetCert(), Chain: d.GetChain(), DNS: d.GetDns(), URI: d.GetUri()}
	}
	if i := m.GetInternalAddressConfig(); i != nil {
		at := fields.At(path, "internal_address_config")
		checkFields(c.report, at, i, internalFields)
		o.InternalCIDRs = c.prefixes(at, "cidr_ranges", i.GetCidrRanges())
	}
}

// routes finds the place that the routes come to, or compiles those that are inline.
func (c *compiler) routes(path string, m *hcmv3.HttpConnectionManager) *route.Handle {
	switch t := m.GetRouteSpecifier().(type) {
	case *hcmv3.HttpConnectionManager_Rds:
		at := fields.At(path, "rds")
		checkFields(c.report, at, t.Rds, rdsFields)
		c.fromADS(fields.At(at, "config_source"), t.Rds.GetConfigSource())
		name := t.Rds.GetRouteConfigName()
		if name == "" {
			c.Errorf(fields.At(at, "route_config_name"), "is required")
		}
		c.Needs.Routes = append(c.Needs.Routes, name)
		if c.env.Routes == nil {
			return route.NewHandle(name, nil)
		}
		return c.env.Routes(name)
	case *hcmv3.HttpConnectionManager_RouteConfig:
		// A report of its own, so that paths stand below this one.
		rc := &routeCompiler{report: &report{Resource: c.Resource}, env: c.env, maxBody: 4096}
		table := rc.compile(t.RouteConfig)
		c.Take(fields.At(path, "route_config"), rc.report)
		return route.NewHandle(t.RouteConfig.GetName(), table)
	}
	if m.GetScopedRoutes() == nil {
		c.Errorf(path, "needs rds or route_config")
	}
	return nil
}

func (c *compiler) httpFilters(path string, filters []*hcmv3.HttpFilter, o *stream.Manager) {
	if len(filters) == 0 {
		c.Errorf(fields.At(path, "http_filters"), "is required; the last one is envoy.filters.http.router")
	}
	seen := map[string]bool{}
	var chain []stream.Filter
	var ids []route.FilterID
	for i, f := range filters {
		at := fields.Index(path, "http_filters", i)
		checkFields(c.report, at, f, httpFilterFields)
		if seen[f.GetName()] {
			c.Errorf(fields.At(at, "name"), "%q is the name of two filters; overrides of routes would meet both", f.GetName())
		}
		seen[f.GetName()] = true
		last := i == len(filters)-1
		typed := fields.At(at, "typed_config")
		a := f.GetTypedConfig()
		if url := a.GetTypeUrl(); url == routerURL {
			if !last {
				c.Errorf(at, "the router must be the last filter: those after it would never run")
			}
			var r routerv3.Router
			if c.decode(typed, a, &r) {
				checkFields(c.report, typed, &r, routerFields)
				o.SuppressEnvoyHeaders = r.GetSuppressEnvoyHeaders()
			}
			continue
		} else if url == "" {
			c.Errorf(typed, "is required")
		} else if k := list.HTTP(url); k == nil {
			if f.GetIsOptional() {
				c.Warnf(typed, "%s (%s) is not implemented; it was marked optional", url, f.GetName())
			} else {
				c.Errorf(typed, "%s (%s) is not implemented; %s, %s are", url, f.GetName(), strings.Join(list.Names(false), ", "), routerURL)
			}
		} else if compiled := k.Compile(c.filterCompiler(typed, f.GetName(), "http."+o.StatPrefix+"."), a); compiled != nil {
			id, err := c.env.Filters.ID(f.GetName())
			if err != nil {
				c.Fail(fields.At(at, "name"), err)
			}
			chain, ids = append(chain, compiled), append(ids, id)
		}
		if last {
			c.Errorf(at, "the last filter must be envoy.filters.http.router")
		}
	}
	var err error
	if o.Filters, err = stream.NewChain(chain, ids); err != nil {
		c.Fail(fields.At(path, "http_filters"), err)
	}
}
