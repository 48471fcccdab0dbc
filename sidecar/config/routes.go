package config

//lint:file-ignore SA1019 deprecated fields still come from control planes

import (
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/config/match"
	"sallyport/sidecar/route"
)

var (
	routeConfigFields = fields.Of(&routev3.RouteConfiguration{}, "name", "virtual_hosts", "response_headers_to_add", "response_headers_to_remove",
		"request_headers_to_add", "request_headers_to_remove", "most_specific_header_mutations_wins", "validate_clusters",
		"max_direct_response_body_size_bytes", "ignore_port_in_host_matching", "ignore_path_parameters_in_path_matching", "typed_per_filter_config").
		Harmless(&routev3.RouteConfiguration{}, "metadata").
		Refuse(&routev3.RouteConfiguration{}, "vhds", "internal_only_headers", "cluster_specifier_plugins", "vhost_header", "route_specifiers")

	virtualHostFields = fields.Of(&routev3.VirtualHost{}, "name", "domains", "routes", "require_tls", "request_headers_to_add", "request_headers_to_remove",
		"response_headers_to_add", "response_headers_to_remove", "typed_per_filter_config", "include_request_attempt_count",
		"include_attempt_count_in_response", "retry_policy").
		Harmless(&routev3.VirtualHost{}, "metadata", "virtual_clusters").
		Refuse(&routev3.VirtualHost{}, "matcher", "rate_limits", "route_specifiers")

	routeFields = fields.Of(&routev3.Route{}, "name", "match", "route", "redirect", "direct_response", "typed_per_filter_config", "request_headers_to_add",
		"request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove", "tracing").
		Harmless(&routev3.Route{}, "metadata", "stat_prefix").
		Refuse(&routev3.Route{}, "filter_action", "non_forwarding_action", "route_specifiers")

	tracingFields = fields.Of(&routev3.Tracing{}, "random_sampling", "overall_sampling").
			Harmless(&routev3.Tracing{}, "client_sampling")
)

// routeCompiler compiles one RouteConfiguration.
type routeCompiler struct {
	*report
	env Env
	// mostSpecificWins is most_specific_header_mutations_wins.
	mostSpecificWins bool
	maxBody          int
	validateClusters bool
	// level is what the route configuration adds to every route, host what
	// the virtual host at work adds.
	level, host level
	// retry is the virtual host's policy, for routes that have none.
	retry *route.Retry
}

// level is what every level of a route configuration may say.
type level struct {
	request, response []route.HeaderMutation
	overrides         []route.Override
}

// CompileRoutes compiles a route configuration into a table. Clusters need
// not be known: they are resolved when a request comes (see ClusterRef).
func CompileRoutes(rc *routev3.RouteConfiguration, env Env) (*route.Table, []Warning, error) {
	c := &routeCompiler{report: fields.NewReport("route configuration", rc.GetName()), env: env.complete(), maxBody: 4096}
	t := c.compile(rc)
	if err := c.Err(); err != nil {
		return nil, c.Warnings, err
	}
	return t, c.Warnings, nil
}

func (c *routeCompiler) compile(rc *routev3.RouteConfiguration) *route.Table {
	if !fields.Validate(c.report, "", rc) {
		return nil // what follows relies on the rules
	}
	checkFields(c.report, "", rc, routeConfigFields)
	c.mostSpecificWins = rc.GetMostSpecificHeaderMutationsWins()
	c.validateClusters = rc.GetValidateClusters().GetValue()
	if m := rc.GetMaxDirectResponseBodySizeBytes(); m != nil {
		c.maxBody = int(m.GetValue())
	}
	if c.validateClusters {
		c.Warnf("validate_clusters", "clusters are not checked here: a request to one that is not known is answered with cluster_not_found_response_code")
	}
	c.level = c.compileLevel("", rc.GetRequestHeadersToRemove(), rc.GetRequestHeadersToAdd(), rc.GetResponseHeadersToRemove(), rc.GetResponseHeadersToAdd(), rc.GetTypedPerFilterConfig())
	names := map[string]bool{}
	var hosts []*route.VirtualHost
	for i, v := range rc.GetVirtualHosts() {
		path := fields.Index("", "virtual_hosts", i)
		if names[v.GetName()] {
			c.Errorf(path+".name", "%q is the name of two virtual hosts; a name may occur once", v.GetName())
		}
		names[v.GetName()] = true
		hosts = append(hosts, c.virtualHost(path, v))
	}
	if c.Failed() {
		return nil
	}
	t, err := route.NewTable(hosts, route.TableOptions{IgnorePort: rc.GetIgnorePortInHostMatching(), IgnoreParameters: rc.GetIgnorePathParametersInPathMatching()})
	if err != nil {
		c.Fail("virtual_hosts", err)
	}
	return t
}

func (c *routeCompiler) virtualHost(path string, v *routev3.VirtualHost) *route.VirtualHost {
	if v.GetCors() != nil {
		c.Errorf(path+".cors", "deprecated and not implemented; configure envoy.filters.http.cors in typed_per_filter_config instead")
	}
	checkFields(c.report, path, without(v, "cors"), virtualHostFields)
	c.host = c.compileLevel(path, v.GetRequestHeadersToRemove(), v.GetRequestHeadersToAdd(), v.GetResponseHeadersToRemove(), v.GetResponseHeadersToAdd(), v.GetTypedPerFilterConfig())
	c.retry = nil
	if p := v.GetRetryPolicy(); p != nil {
		c.retry = c.retryPolicy(path+".retry_policy", p)
	}
	out := &route.VirtualHost{Name: v.GetName(), Domains: v.GetDomains()}
	for i, d := range v.GetDomains() {
		if strings.Contains(strings.Trim(d, "*"), "*") || len(d) > 1 && d[0] == '*' && d[len(d)-1] == '*' {
			c.Errorf(fields.Index(path, "domains", i), "%q: a domain is a name, *.suffix, prefix.* or *", d)
		}
	}
	switch v.GetRequireTls() {
	case routev3.VirtualHost_EXTERNAL_ONLY:
		out.RequireTLS = route.TLSExternalOnly
	case routev3.VirtualHost_ALL:
		out.RequireTLS = route.TLSAll
	}
	for i, r := range v.GetRoutes() {
		p := fields.Index(path, "routes", i)
		e := route.Entry{Matcher: match.Route(c.report, p+".match", r.GetMatch())}
		e.Route = c.route(p, r, v)
		e.Route.Matched = e.Matcher.Taken()
		if f := e.Route.Forward; f != nil && e.Matcher.Kind == route.PathConnect && f.Rewrite != (route.PathRewrite{}) {
			c.Errorf(p+".route", "a route with connect_matcher cannot rewrite the path: CONNECT has none")
		}
		out.Entries = append(out.Entries, e)
	}
	return out
}

func (c *routeCompiler) route(path string, r *routev3.Route, v *routev3.VirtualHost) *route.Route {
	checkFields(c.report, path, r, routeFields)
	out := &route.Route{
		Name: r.GetName(), VirtualHost: v.GetName(), TraceSampling: -1,
		IncludeAttemptCount:         v.GetIncludeRequestAttemptCount(),
		IncludeAttemptCountResponse: v.GetIncludeAttemptCountInResponse(),
	}
	own := c.compileLevel(path, r.GetRequestHeadersToRemove(), r.GetRequestHeadersToAdd(), r.GetResponseHeadersToRemove(), r.GetResponseHeadersToAdd(), r.GetTypedPerFilterConfig())
	levels := [3]*level{&own, &c.host, &c.level}
	out.RequestHeaders = c.merge(levels, func(l *level) []route.HeaderMutation { return l.request })
	out.ResponseHeaders = c.merge(levels, func(l *level) []route.HeaderMutation { return l.response })
	for _, l := range levels {
		out.Overrides = withOverrides(out.Overrides, l.overrides)
	}
	if t := r.GetTracing(); t != nil {
		checkFields(c.report, path+".tracing", t, tracingFields)
		// In 1/10,000: what overall_sampling leaves of random_sampling.
		random, overall := match.Percent(t.GetRandomSampling(), route.Always), match.Percent(t.GetOverallSampling(), route.Always)
		out.TraceSampling = int32(uint64(random) * uint64(overall) / route.Always / 100)
	}
	switch a := r.GetAction().(type) {
	case *routev3.Route_Route:
		out.Forward = c.forward(path+".route", a.Route)
		for i := range out.Forward.Clusters {
			w := &out.Forward.Clusters[i]
			w.Overrides = withOverrides(w.Overrides, out.Overrides)
		}
		if c.mostSpecificWins {
			lastWord(out)
		}
	case *routev3.Route_Redirect:
		out.Redirect = c.redirect(path+".redirect", a.Redirect)
	case *routev3.Route_DirectResponse:
		out.Direct = c.direct(path+".direct_response", a.DirectResponse)
	default:
		c.Errorf(path, "needs one of route, redirect, direct_response")
	}
	return out
}

// withOverrides adds overrides of a more general level, where list has none of the filter.
func withOverrides(list, general []route.Override) []route.Override {
	for _, o := range general {
		if !slices.ContainsFunc(list, func(have route.Override) bool { return have.Filter == o.Filter }) {
			list = append(list[:len(list):len(list)], o)
		}
	}
	return list
}

// merge puts the mutations of the levels, the most specific first, in the
// order in which they are applied: what is applied last has the last word.
func (c *routeCompiler) merge(levels [3]*level, of func(*level) []route.HeaderMutation) (all []route.HeaderMutation) {
	for i := range levels {
		if c.mostSpecificWins {
			i = len(levels) - 1 - i
		}
		all = append(all, of(levels[i])...)
	}
	return all
}

// lastWord moves the route's mutations into its clusters where these have
// some: a stream applies a cluster's before the route's, and with
// most_specific_header_mutations_wins they come after.
func lastWord(r *route.Route) {
	clusters := r.Forward.Clusters
	some := false
	for i := range clusters {
		some = some || len(clusters[i].RequestHeaders)+len(clusters[i].ResponseHeaders) > 0
	}
	if !some {
		return
	}
	for i := range clusters {
		w := &clusters[i]
		w.RequestHeaders = append(r.RequestHeaders[:len(r.RequestHeaders):len(r.RequestHeaders)], w.RequestHeaders...)
		w.ResponseHeaders = append(r.ResponseHeaders[:len(r.ResponseHeaders):len(r.ResponseHeaders)], w.ResponseHeaders...)
	}
	r.RequestHeaders, r.ResponseHeaders = nil, nil
}
