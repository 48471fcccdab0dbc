package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// seeL4 opens connections one after the other; each edge must get some.
func (s *shop) seeL4(ctx context.Context) (string, error) {
	before := make([]float64, len(s.edges))
	for i, e := range s.edges {
		// An edge that had no request yet has no such metric: that is a zero.
		before[i], _ = counter(ctx, e.admin, requestsTotal, "")
	}
	c, err := s.clientOf(false)
	if err != nil {
		return "", err
	}
	const connections = 20
	for range connections {
		if _, err := c.ok(ctx, "/"); err != nil {
			return "", err
		}
	}
	var parts []string
	for i, e := range s.edges {
		n, err := counter(ctx, e.admin, requestsTotal, "")
		if err != nil {
			return "", err
		}
		if n == before[i] {
			return "", fmt.Errorf("of %d connections none came to %s", connections, e.id)
		}
		parts = append(parts, fmt.Sprintf("%s %.0f", e.id, n-before[i]))
	}
	return fmt.Sprintf("%d connections: %s", connections, strings.Join(parts, ", ")), nil
}

// seeHTTPS verifies the public certificate, and that it is verified: who does
// not know it gets no connection.
func (s *shop) seeHTTPS(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	r, err := c.ok(ctx, "/")
	if err != nil {
		return "", err
	}
	d := tls.Dialer{Config: &tls.Config{ServerName: publicHost, RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}}
	if conn, err := d.DialContext(ctx, "tcp", local(s.public)); err == nil {
		conn.Close()
		return "", errors.New("a certificate that nobody vouches for was believed")
	} else if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		return "", fmt.Errorf("an unknown certificate gives %w; want an unknown authority", err)
	}
	return fmt.Sprintf("%s, %s, certificate of %s verified", tls.VersionName(r.tls.Version), r.proto, r.tls.PeerCertificates[0].DNSNames[0]), nil
}

// bearer is the header field with a token of the demo's issuer.
func (s *shop) bearer(user string, life time.Duration) (string, error) {
	t, err := s.users.token(user, time.Now().Add(life))
	return "Authorization: Bearer " + t, err
}

// seeRouting sends requests that differ in path and header to different services.
func (s *shop) seeRouting(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	auth, err := s.bearer("alice", time.Hour)
	if err != nil {
		return "", err
	}
	for _, want := range []struct {
		path, service, version string
		fields                 []string
	}{
		{"/", "storefront", "", nil},
		{"/api", "storefront", "", nil}, // a prefix ends at a slash
		{"/api/ordersX", "storefront", "", nil},
		{"/api/orders/stable", "orders", "v1", []string{auth}},
		{"/api/orders", "orders", "v2", []string{auth, "X-Version: v2"}},
	} {
		r, err := c.ok(ctx, want.path, want.fields...)
		if err != nil {
			return "", err
		}
		if r.Service != want.service || want.version != "" && r.Version != want.version {
			return "", fmt.Errorf("%s went to %s %s; want %s %s", want.path, r.Service, r.Version, want.service, want.version)
		}
	}
	r, err := c.get(ctx, "/shop")
	if err != nil {
		return "", err
	}
	if location := r.header.Get("Location"); r.status != http.StatusFound || !strings.HasSuffix(location, "/") {
		return "", fmt.Errorf("/shop: answered %d with Location %q; want a redirect to /", r.status, location)
	}
	return "/ to storefront, /api/orders/stable to orders v1, with x-version: v2 to v2, /shop redirected", nil
}

// seeValidToken also looks at what becomes of the token: the service gets the user's name, and not the token.
func (s *shop) seeValidToken(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	auth, err := s.bearer("alice", time.Hour)
	if err != nil {
		return "", err
	}
	r, err := c.ok(ctx, "/api/orders", auth, "X-User: mallory")
	if err != nil {
		return "", err
	}
	if u := r.Headers["x-user"]; u != "alice" {
		return "", fmt.Errorf("orders was told that the user is %q; want alice", u)
	}
	if r.Headers["authorization"] != "" {
		return "", errors.New("the token was handed on to orders")
	}
	return "200; orders got x-user: alice, and no token", nil
}

func (s *shop) seeBadTokens(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	expired, err := s.bearer("alice", -10*time.Minute)
	if err != nil {
		return "", err
	}
	other, err := newIssuer() // a key of its own under the same name
	if err != nil {
		return "", err
	}
	forged, err := other.token("alice", time.Now().Add(time.Hour))
	if err != nil {
		return "", err
	}
	for _, t := range []struct {
		name   string
		fields []string
	}{{"no token", nil}, {"an expired token", []string{expired}}, {"a forged token", []string{"Authorization: Bearer " + forged}}} {
		r, err := c.get(ctx, "/api/orders", t.fields...)
		if err != nil {
			return "", err
		}
		if r.status != http.StatusUnauthorized || r.Service != "" {
			return "", fmt.Errorf("%s: %w; want 401 from the edge", t.name, r.unexpected())
		}
	}
	return "401 each", nil
}

// seeRateLimit stays on one connection, and so on one edge, whose bucket holds five.
func (s *shop) seeRateLimit(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	passed := 0
	for {
		r, err := c.get(ctx, "/limited")
		if err != nil {
			return "", err
		}
		switch {
		case r.status == http.StatusOK && passed < 5:
			passed++
			continue
		case r.status != http.StatusTooManyRequests || passed < 5:
			return "", fmt.Errorf("after %d requests: %w; want 429 after 5", passed, r.unexpected())
		}
		if _, err := c.ok(ctx, "/"); err != nil {
			return "", fmt.Errorf("what is not limited: %w", err)
		}
		return "5 requests passed, then 429; other paths still 200", nil
	}
}

func (s *shop) seePath(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	auth, err := s.bearer("alice", time.Hour)
	if err != nil {
		return "", err
	}
	r, err := c.ok(ctx, "/api/orders/7?full=1", auth)
	if err != nil {
		return "", err
	}
	if r.Path != "/orders/7?full=1" {
		return "", fmt.Errorf("orders was asked for %q; want /orders/7?full=1", r.Path)
	}
	return "/api/orders/7?full=1 came to orders as /orders/7?full=1", nil
}

func (s *shop) seeHeaders(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	auth, err := s.bearer("alice", time.Hour)
	if err != nil {
		return "", err
	}
	r, err := c.ok(ctx, "/api/orders", auth, "X-Removed: 1", "X-Demo: client")
	if err != nil {
		return "", err
	}
	switch {
	case r.Headers["x-demo"] != "edge":
		return "", fmt.Errorf("orders got x-demo: %q; want edge", r.Headers["x-demo"])
	case r.Headers["x-removed"] != "":
		return "", errors.New("orders got x-removed")
	case r.header.Get("X-Gateway") != "public":
		return "", fmt.Errorf("the client got x-gateway: %q; want public", r.header.Get("X-Gateway"))
	case r.header.Get("X-Internal") != "":
		return "", errors.New("the client got x-internal")
	}
	return "request: x-demo set, x-removed removed; response: x-gateway set, x-internal removed", nil
}
