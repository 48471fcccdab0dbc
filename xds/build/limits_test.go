package build

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"sallyport/xds/policy"
)

func TestListenersThatFacePeersDropFieldsWithUnderscores(t *testing.T) {
	seen := map[Kind]int{}
	forEachCase(t, func(t *testing.T, p Proxy, r *Resources) {
		managers(t, r, func(l *listenerv3.Listener, c *listenerv3.FilterChain, m *hcmv3.HttpConnectionManager) {
			if l.GetTrafficDirection() != corev3.TrafficDirection_INBOUND {
				return
			}
			seen[p.Kind]++
			if a := m.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction(); a != corev3.HttpProtocolOptions_DROP_HEADER {
				t.Errorf("%s, chain %q: %s", l.GetName(), c.GetName(), a)
			}
			if m.GetRequestHeadersTimeout().AsDuration() <= 0 {
				t.Errorf("%s, chain %q: a head may take for ever", l.GetName(), c.GetName())
			}
			if c.GetTransportSocket() != nil && c.GetTransportSocketConnectTimeout().AsDuration() <= 0 {
				t.Errorf("%s, chain %q: a handshake may take for ever", l.GetName(), c.GetName())
			}
		})
	})
	if seen[Sidecar] == 0 || seen[Edge] == 0 {
		t.Errorf("the cases have no such listeners: %v", seen)
	}
}

func TestEachHopTakesMoreFieldsThanTheOneBeforeItLetsIn(t *testing.T) {
	// What a hop adds at most: Envoy's own fields, and what a rule and a backend set and add, and a token's claims.
	const added = 12 + 5*policy.MaxHeaders
	if publicHead.fields+added > meshHead.fields || applicationHead.fields+added > meshHead.fields {
		t.Errorf("public %v, application %v, mesh %v", publicHead, applicationHead, meshHead)
	}
	if publicHead.size >= meshHead.size || applicationHead.size >= meshHead.size || publicHead.size >= applicationHead.size {
		t.Errorf("public %v, application %v, mesh %v", publicHead, applicationHead, meshHead)
	}
	forEachCase(t, func(t *testing.T, p Proxy, r *Resources) {
		managers(t, r, func(l *listenerv3.Listener, c *listenerv3.FilterChain, m *hcmv3.HttpConnectionManager) {
			want := applicationHead
			switch {
			case p.Kind == Edge:
				want = publicHead
			case l.GetTrafficDirection() == corev3.TrafficDirection_INBOUND:
				want = meshHead
			}
			got := headLimits{m.GetCommonHttpProtocolOptions().GetMaxHeadersCount().GetValue(), m.GetMaxRequestHeadersKb().GetValue()}
			if got != want {
				t.Errorf("%s, chain %q: %v, want %v", l.GetName(), c.GetName(), got, want)
			}
		})
		for _, c := range r.Clusters {
			if c.GetType() != clusterv3.Cluster_EDS || c.GetTypedExtensionProtocolOptions() == nil {
				continue
			}
			o := &httpv3.HttpProtocolOptions{}
			if err := c.GetTypedExtensionProtocolOptions()[httpOptions].UnmarshalTo(o); err != nil {
				t.Fatal(err)
			}
			if got := (headLimits{o.GetCommonHttpProtocolOptions().GetMaxHeadersCount().GetValue(), o.GetCommonHttpProtocolOptions().GetMaxResponseHeadersKb().GetValue()}); got != meshHead {
				t.Errorf("cluster %s takes responses of %v, want %v", c.GetName(), got, meshHead)
			}
		}
	})
}

// A redirect to a path that begins with two slashes leads to another host (RFC 3986 §4.2).
func TestSlashesAreMergedWherePathsAreRedirected(t *testing.T) {
	redirects := 0
	forEachCase(t, func(t *testing.T, _ Proxy, r *Resources) {
		managers(t, r, func(l *listenerv3.Listener, _ *listenerv3.FilterChain, m *hcmv3.HttpConnectionManager) {
			if m.GetPathWithEscapedSlashesAction() != hcmv3.HttpConnectionManager_UNESCAPE_AND_REDIRECT {
				return
			}
			redirects++
			if !m.GetMergeSlashes() || !m.GetNormalizePath().GetValue() {
				t.Errorf("%s redirects and does not merge slashes", l.GetName())
			}
		})
	})
	if redirects == 0 {
		t.Error("the cases have no redirects")
	}
}
