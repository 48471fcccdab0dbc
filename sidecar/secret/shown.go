package secret

import (
	"strings"
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// shown says, message by message, which texts of a configuration may be shown. What is not listed is not shown, so that a
// field that is new, or that nobody thought of, gives nothing away; numbers, booleans and enumerations always are. A word is
// the name of a field:
//
//	name    its text
//	name{}  the keys of the map
//	name*   every text below it
//
// redact.go has what depends on more than the field: values of headers, matches on them, JWKS, URLs.
// testdata/shown.txt lists what comes out, and fails the test when it grows.
var shown = map[protoreflect.FullName]string{
	"google.protobuf.Any":    "type_url",
	"google.protobuf.Struct": "fields{}",

	"envoy.config.bootstrap.v3.Admin":                                    "access_log_path profile_path",
	"envoy.config.bootstrap.v3.Bootstrap":                                "node_context_params flags_path header_prefix default_socket_interface certificate_provider_instances{} perf_tracing_file_path",
	"envoy.config.bootstrap.v3.Bootstrap.ApplicationLogConfig.LogFormat": "text_format json_format*",
	"envoy.config.bootstrap.v3.Bootstrap.DynamicResources":               "lds_resources_locator cds_resources_locator",
	"envoy.config.bootstrap.v3.ClusterManager":                           "local_cluster_name",
	"envoy.config.bootstrap.v3.ClusterManager.OutlierDetection":          "event_log_path",
	"envoy.config.bootstrap.v3.CustomInlineHeader":                       "inline_header_name",
	"envoy.config.bootstrap.v3.RuntimeLayer":                             "name",
	"envoy.config.bootstrap.v3.RuntimeLayer.DiskLayer":                   "symlink_root subdirectory",
	"envoy.config.bootstrap.v3.RuntimeLayer.RtdsLayer":                   "name",
	"envoy.config.metrics.v3.StatsSink":                                  "name",
	"envoy.config.metrics.v3.TagSpecifier":                               "tag_name regex",
	"envoy.config.overload.v3.LoadShedPoint":                             "name",
	"envoy.config.overload.v3.OverloadAction":                            "name",
	"envoy.config.overload.v3.ResourceMonitor":                           "name",
	"envoy.config.overload.v3.Trigger":                                   "name",

	"envoy.config.core.v3.ApiConfigSource":                "cluster_names",
	"envoy.config.core.v3.CidrRange":                      "address_prefix",
	"envoy.config.core.v3.ConfigSource":                   "path",
	"envoy.config.core.v3.DataSource":                     "filename environment_variable",
	"envoy.config.core.v3.EnvoyInternalAddress":           "server_listener_name endpoint_id",
	"envoy.config.core.v3.Extension":                      "name category type_descriptor type_urls",
	"envoy.config.core.v3.ExtensionConfigSource":          "type_urls",
	"envoy.config.core.v3.GrpcService.EnvoyGrpc":          "cluster_name authority",
	"envoy.config.core.v3.GrpcService.GoogleGrpc":         "stat_prefix credentials_factory_name",
	"envoy.config.core.v3.HeaderValue":                    "key",
	"envoy.config.core.v3.HealthCheck":                    "name event_log_path",
	"envoy.config.core.v3.HealthCheck.CustomHealthCheck":  "name",
	"envoy.config.core.v3.HealthCheck.GrpcHealthCheck":    "service_name authority",
	"envoy.config.core.v3.HealthCheck.HttpHealthCheck":    "host path request_headers_to_remove",
	"envoy.config.core.v3.HealthCheck.TlsOptions":         "alpn_protocols",
	"envoy.config.core.v3.Http1ProtocolOptions":           "default_host_for_http_10",
	"envoy.config.core.v3.HttpUri":                        "cluster",
	"envoy.config.core.v3.Locality":                       "region zone sub_zone",
	"envoy.config.core.v3.Metadata":                       "filter_metadata{} typed_filter_metadata{}",
	"envoy.config.core.v3.Node":                           "id cluster dynamic_parameters{} user_agent_name user_agent_version client_features",
	"envoy.config.core.v3.PathConfigSource":               "path",
	"envoy.config.core.v3.Pipe":                           "path",
	"envoy.config.core.v3.RetryPolicy":                    "retry_on",
	"envoy.config.core.v3.RetryPolicy.RetryHostPredicate": "name",
	"envoy.config.core.v3.RetryPolicy.RetryPriority":      "name",
	"envoy.config.core.v3.RuntimeDouble":                  "runtime_key",
	"envoy.config.core.v3.RuntimeFeatureFlag":             "runtime_key",
	"envoy.config.core.v3.RuntimeFractionalPercent":       "runtime_key",
	"envoy.config.core.v3.RuntimePercent":                 "runtime_key",
	"envoy.config.core.v3.RuntimeUInt32":                  "runtime_key",
	"envoy.config.core.v3.SchemeHeaderTransformation":     "scheme_to_overwrite",
	"envoy.config.core.v3.SocketAddress":                  "address named_port resolver_name network_namespace_filepath",
	"envoy.config.core.v3.SocketOption":                   "description",
	"envoy.config.core.v3.SubstitutionFormatString":       "text_format text_format_source* json_format* content_type",
	"envoy.config.core.v3.TransportSocket":                "name",
	"envoy.config.core.v3.TypedExtensionConfig":           "name",
	"envoy.config.core.v3.UpstreamHttpProtocolOptions":    "override_auto_sni_header",
	"envoy.config.core.v3.WatchedDirectory":               "path",

	"envoy.config.cluster.v3.Cluster":                                    "name alt_stat_name typed_extension_protocol_options{} lrs_report_endpoint_metrics",
	"envoy.config.cluster.v3.Cluster.CustomClusterType":                  "name",
	"envoy.config.cluster.v3.Cluster.EdsClusterConfig":                   "service_name",
	"envoy.config.cluster.v3.Cluster.LbSubsetConfig.LbSubsetSelector":    "keys fallback_keys_subset",
	"envoy.config.cluster.v3.Cluster.OriginalDstLbConfig":                "http_header_name",
	"envoy.config.cluster.v3.Cluster.TransportSocketMatch":               "name",
	"envoy.config.cluster.v3.Filter":                                     "name",
	"envoy.config.endpoint.v3.ClusterLoadAssignment":                     "cluster_name named_endpoints{}",
	"envoy.config.endpoint.v3.ClusterLoadAssignment.Policy.DropOverload": "category",
	"envoy.config.endpoint.v3.Endpoint":                                  "hostname observability_name",
	"envoy.config.endpoint.v3.Endpoint.HealthCheckConfig":                "hostname",
	"envoy.config.endpoint.v3.LbEndpoint":                                "endpoint_name",
	"envoy.config.endpoint.v3.LedsClusterLocalityConfig":                 "leds_collection_name",

	"envoy.config.listener.v3.Filter":              "name",
	"envoy.config.listener.v3.FilterChain":         "name",
	"envoy.config.listener.v3.FilterChainMatch":    "address_suffix server_names transport_protocol application_protocols",
	"envoy.config.listener.v3.Listener":            "name stat_prefix",
	"envoy.config.listener.v3.Listener.FcdsConfig": "name",
	"envoy.config.listener.v3.ListenerFilter":      "name",

	"envoy.config.route.v3.CookieMatcher":                             "name",
	"envoy.config.route.v3.CorsPolicy":                                "allow_methods allow_headers expose_headers max_age",
	"envoy.config.route.v3.Decorator":                                 "operation",
	"envoy.config.route.v3.DirectResponseAction":                      "body*",
	"envoy.config.route.v3.HeaderMatcher":                             "name",
	"envoy.config.route.v3.InternalRedirectPolicy":                    "response_headers_to_copy",
	"envoy.config.route.v3.QueryParameterMatcher":                     "name",
	"envoy.config.route.v3.RateLimit":                                 "disable_key",
	"envoy.config.route.v3.RateLimit.Action.DynamicMetaData":          "descriptor_key default_value",
	"envoy.config.route.v3.RateLimit.Action.GenericKey":               "descriptor_value default_value descriptor_key",
	"envoy.config.route.v3.RateLimit.Action.HeaderValueMatch":         "descriptor_value default_value descriptor_key",
	"envoy.config.route.v3.RateLimit.Action.MetaData":                 "descriptor_key default_value",
	"envoy.config.route.v3.RateLimit.Action.QueryParameterValueMatch": "descriptor_value default_value descriptor_key",
	"envoy.config.route.v3.RateLimit.Action.QueryParameters":          "query_parameter_name descriptor_key",
	"envoy.config.route.v3.RateLimit.Action.RemoteAddressMatch":       "descriptor_value descriptor_key default_value",
	"envoy.config.route.v3.RateLimit.Action.RequestHeaders":           "header_name descriptor_key",
	"envoy.config.route.v3.RateLimit.HitsAddend":                      "format",
	"envoy.config.route.v3.RedirectAction":                            "scheme_redirect host_redirect path_redirect prefix_rewrite path_rewrite",
	"envoy.config.route.v3.RetryPolicy":                               "retry_on",
	"envoy.config.route.v3.RetryPolicy.ResetHeader":                   "name",
	"envoy.config.route.v3.RetryPolicy.RetryHostPredicate":            "name",
	"envoy.config.route.v3.RetryPolicy.RetryPriority":                 "name",
	"envoy.config.route.v3.Route":                                     "name typed_per_filter_config{} request_headers_to_remove response_headers_to_remove stat_prefix",
	"envoy.config.route.v3.RouteAction":                               "cluster cluster_header cluster_specifier_plugin prefix_rewrite path_rewrite host_rewrite_literal host_rewrite_header host_rewrite",
	"envoy.config.route.v3.RouteAction.HashPolicy.Cookie":             "name path",
	"envoy.config.route.v3.RouteAction.HashPolicy.CookieAttribute":    "name value",
	"envoy.config.route.v3.RouteAction.HashPolicy.FilterState":        "key",
	"envoy.config.route.v3.RouteAction.HashPolicy.Header":             "header_name",
	"envoy.config.route.v3.RouteAction.HashPolicy.QueryParameter":     "name",
	"envoy.config.route.v3.RouteAction.RequestMirrorPolicy":           "cluster cluster_header host_rewrite_literal",
	"envoy.config.route.v3.RouteAction.UpgradeConfig":                 "upgrade_type",
	"envoy.config.route.v3.RouteConfiguration":                        "name internal_only_headers response_headers_to_remove request_headers_to_remove vhost_header typed_per_filter_config{}",
	"envoy.config.route.v3.RouteMatch":                                "prefix path path_separated_prefix",
	"envoy.config.route.v3.Tracing":                                   "operation upstream_operation",
	"envoy.config.route.v3.VirtualCluster":                            "name",
	"envoy.config.route.v3.VirtualHost":                               "name domains request_headers_to_remove response_headers_to_remove typed_per_filter_config{}",
	"envoy.config.route.v3.WeightedCluster":                           "runtime_key_prefix header_name",
	"envoy.config.route.v3.WeightedCluster.ClusterWeight":             "name cluster_header request_headers_to_remove response_headers_to_remove typed_per_filter_config{} host_rewrite_literal",

	"envoy.config.accesslog.v3.AccessLog":                   "name",
	"envoy.config.accesslog.v3.ExtensionFilter":             "name",
	"envoy.config.accesslog.v3.ResponseFlagFilter":          "flags",
	"envoy.config.accesslog.v3.RuntimeFilter":               "runtime_key",
	"envoy.extensions.access_loggers.file.v3.FileAccessLog": "path format json_format* typed_json_format*",
	"envoy.config.trace.v3.OpenTelemetryConfig":             "service_name",
	"envoy.config.trace.v3.Tracing.Http":                    "name",
	"envoy.type.tracing.v3.CustomTag":                       "tag value",
	"envoy.type.tracing.v3.CustomTag.Environment":           "name default_value",
	"envoy.type.tracing.v3.CustomTag.Header":                "name default_value",
	"envoy.type.tracing.v3.CustomTag.Literal":               "value",
	"envoy.type.tracing.v3.CustomTag.Metadata":              "default_value",

	"envoy.config.rbac.v3.Action":                                             "name",
	"envoy.config.rbac.v3.RBAC":                                               "policies{}",
	"envoy.extensions.filters.http.rbac.v3.RBAC":                              "rules_stat_prefix shadow_rules_stat_prefix",
	"envoy.extensions.filters.network.rbac.v3.RBAC":                           "shadow_rules_stat_prefix stat_prefix",
	"envoy.extensions.filters.http.cors.v3.CorsPolicy":                        "allow_methods allow_headers expose_headers max_age",
	"envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit":         "stat_prefix",
	"envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.Entry":          "key value",
	"envoy.extensions.filters.http.router.v3.Router":                          "strict_check_headers",
	"envoy.extensions.filters.http.jwt_authn.v3.FilterStateRule":              "name requires{}",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication":            "providers{} requirement_map{} stat_prefix",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader":             "header_name claim_name",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader.PathSegment": "key",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtHeader":                    "name value_prefix",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtProvider": "issuer audiences from_params from_cookies forward_payload_header payload_in_metadata header_in_metadata " +
		"failed_status_in_metadata",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtProvider.NormalizePayload": "space_delimited_claims",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement":               "provider_name",
	"envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig":               "requirement_name",
	"envoy.extensions.filters.http.jwt_authn.v3.ProviderWithAudiences":        "provider_name audiences",
	"envoy.extensions.filters.http.jwt_authn.v3.RequirementRule":              "requirement_name",

	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager":                   "stat_prefix server_name via",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.ProxyStatusConfig": "literal_proxy_name",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing":           "operation upstream_operation",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig":     "upgrade_type",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter":                              "name",
	"envoy.extensions.filters.network.http_connection_manager.v3.Rds":                                     "route_config_name",
	"envoy.extensions.filters.network.http_connection_manager.v3.ResponseMapper":                          "body*",
	"envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes":                            "name",
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy":                                              "stat_prefix cluster",
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.OnDemand":                                     "resources_locator",
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TunnelingConfig":                              "hostname post_path request_id_header request_id_metadata_key",
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight":                "name",
	"envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol":                                   "stat_prefix",
	"envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol.KeyValuePair":                      "metadata_namespace key",

	"envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig": "stat_prefix",
	"envoy.data.dns.v3.DnsTable.AddressList":                     "address",
	"envoy.data.dns.v3.DnsTable.DnsEndpoint":                     "cluster_name",
	"envoy.data.dns.v3.DnsTable.DnsService":                      "service_name",
	"envoy.data.dns.v3.DnsTable.DnsServiceProtocol":              "name",
	"envoy.data.dns.v3.DnsTable.DnsServiceTarget":                "host_name cluster_name",
	"envoy.data.dns.v3.DnsTable.DnsVirtualDomain":                "name",

	"envoy.extensions.load_balancing_policies.common.v3.OrcaOobReportingConfig": "authority",

	// What is shown of a TLS context: names, and certificates, which every peer is shown. Of a key not even the file.
	"envoy.extensions.transport_sockets.tls.v3.CertificateProviderPluginInstance":            "instance_name certificate_name",
	"envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext":                 "trusted_ca* verify_certificate_spki verify_certificate_hash",
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext":                             "alpn_protocols",
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CertificateProvider":         "name",
	"envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CertificateProviderInstance": "instance_name certificate_name",
	"envoy.extensions.transport_sockets.tls.v3.PrivateKeyProvider":                           "provider_name",
	"envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.TrustDomain":        "name trust_bundle* workload_trust_domain",
	"envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig":                              "name",
	"envoy.extensions.transport_sockets.tls.v3.Secret":                                       "name",
	"envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher":                        "oid",
	"envoy.extensions.transport_sockets.tls.v3.TlsCertificate":                               "certificate_chain*",
	"envoy.extensions.transport_sockets.tls.v3.TlsKeyLog":                                    "path",
	"envoy.extensions.transport_sockets.tls.v3.TlsParameters":                                "cipher_suites ecdh_curves signature_algorithms",
	"envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext":                           "sni",

	"envoy.type.http.v3.Cookie":                         "name path",
	"envoy.type.http.v3.CookieAttribute":                "name value",
	"envoy.type.matcher.v3.FilterStateMatcher":          "key",
	"envoy.type.matcher.v3.MetadataMatcher":             "filter",
	"envoy.type.matcher.v3.MetadataMatcher.PathSegment": "key",
	"envoy.type.matcher.v3.RegexMatchAndSubstitute":     "substitution",
	"envoy.type.matcher.v3.RegexMatcher":                "regex",
	"envoy.type.matcher.v3.StringMatcher":               "exact prefix suffix contains",
	"envoy.type.metadata.v3.MetadataKey":                "key",
	"envoy.type.metadata.v3.MetadataKey.PathSegment":    "key",
	"envoy.type.v3.HashPolicy.FilterState":              "key",
	"xds.core.v3.CidrRange":                             "address_prefix",
	"xds.core.v3.TypedExtensionConfig":                  "name",
	"xds.type.matcher.v3.RegexMatcher":                  "regex",
	"xds.type.matcher.v3.StringMatcher":                 "exact prefix suffix contains",
}

// mark is what shown says of a field.
type mark uint8

const (
	unlisted mark = iota
	itself        // its text, or its keys
	allBelow      // every text below it
)

// marks is shown, read once.
var marks = sync.OnceValue(func() map[protoreflect.FullName]map[protoreflect.Name]mark {
	all := make(map[protoreflect.FullName]map[protoreflect.Name]mark, len(shown))
	for message, words := range shown {
		m := map[protoreflect.Name]mark{}
		for word := range strings.FieldsSeq(words) {
			if name, ok := strings.CutSuffix(word, "*"); ok {
				m[protoreflect.Name(name)] = allBelow
			} else {
				m[protoreflect.Name(strings.TrimSuffix(word, "{}"))] = itself
			}
		}
		all[message] = m
	}
	return all
})
