package config

//lint:file-ignore SA1019 deprecated fields still come from control planes

import (
	"math"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/config/match"
	"sallyport/sidecar/route"
)

var (
	forwardFields = fields.Of(&routev3.RouteAction{}, "cluster", "cluster_header", "weighted_clusters", "cluster_not_found_response_code",
		"prefix_rewrite", "regex_rewrite", "host_rewrite_literal", "auto_host_rewrite", "host_rewrite_header", "append_x_forwarded_host",
		"timeout", "idle_timeout", "retry_policy", "priority", "hash_policy", "max_grpc_timeout", "upgrade_configs", "max_stream_duration").
		// Where a request goes, and under which name, must not be guessed.
		Refuse(&routev3.RouteAction{}, "cluster_specifier_plugin", "inline_cluster_specifier_plugin", "metadata_match", "rate_limits",
			"path_rewrite", "path_rewrite_policy", "host_rewrite_path_regex", "host_rewrite", "internal_redirect_policy", "internal_redirect_action").
		Harmless(&routev3.RouteAction{}, "include_vh_rate_limits")

	weightedFields = fields.Of(&routev3.WeightedCluster{}, "clusters", "total_weight").
			Harmless(&routev3.WeightedCluster{}, "runtime_key_prefix").
			Refuse(&routev3.WeightedCluster{}, "header_name")
	weightFields = fields.Of(&routev3.WeightedCluster_ClusterWeight{}, "name", "weight", "host_rewrite_literal", "request_headers_to_add", "request_headers_to_remove",
		"response_headers_to_add", "response_headers_to_remove", "typed_per_filter_config").
		Refuse(&routev3.WeightedCluster_ClusterWeight{}, "cluster_header", "metadata_match")

	redirectFields = fields.Of(&routev3.RedirectAction{}, "https_redirect", "scheme_redirect", "host_redirect", "port_redirect", "path_redirect",
		"prefix_rewrite", "regex_rewrite", "response_code", "strip_query").
		Refuse(&routev3.RedirectAction{}, "path_rewrite")
	directFields       = fields.Of(&routev3.DirectResponseAction{}, "status", "body")
	streamTimeFields   = fields.Of(&routev3.RouteAction_MaxStreamDuration{}, "grpc_timeout_header_max")
	hashFields         = fields.Of(&routev3.RouteAction_HashPolicy{}, "header", "cookie", "connection_properties", "query_parameter", "terminal").Strict()
	hashHeaderFields   = fields.Of(&routev3.RouteAction_HashPolicy_Header{}, "header_name")
	routeUpgradeFields = fields.Of(&routev3.RouteAction_UpgradeConfig{}, "upgrade_type", "enabled").
				Refuse(&routev3.RouteAction_UpgradeConfig{}, "connect_config")
)

const defaultTimeout = 15 * time.Second

func (c *routeCompiler) forward(path string, a *routev3.RouteAction) *route.Forward {
	if a.GetCors() != nil {
		c.Errorf(path+".cors", "deprecated and not implemented; configure envoy.filters.http.cors in typed_per_filter_config instead")
		a = without(a, "cors")
	}
	checkFields(c.report, path, a, forwardFields)
	f := &route.Forward{NotFoundStatus: 503, Timeout: defaultTimeout, IdleTimeout: -1, Priority: int(a.GetPriority())}
	switch a.GetClusterNotFoundResponseCode() {
	case routev3.RouteAction_NOT_FOUND:
		f.NotFoundStatus = 404
	case routev3.RouteAction_INTERNAL_SERVER_ERROR:
		f.NotFoundStatus = 500
	}
	c.destination(path, a, f)
	c.rewrites(path, a, f)
	if t := a.GetTimeout(); t != nil {
		f.Timeout = c.duration(path+".timeout", t)
	}
	if t := a.GetIdleTimeout(); t != nil {
		f.IdleTimeout = c.duration(path+".idle_timeout", t)
	}
	if t := a.GetMaxGrpcTimeout(); t != nil {
		f.HonorGRPCTimeout, f.MaxGRPCTimeout = true, c.duration(path+".max_grpc_timeout", t)
	}
	if m := a.GetMaxStreamDuration(); m != nil {
		p := path + ".max_stream_duration"
		checkFields(c.report, p, m, streamTimeFields)
		if t := m.GetGrpcTimeoutHeaderMax(); t != nil {
			f.HonorGRPCTimeout, f.MaxGRPCTimeout = true, c.duration(p+".grpc_timeout_header_max", t)
		}
	}
	f.Retry = c.retry
	if p := a.GetRetryPolicy(); p != nil {
		f.Retry = c.retryPolicy(path+".retry_policy", p)
	}
	for i, h := range a.GetHashPolicy() {
		f.Hash = append(f.Hash, c.hash(fields.Index(path, "hash_policy", i), h))
	}
	seen := map[string]bool{}
	for i, u := range a.GetUpgradeConfigs() {
		p := fields.Index(path, "upgrade_configs", i)
		checkFields(c.report, p, u, routeUpgradeFields)
		name := strings.ToLower(u.GetUpgradeType())
		if seen[name] {
			c.Errorf(p+".upgrade_type", "%q occurs twice", name)
		}
		seen[name] = true
		f.Upgrades = append(f.Upgrades, route.Upgrade{Protocol: name, Enabled: u.GetEnabled() == nil || u.GetEnabled().GetValue()})
	}
	return f
}

func (c *routeCompiler) cluster(name string) route.ClusterRef {
	ref := route.ClusterRef{Name: name}
	if c.env.Cluster != nil {
		ref.Ref = c.env.Cluster(name)
	}
	return ref
}

func (c *routeCompiler) destination(path string, a *routev3.RouteAction, f *route.Forward) {
	switch s := a.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		f.Clusters = []route.WeightedCluster{{Cluster: c.cluster(s.Cluster), Weight: 1}}
		f.TotalWeight = 1
	case *routev3.RouteAction_ClusterHeader:
		f.ClusterHeader = strings.ToLower(s.ClusterHeader)
		if f.ClusterHeader == "host" {
			f.ClusterHeader = ":authority"
		}
	case *routev3.RouteAction_WeightedClusters:
		c.weighted(path+".weighted_clusters", s.WeightedClusters, f)
	case nil:
		c.Errorf(path, "needs one of cluster, cluster_header, weighted_clusters")
	}
}

func (c *routeCompiler) weighted(path string, w *routev3.WeightedCluster, f *route.Forward) {
	checkFields(c.report, path, w, weightedFields)
	total := uint64(0)
	for i, k := range w.GetClusters() {
		p := fields.Index(path, "clusters", i)
		checkFields(c.report, p, k, weightFields)
		if k.GetName() == "" && k.GetClusterHeader() == "" {
			c.Errorf(p+".name", "the cluster's name is empty")
		}
		total += uint64(k.GetWeight().GetValue())
		l := c.compileLevel(p, k.GetRequestHeadersToRemove(), k.GetRequestHeadersToAdd(), k.GetResponseHeadersToRemove(), k.GetResponseHeadersToAdd(), k.GetTypedPerFilterConfig())
		f.Clusters = append(f.Clusters, route.WeightedCluster{
			Cluster: c.cluster(k.GetName()), Weight: k.GetWeight().GetValue(), HostRewrite: k.GetHostRewriteLiteral(),
			RequestHeaders: l.request, ResponseHeaders: l.response, Overrides: l.overrides,
		})
	}
	if total == 0 || total > math.MaxUint32 {
		c.Errorf(path, "the sum of the weights is %d; it must be from 1 to %d", total, uint32(math.MaxUint32))
	}
	// Deprecated; Envoy demands that it be right.
	if t := w.GetTotalWeight(); t != nil && uint64(t.GetValue()) != total {
		c.Errorf(path+".total_weight", "is %d; the sum of the weights is %d", t.GetValue(), total)
	}
	f.TotalWeight = uint32(total)
}

func (c *routeCompiler) rewrites(path string, a *routev3.RouteAction, f *route.Forward) {
	if a.GetPrefixRewrite() != "" {
		f.Rewrite.Prefix, f.Rewrite.HasPrefix = a.GetPrefixRewrite(), true
	}
	if m := a.GetRegexRewrite(); m != nil {
		if f.Rewrite.HasPrefix {
			c.Errorf(path, "both prefix_rewrite and regex_rewrite are set; at most one may be")
		}
		f.Rewrite.Regex = c.replacer(path+".regex_rewrite", m)
		f.Rewrite.Substitution = m.GetSubstitution()
	}
	f.HostRewrite, f.HostHeader = a.GetHostRewriteLiteral(), strings.ToLower(a.GetHostRewriteHeader())
	f.AutoHost, f.AppendXFHost = a.GetAutoHostRewrite().GetValue(), a.GetAppendXForwardedHost()
}

func (c *routeCompiler) replacer(path string, m *matcherv3.RegexMatchAndSubstitute) route.Replacer {
	r, err := route.NewReplacer(m.GetPattern().GetRegex(), m.GetSubstitution())
	if err != nil {
		c.Fail(path, err)
		return nil
	}
	return r
}

// duration reads a duration, which must not be negative.
func (c *routeCompiler) duration(path string, d *durationpb.Duration) time.Duration {
	if err := d.CheckValid(); err != nil {
		c.Errorf(path, "%v", err)
		return 0
	}
	t := d.AsDuration()
	if t < 0 {
		c.Errorf(path, "%s is negative", t)
	}
	return t
}

func (c *routeCompiler) redirect(path string, a *routev3.RedirectAction) *route.Redirect {
	checkFields(c.report, path, a, redirectFields)
	r := &route.Redirect{
		HTTPS: a.GetHttpsRedirect(), Scheme: strings.ToLower(a.GetSchemeRedirect()),
		Host: a.GetHostRedirect(), Path: a.GetPathRedirect(), StripQuery: a.GetStripQuery(),
	}
	if a.GetPortRedirect() > math.MaxUint16 {
		c.Errorf(path+".port_redirect", "%d is not a port", a.GetPortRedirect())
	}
	r.Port = uint16(a.GetPortRedirect())
	switch s := a.GetPathRewriteSpecifier().(type) {
	case *routev3.RedirectAction_PrefixRewrite:
		r.Rewrite.Prefix, r.Rewrite.HasPrefix = s.PrefixRewrite, true
	case *routev3.RedirectAction_RegexRewrite:
		r.Rewrite.Regex = c.replacer(path+".regex_rewrite", s.RegexRewrite)
		r.Rewrite.Substitution = s.RegexRewrite.GetSubstitution()
	}
	switch a.GetResponseCode() {
	case routev3.RedirectAction_FOUND:
		r.Status = 302
	case routev3.RedirectAction_SEE_OTHER:
		r.Status = 303
	case routev3.RedirectAction_TEMPORARY_REDIRECT:
		r.Status = 307
	case routev3.RedirectAction_PERMANENT_REDIRECT:
		r.Status = 308
	default:
		r.Status = 301
	}
	return r
}

func (c *routeCompiler) direct(path string, a *routev3.DirectResponseAction) *route.Direct {
	checkFields(c.report, path, a, directFields)
	d := &route.Direct{Status: int(a.GetStatus())}
	if a.GetBody() != nil {
		b, err := match.Data(a.GetBody(), c.maxBody)
		if err != nil {
			c.Errorf(path+".body", "%v", err)
		}
		d.Body = b
	}
	return d
}

func (c *routeCompiler) hash(path string, h *routev3.RouteAction_HashPolicy) route.HashPolicy {
	checkFields(c.report, path, h, hashFields)
	p := route.HashPolicy{Terminal: h.GetTerminal()}
	switch s := h.GetPolicySpecifier().(type) {
	case *routev3.RouteAction_HashPolicy_Header_:
		checkFields(c.report, path+".header", s.Header, hashHeaderFields)
		p.Kind, p.Name = route.HashHeader, strings.ToLower(s.Header.GetHeaderName())
		if p.Name == "host" {
			p.Name = ":authority"
		}
	case *routev3.RouteAction_HashPolicy_Cookie_:
		k := s.Cookie
		p.Kind, p.Name, p.Path, p.TTL = route.HashCookie, k.GetName(), k.GetPath(), -1
		if k.GetTtl() != nil {
			p.TTL = c.duration(path+".cookie.ttl", k.GetTtl())
		}
		for i, a := range k.GetAttributes() {
			ap := fields.Index(path+".cookie", "attributes", i)
			if strings.ContainsAny(a.GetName()+a.GetValue(), ";\r\n\x00") {
				c.Errorf(ap, "holds a semicolon or a line break")
			}
			if strings.EqualFold(a.GetName(), "httponly") {
				continue // every generated cookie has it
			}
			p.Attrs += "; " + a.GetName()
			if a.GetValue() != "" {
				p.Attrs += "=" + a.GetValue()
			}
		}
		if strings.ContainsAny(p.Name+p.Path, ";,\r\n\x00") || strings.ContainsAny(p.Name, "= \t\"") {
			c.Errorf(path+".cookie", "name %q or path %q holds a character that a cookie cannot", p.Name, p.Path)
		}
	case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
		p.Kind = route.HashSourceIP
		if !s.ConnectionProperties.GetSourceIp() {
			c.Errorf(path+".connection_properties", "source_ip is the only property, and is not set")
		}
	case *routev3.RouteAction_HashPolicy_QueryParameter_:
		p.Kind, p.Name = route.HashQuery, s.QueryParameter.GetName()
	case *routev3.RouteAction_HashPolicy_FilterState_:
		// Reported by checkFields.
	}
	return p
}
