package build

import (
	"strconv"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

// inboundRoutes leads all requests to the application. Timeouts and retries are who calls' affair; only what never reached
// the application is tried once more.
func (b *builder) inboundRoutes(own *catalog.Service, cluster string, jwt *policy.Object[policy.JWT]) {
	t := policy.ServiceTarget(own.Namespace, own.Name.Name)
	limit := b.Policy.RateLimit.Find(t)
	var routes []*routev3.Route
	route := func(name string, match *routev3.RouteMatch) *routev3.Route {
		return &routev3.Route{Name: name, Match: match, Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}, Timeout: durationpb.New(0),
			RetryPolicy: &routev3.RetryPolicy{RetryOn: defaultRetryOn, NumRetries: number(1)},
		}}}
	}
	// The mesh's own health checks carry no token and are not counted.
	if h := b.Policy.HealthCheck.Find(t); h != nil && h.Path != "" && (jwt != nil || limit != nil) {
		routes = append(routes, route("health-check", &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: h.Path},
			Headers: []*routev3.HeaderMatcher{{Name: ":method", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exactly("GET")}}}}))
	}
	all := route("default", &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}})
	if jwt != nil {
		all.TypedPerFilterConfig = b.override(all.TypedPerFilterConfig, jwtFilter, routeJWT(jwt))
	}
	if limit != nil {
		all.TypedPerFilterConfig = b.override(all.TypedPerFilterConfig, limitFilter, limitOf(statOf("inbound"), limit))
	}
	b.out.Routes = append(b.out.Routes, &routev3.RouteConfiguration{Name: "inbound", VirtualHosts: []*routev3.VirtualHost{{
		Name: "inbound", Domains: []string{"*"}, Routes: append(routes, all)}}})
}

// outboundRoutes leads the application's requests to a service. HTTPRoutes with the service as parent (GAMMA) take the place
// of the plain route to it: what none of them matches is answered 404.
func (b *builder) outboundRoutes(name string, service catalog.Name, key policy.Key, routes []*policy.HTTPRoute) {
	b.out.Routes = append(b.out.Routes, &routev3.RouteConfiguration{Name: name,
		VirtualHosts: []*routev3.VirtualHost{b.virtualHost(service.String(), []string{"*"}, b.serviceEntries(service, key, routes))}})
}

func (b *builder) serviceEntries(service catalog.Name, key policy.Key, routes []*policy.HTTPRoute) (entries []entry) {
	if len(routes) == 0 {
		return []entry{b.plain(service)}
	}
	for _, r := range routes {
		entries = append(entries, b.entries(r, scope{service: &key})...)
	}
	return entries
}

func portText(p uint32) string { return strconv.Itoa(int(p)) }
