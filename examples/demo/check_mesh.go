package demo

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tally sends n requests one after the other and counts by instance.
func (c *client) tally(ctx context.Context, n int, path string, fields ...string) (map[string]int, error) {
	count := map[string]int{}
	for range n {
		r, err := c.ok(ctx, path, fields...)
		if err != nil {
			return nil, err
		}
		count[r.Instance]++
	}
	return count, nil
}

func counted(count map[string]int) string {
	var parts []string
	for _, name := range sortedNames(count) {
		parts = append(parts, fmt.Sprintf("%s %d", name, count[name]))
	}
	return strings.Join(parts, ", ")
}

// seeL7 spreads requests of one connection over the instances of one version.
func (s *shop) seeL7(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	auth, err := s.bearer("alice", time.Hour)
	if err != nil {
		return "", err
	}
	const requests = 40
	count, err := c.tally(ctx, requests, "/api/orders/stable", auth)
	if err != nil {
		return "", err
	}
	instances := s.of("orders", "v1")
	for _, in := range instances {
		if n := count[in.id]; n < requests/len(instances)/2 {
			return "", fmt.Errorf("%d requests on one connection: %s; want about the same for each", requests, counted(count))
		}
	}
	return fmt.Sprintf("%d requests on one connection: %s", requests, counted(count)), nil
}

// seeSplit looks for 80 to 20. The limits are more than four standard
// deviations of 400 draws away: by chance it fails once in 20,000 runs.
func (s *shop) seeSplit(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	auth, err := s.bearer("alice", time.Hour)
	if err != nil {
		return "", err
	}
	const requests = 400
	versions := map[string]int{}
	for range requests {
		r, err := c.ok(ctx, "/api/orders", auth)
		if err != nil {
			return "", err
		}
		versions[r.Version]++
	}
	seen := fmt.Sprintf("%d requests: %s (weights 80, 20)", requests, counted(versions))
	if n := versions["v2"]; n < 47 || n > 113 || versions["v1"]+n != requests {
		return "", errors.New(seen)
	}
	return seen, nil
}

// seeSession comes back with the cookie on new connections, and so through
// both edges; those who come without one are spread.
func (s *shop) seeSession(ctx context.Context) (string, error) {
	c, err := s.clientOf(false)
	if err != nil {
		return "", err
	}
	strangers := map[string]int{}
	var kept *reply
	var cookie *http.Cookie
	const most = 64
	for i := 0; i < most && (len(strangers) < 2 || i < 10); i++ {
		if kept, err = c.ok(ctx, "/"); err != nil {
			return "", err
		}
		strangers[kept.Instance]++
		cookies := (&http.Response{Header: kept.header}).Cookies()
		n := slices.IndexFunc(cookies, func(k *http.Cookie) bool { return k.Name == "shop-session" })
		if n < 0 {
			return "", errors.New("an answer to a stranger sets no cookie shop-session")
		}
		cookie = cookies[n]
	}
	if len(strangers) < 2 {
		return "", fmt.Errorf("%d strangers all came to %s", most, kept.Instance)
	}
	const visits = 20
	count, err := c.tally(ctx, visits, "/", "Cookie: "+cookie.Name+"="+cookie.Value)
	if err != nil {
		return "", err
	}
	if count[kept.Instance] != visits {
		return "", fmt.Errorf("a client of %s came back on %d connections: %s", kept.Instance, visits, counted(count))
	}
	return fmt.Sprintf("with the cookie, %d connections: %s; without: %s", visits, counted(count), counted(strangers)), nil
}

// seeMutualTLS stands on the wire before the sidecar of orders: without a
// certificate, with one that nobody in the mesh has signed, and without TLS.
func (s *shop) seeMutualTLS(ctx context.Context) (string, error) {
	in := s.of("orders", "v1")[0]
	state, none := knock(ctx, in.mesh)
	if !strings.Contains(fmt.Sprint(none), alert) {
		return "", fmt.Errorf("without a client certificate: %v; want a TLS alert", none)
	}
	shown := ""
	for _, u := range state.PeerCertificates[0].URIs {
		shown = u.String()
	}
	trustDomain, ok := strings.CutSuffix(shown, "/svc/orders")
	if !ok || !strings.HasPrefix(shown, "spiffe://") {
		return "", fmt.Errorf("the sidecar of %s shows %q; want the SPIFFE ID of orders", in.id, shown)
	}
	if state.Version != tls.VersionTLS13 {
		return "", fmt.Errorf("the sidecar of %s speaks %s; want TLS 1.3", in.id, tls.VersionName(state.Version))
	}
	cert, err := impostor(trustDomain + "/svc/storefront") // who might call orders
	if err != nil {
		return "", err
	}
	_, forged := knock(ctx, in.mesh, cert)
	if !strings.Contains(fmt.Sprint(forged), alert) {
		return "", fmt.Errorf("with a certificate signed by itself: %v; want a TLS alert", forged)
	}
	if answer, err := plaintext(ctx, in.mesh); err != nil || strings.HasPrefix(answer, "HTTP/") {
		return "", fmt.Errorf("in plain text: answered %q (%v); want the connection closed without an answer", answer, err)
	}
	return fmt.Sprintf("%s (%s) shows %s; without a client certificate: %q; with a forged one: %q; plain text: closed",
		tls.VersionName(state.Version), state.CurveID, shown, cause(none), cause(forged)), nil
}

// alert begins the error that crypto/tls makes of an alert of the other side.
const alert = "remote error: tls: "

// knock makes a TLS handshake and waits for what the server thinks of it: in
// TLS 1.3 its refusal comes after the client's part is done (RFC 8446 §4.4.2.4).
func knock(ctx context.Context, port int, certs ...tls.Certificate) (state tls.ConnectionState, err error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 3 * time.Second}, Config: &tls.Config{
		// Nobody outside of the mesh vouches for its certificates: what the
		// server shows is looked at by the caller, and nothing is sent to it.
		InsecureSkipVerify: true,
		NextProtos:         []string{"h2"},
		VerifyConnection: func(c tls.ConnectionState) error {
			state = c
			return nil
		},
	}}
	if len(certs) > 0 {
		// Shown whether or not the server says that it knows its authority.
		d.Config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	conn, err := d.DialContext(ctx, "tcp", local(port))
	if state.PeerCertificates == nil {
		state.PeerCertificates = []*x509.Certificate{{}} // none was shown
	}
	if err != nil {
		return state, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return state, err
	}
	for { // a server that takes the client begins with its settings, and then waits
		if _, err := conn.Read(make([]byte, 4096)); err != nil {
			return state, err
		}
	}
}

// cause is the innermost of an error.
func cause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// plaintext sends a request without TLS and returns what comes back.
func plaintext(ctx context.Context, port int) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", local(port))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: orders\r\n\r\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(conn, 4096))
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return "", errors.New("the connection stays open")
	}
	return string(b), nil // closed or reset: both are an end without an answer
}

// seeIdentities looks at who the services were told that their callers are.
func (s *shop) seeIdentities(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	// What the client claims must not be believed.
	r, err := c.ok(ctx, "/checkout/pay", "X-Forwarded-Client-Cert: URI=spiffe://sallyport.local/ns/default/svc/root")
	if err != nil {
		return "", err
	}
	var path []string
	a := &r.Answer
	for _, caller := range []string{"gw/" + gateway, "svc/storefront", "svc/orders"} {
		if a == nil {
			return "", errors.New("a hop is missing in the answer")
		}
		uri := ""
		xfcc := a.Headers["x-forwarded-client-cert"]
		for _, part := range strings.FieldsFunc(xfcc, func(r rune) bool { return r == ';' || r == ',' }) {
			if v, ok := strings.CutPrefix(part, "URI="); ok {
				uri = v
			}
		}
		if strings.Contains(xfcc, "svc/root") || !strings.HasPrefix(uri, "spiffe://") || !strings.HasSuffix(uri, "/"+caller) {
			return "", fmt.Errorf("%s was told that its caller is %q; want the SPIFFE ID of %s", a.Service, xfcc, caller)
		}
		path = append(path, fmt.Sprintf("%s saw %s", a.Service, uri))
		a = a.Via
	}
	return strings.Join(path, "; "), nil
}

// seeDenied has the storefront call payments, which only orders may.
func (s *shop) seeDenied(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	r, err := c.get(ctx, "/steal")
	if err != nil {
		return "", err
	}
	if r.Service != "storefront" || r.Via == nil || r.Via.Status != http.StatusForbidden {
		return "", fmt.Errorf("storefront to payments: %w; want the storefront to be told 403", r.unexpected())
	}
	return fmt.Sprintf("storefront to payments: 403 %q; orders to payments: 200 above", r.Via.Error), nil
}

// Metrics that the demo reads, by Envoy's names.
const (
	requestsTotal  = "envoy_http_downstream_rq_total"
	membersHealthy = "envoy_cluster_membership_healthy"
)

// counter is the sum of a metric over its labels, from an admin page; label is
// a part of the labels that must be there. Requests of the admin page itself are not counted.
func counter(ctx context.Context, admin int, name, label string) (float64, error) {
	url := "http://" + local(admin) + "/stats/prometheus"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s answers %d", url, resp.StatusCode)
	}
	sum, found := 0.0, false
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' || !strings.Contains(rest, label) || strings.Contains(rest, `"admin"`) {
			continue
		}
		v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %q: %w", url, line, err)
		}
		sum, found = sum+v, true
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("%s: %w", url, err)
	}
	if !found {
		return 0, fmt.Errorf("%s has no %s", url, name)
	}
	return sum, nil
}

// seeMetrics counts requests at the sidecars of orders, from outside.
func (s *shop) seeMetrics(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	auth, err := s.bearer("alice", time.Hour)
	if err != nil {
		return "", err
	}
	total := func() (sum float64, err error) {
		for _, in := range s.of("orders", "v1") {
			n, err := counter(ctx, in.admin, requestsTotal, "")
			if err != nil {
				return 0, err
			}
			sum += n
		}
		return sum, nil
	}
	before, err := total()
	if err != nil {
		return "", err
	}
	const requests = 20
	if _, err := c.tally(ctx, requests, "/api/orders/stable", auth); err != nil {
		return "", err
	}
	after, err := total()
	if err != nil {
		return "", err
	}
	// Health checks are requests, too.
	if after-before < requests {
		return "", fmt.Errorf("%s at the sidecars of orders v1 grew by %.0f; want %d or more", requestsTotal, after-before, requests)
	}
	return fmt.Sprintf("%s at the sidecars of orders v1: %.0f, after %d requests and some health checks %.0f", requestsTotal, before, requests, after), nil
}

// seeTrace looks for the spans of one request at the collector.
func (s *shop) seeTrace(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	r, err := c.ok(ctx, "/checkout/pay")
	if err != nil {
		return "", err
	}
	id := traceID(r.Headers["traceparent"])
	hops := 0
	for a := &r.Answer; a != nil; a = a.Via {
		if got := traceID(a.Headers["traceparent"]); got == "" || got != id {
			return "", fmt.Errorf("%s was called with traceparent %q; want trace %q", a.Service, a.Headers["traceparent"], id)
		}
		hops++
	}
	var spans []Span
	want := []string{gateway, "orders", "payments", "storefront"}
	err = waitFor(ctx, nil, "the spans of trace "+id, func() error {
		spans = s.collector.trace(id)
		seen := map[string]int{}
		for _, sp := range spans {
			seen[sp.Service]++
		}
		for _, w := range want {
			if seen[w] == 0 {
				return fmt.Errorf("there is none of %s: %s", w, counted(seen))
			}
		}
		return connected(spans)
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("trace %s: %d spans of the proxies of %s, %d services called", id, len(spans), strings.Join(want, ", "), hops), nil
}

// connected says whether the spans are one tree.
func connected(spans []Span) error {
	ids := map[string]bool{}
	for _, s := range spans {
		ids[s.ID] = true
	}
	roots := 0
	for _, s := range spans {
		if !ids[s.Parent] {
			roots++
		}
	}
	if roots != 1 {
		return fmt.Errorf("%d spans have %d roots; want one tree", len(spans), roots)
	}
	return nil
}

// traceID is the second part of a traceparent (W3C Trace Context §3.2).
func traceID(traceparent string) string {
	parts := strings.Split(traceparent, "-")
	if len(parts) != 4 {
		return ""
	}
	return parts[1]
}
