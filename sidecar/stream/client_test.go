package stream_test

import (
	"crypto/tls"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
	"sallyport/sidecar/stream/streamtest"
)

// seen is what the upstream gets of a request: the values of a field, by name.
func seen(t *testing.T, r *streamtest.Rig, h *message.Head) map[string][]string {
	t.Helper()
	client := r.Begin(message.HTTP11, h, true)
	if client.Ended {
		t.Fatalf("answered %d %q", client.Status, client.Body)
	}
	l := r.Hosts[0].Accept()
	lines := strings.Split(l.Head(), "\r\n")
	m := map[string][]string{"": {lines[0]}}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		m[name] = append(m[name], value)
	}
	l.Answer("200 OK", "")
	client.Want(200, "")
	return m
}

func TestWhoTheClientIs(t *testing.T) {
	private := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24")}
	for name, c := range map[string]struct {
		set      func(m *stream.Manager)
		fields   []string
		remote   string
		xff      string
		internal bool
	}{
		"the peer, at the edge":                     {set: edge, remote: "192.0.2.1:4321", xff: "192.0.2.1"},
		"the peer, whatever the client says":        {set: edge, fields: []string{"x-forwarded-for", "203.0.113.9"}, remote: "192.0.2.1:4321", xff: "203.0.113.9,192.0.2.1"},
		"two lines are one list":                    {set: edge, fields: []string{"x-forwarded-for", "203.0.113.9", "x-forwarded-for", "203.0.113.8"}, remote: "192.0.2.1:4321", xff: "203.0.113.9,203.0.113.8,192.0.2.1"},
		"one trusted proxy before us":               {set: hops(1), fields: []string{"x-forwarded-for", "203.0.113.9"}, remote: "203.0.113.9:0", xff: "203.0.113.9,192.0.2.1"},
		"what the proxy added in a line of its own": {set: hops(1), fields: []string{"x-forwarded-for", "10.6.6.6", "x-forwarded-for", "203.0.113.9"}, remote: "203.0.113.9:0", xff: "10.6.6.6,203.0.113.9,192.0.2.1"},
		"two trusted proxies":                       {set: hops(2), fields: []string{"x-forwarded-for", "10.6.6.6, 203.0.113.9", "x-forwarded-for", "198.51.100.1"}, remote: "203.0.113.9:0", xff: "10.6.6.6, 203.0.113.9,198.51.100.1,192.0.2.1"},
		"a trusted proxy that says nothing":         {set: hops(1), remote: "192.0.2.1:4321", xff: "192.0.2.1"},
		"a trusted proxy that says nonsense":        {set: hops(1), fields: []string{"x-forwarded-for", "unknown"}, remote: "192.0.2.1:4321", xff: "unknown,192.0.2.1"},
		"skip_xff_append":                           {set: func(m *stream.Manager) { edge(m); m.SkipXFF = true }, fields: []string{"x-forwarded-for", "203.0.113.9"}, remote: "192.0.2.1:4321", xff: "203.0.113.9"},
		"within the mesh, the last hop's word":      {set: func(*stream.Manager) {}, fields: []string{"x-forwarded-for", "203.0.113.9,203.0.113.8"}, remote: "203.0.113.8:0", xff: "203.0.113.9,203.0.113.8"},
		"within the mesh, in two lines":             {set: func(*stream.Manager) {}, fields: []string{"x-forwarded-for", "203.0.113.9", "x-forwarded-for", "203.0.113.8"}, remote: "203.0.113.8:0"},
		"within the mesh, nothing":                  {set: func(*stream.Manager) {}, remote: "192.0.2.1:4321"},
		"an internal peer at the edge":              {set: func(m *stream.Manager) { edge(m); m.InternalCIDRs = private }, remote: "192.0.2.1:4321", xff: "192.0.2.1", internal: true},
		"an internal address in a list is no proof": {set: func(m *stream.Manager) { hops(1)(m); m.InternalCIDRs = private }, fields: []string{"x-forwarded-for", "10.1.1.1"}, remote: "10.1.1.1:0", xff: "10.1.1.1,192.0.2.1"},
		"an internal caller in the mesh":            {set: func(m *stream.Manager) { m.InternalCIDRs = private }, fields: []string{"x-forwarded-for", "10.1.1.1"}, remote: "10.1.1.1:0", xff: "10.1.1.1", internal: true},
		"two lines make no internal caller":         {set: func(m *stream.Manager) { m.InternalCIDRs = private }, fields: []string{"x-forwarded-for", "203.0.113.9", "x-forwarded-for", "10.1.1.1"}, remote: "10.1.1.1:0"},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			c.set(r.Manager)
			var remote string
			r.Filters(&spy{head: func(c stream.Context, _ *message.Head) { remote = c.Stream.Remote.String() }})
			m := seen(t, r, streamtest.Head("GET", "/", c.fields...))
			if remote != c.remote {
				t.Errorf("the client is %s, want %s", remote, c.remote)
			}
			if xff := strings.Join(m["x-forwarded-for"], " | "); c.xff != "" && xff != c.xff {
				t.Errorf("x-forwarded-for: %s, want %s", xff, c.xff)
			}
			if got := len(m["x-envoy-internal"]) > 0; got != c.internal {
				t.Errorf("internal: %v", got)
			}
		})
	}
}

func edge(m *stream.Manager) { m.UseRemoteAddress = true }

func hops(n uint32) func(*stream.Manager) {
	return func(m *stream.Manager) { edge(m); m.TrustedHops = n }
}

// spy is a filter that looks.
type spy struct {
	head     func(c stream.Context, h *message.Head)
	response func(c stream.Context, h *message.Head)
	done     func(c stream.Context)
}

func (*spy) Name() string { return "spy" }
func (s *spy) RequestHead(c stream.Context, h *message.Head, _ bool) stream.Verdict {
	if s.head != nil {
		s.head(c, h)
	}
	return stream.Continue
}
func (s *spy) ResponseHead(c stream.Context, h *message.Head, _ bool) stream.Verdict {
	if s.response != nil {
		s.response(c, h)
	}
	return stream.Continue
}
func (s *spy) Done(c stream.Context) {
	if s.done != nil {
		s.done(c)
	}
}

func TestNoFieldOfEnvoysComesInFromOutside(t *testing.T) {
	fields := []string{"x-request-start", "t"}
	for _, n := range []string{"attempt-count", "decorator-operation", "downstream-service-cluster", "downstream-service-node", "expected-rq-timeout-ms",
		"external-address", "force-trace", "hedge-on-per-try-timeout", "internal", "ip-tags", "max-retries", "original-host", "original-path", "original-url",
		"overloaded", "peer-metadata", "retriable-header-names", "retriable-status-codes", "retry-grpc-on", "retry-on", "upstream-alt-stat-name",
		"upstream-rq-per-try-timeout-ms", "upstream-rq-timeout-alt-response", "upstream-rq-timeout-ms", "upstream-service-time", "whatever-comes-next"} {
		fields = append(fields, "x-envoy-"+n, "forged")
	}
	r := streamtest.New(t, 1)
	edge(r.Manager)
	m := seen(t, r, streamtest.Head("GET", "/", fields...))
	for name, values := range m {
		if slices.Contains(values, "forged") {
			t.Errorf("%s: %s came in", name, values)
		}
	}
	if len(m["x-request-start"]) != 1 {
		t.Error("another field was removed")
	}
	if got := m["x-envoy-external-address"]; !slices.Equal(got, []string{"192.0.2.1"}) {
		t.Errorf("x-envoy-external-address: %q", got)
	}
}

func TestTheSchemeIsOneWhoeverReadsIt(t *testing.T) {
	for name, c := range map[string]struct {
		set    func(r *streamtest.Rig)
		fields []string
		want   string
	}{
		"plaintext":                               {want: "http"},
		"TLS":                                     {set: func(r *streamtest.Rig) { r.Conn.TLS = &tls.ConnectionState{} }, want: "https"},
		"the edge does not believe the client":    {set: func(r *streamtest.Rig) { edge(r.Manager) }, fields: []string{"x-forwarded-proto", "https"}, want: "http"},
		"a trusted proxy is believed":             {set: func(r *streamtest.Rig) { hops(1)(r.Manager) }, fields: []string{"x-forwarded-proto", "https"}, want: "https"},
		"a trusted proxy that says nothing":       {set: func(r *streamtest.Rig) { hops(1)(r.Manager) }, want: "http"},
		"two lines that differ are not believed":  {set: func(r *streamtest.Rig) { hops(1)(r.Manager) }, fields: []string{"x-forwarded-proto", "https", "x-forwarded-proto", "http"}, want: "http"},
		"two lines that agree are one":            {set: func(r *streamtest.Rig) { hops(1)(r.Manager) }, fields: []string{"x-forwarded-proto", "https", "x-forwarded-proto", "https"}, want: "https"},
		"empty and another":                       {set: func(r *streamtest.Rig) { hops(1)(r.Manager) }, fields: []string{"x-forwarded-proto", "", "x-forwarded-proto", "https"}, want: "http"},
		"in the mesh":                             {fields: []string{"x-forwarded-proto", "https"}, want: "https"},
		"an unknown value says nothing and stays": {fields: []string{"x-forwarded-proto", "gopher"}, want: "gopher"},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			if c.set != nil {
				c.set(r)
			}
			scheme := ""
			r.Filters(&spy{head: func(_ stream.Context, h *message.Head) { scheme = string(h.Get(message.Scheme)) }})
			m := seen(t, r, streamtest.Head("GET", "/", c.fields...))
			if got := m["x-forwarded-proto"]; !slices.Equal(got, []string{c.want}) {
				t.Errorf("x-forwarded-proto: %q, want %s", got, c.want)
			}
			if want := strings.Replace(c.want, "gopher", "http", 1); scheme != want {
				t.Errorf("scheme %s, want %s", scheme, want)
			}
		})
	}
}

func TestTheClientsCertificateIsForwardedAsConfigured(t *testing.T) {
	peer := &stream.Peer{URI: []string{"spiffe://a/b", "spiffe://a/c"}, DNS: []string{"b.example"}, Subject: `CN="b",O=\x`, Hash: "ab12", PEM: "PEM", ChainPEM: "CHAIN", LocalURI: "spiffe://me"}
	all := stream.CertDetails{Subject: true, Cert: true, Chain: true, DNS: true, URI: true}
	const full = `By=spiffe://me;Hash=ab12;Cert="PEM";Chain="CHAIN";Subject="CN=\"b\",O=\\x";URI=spiffe://a/b;URI=spiffe://a/c;DNS=b.example`
	for name, c := range map[string]struct {
		mode    stream.ForwardCert
		details stream.CertDetails
		peer    *stream.Peer
		sent    []string
		want    string
	}{
		"sanitize":                             {mode: stream.CertSanitize, peer: peer, sent: []string{"By=x"}},
		"forward only, with a certificate":     {mode: stream.CertForwardOnly, peer: peer, sent: []string{"By=x"}, want: "By=x"},
		"forward only, without":                {mode: stream.CertForwardOnly, sent: []string{"By=x"}},
		"append":                               {mode: stream.CertAppendForward, details: stream.CertDetails{URI: true}, peer: peer, sent: []string{"By=x"}, want: "By=x,By=spiffe://me;Hash=ab12;URI=spiffe://a/b;URI=spiffe://a/c"},
		"append to two lines":                  {mode: stream.CertAppendForward, peer: peer, sent: []string{"By=x", "By=y"}, want: "By=x,By=y,By=spiffe://me;Hash=ab12"},
		"append to nothing":                    {mode: stream.CertAppendForward, peer: peer, want: "By=spiffe://me;Hash=ab12"},
		"append without a certificate":         {mode: stream.CertAppendForward, sent: []string{"By=x"}},
		"sanitize and set, everything":         {mode: stream.CertSanitizeSet, details: all, peer: peer, sent: []string{"By=forged"}, want: full},
		"sanitize and set, no certificate":     {mode: stream.CertSanitizeSet, details: all, sent: []string{"By=forged"}},
		"always forward only":                  {mode: stream.CertAlwaysForwardOnly, sent: []string{"By=x"}, want: "By=x"},
		"set without names in the certificate": {mode: stream.CertSanitizeSet, details: all, peer: &stream.Peer{Hash: "cd"}, want: `Hash=cd;Cert="";Chain="";Subject="";URI=`},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			r.Manager.ForwardCert, r.Manager.CertDetails, r.Conn.Peer = c.mode, c.details, c.peer
			var fields []string
			for _, v := range c.sent {
				fields = append(fields, "x-forwarded-client-cert", v)
			}
			got := strings.Join(seen(t, r, streamtest.Head("GET", "/", fields...))["x-forwarded-client-cert"], " | ")
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestRequestIDs(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(m *stream.Manager)
		sent string
		want string // "" is a new one, "-" none
	}{
		"made where there is none":     {set: func(*stream.Manager) {}},
		"kept in the mesh":             {set: func(*stream.Manager) {}, sent: "mine", want: "mine"},
		"replaced at the edge":         {set: edge, sent: "mine"},
		"preserve_external_request_id": {set: func(m *stream.Manager) { edge(m); m.PreserveRequestID = true }, sent: "mine", want: "mine"},
		"generate_request_id is off":   {set: func(m *stream.Manager) { m.GenerateRequestID = false }, want: "-"},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			r.Manager.GenerateRequestID, r.Manager.RequestIDResponse = true, true
			c.set(r.Manager)
			var fields []string
			if c.sent != "" {
				fields = []string{"x-request-id", c.sent}
			}
			client := r.Begin(message.HTTP11, streamtest.Head("GET", "/", fields...), true)
			l := r.Hosts[0].Accept()
			head := l.Head() + "\r\n"
			l.Answer("200 OK", "")
			client.Done()
			id := client.Header("x-request-id")
			switch {
			case c.want == "-":
				if strings.Contains(head, "x-request-id") || id != "" {
					t.Errorf("made: %s", id)
				}
			case !strings.Contains(head, "x-request-id: "+id+"\r\n"):
				t.Errorf("the response has %q, the request %s", id, head)
			case c.want != "" && id != c.want:
				t.Errorf("id %q, want %q", id, c.want)
			case c.want == "" && (len(id) != 36 || id == c.sent || id[14] != '4'):
				t.Errorf("id %q is no new UUID of version 4", id)
			}
		})
	}
}

func TestRequestsThatAreNotTaken(t *testing.T) {
	noHost := &message.Head{}
	noHost.AddNameString(message.Method, "GET")
	noHost.AddNameString(message.Path, "/")
	for name, c := range map[string]struct {
		set    func(m *stream.Manager)
		head   *message.Head
		proto  message.Version
		status int
		detail string
		header [2]string
	}{
		"no host":                {head: noHost, proto: message.HTTP11, status: 400, detail: "missing_host_header"},
		"no path":                {head: streamtest.Head("GET", ""), proto: message.HTTP11, status: 400, detail: "path_normalization_failed"},
		"a path without a slash": {head: streamtest.Head("GET", "x"), proto: message.HTTP2, status: 400, detail: "path_normalization_failed"},
		"a fragment":             {head: streamtest.Head("GET", "/a#b"), proto: message.HTTP11, status: 400, detail: "path_has_fragment"},
		"a broken escape":        {set: normalized, head: streamtest.Head("GET", "/%zz"), proto: message.HTTP11, status: 400, detail: "path_normalization_failed"},
		"an escaped slash, refused": {set: func(m *stream.Manager) { m.Slashes = stream.SlashReject }, head: streamtest.Head("GET", "/a%2fb"), proto: message.HTTP11,
			status: 400, detail: "path_normalization_failed"},
		"an escaped slash, redirected": {set: func(m *stream.Manager) { m.Slashes = stream.SlashRedirect }, head: streamtest.Head("GET", "/a%2fb?c=%2f"), proto: message.HTTP11,
			status: 307, detail: "path_normalization_redirect", header: [2]string{"location", "/a/b?c=%2f"}},
		"an underscore, refused": {set: func(m *stream.Manager) { m.Underscores = stream.UnderscoreReject }, head: streamtest.Head("GET", "/", "x_y", "1"), proto: message.HTTP2,
			status: 400, detail: "unexpected_underscore"},
		"an upgrade that is not allowed":  {head: streamtest.Head("GET", "/", "upgrade", "websocket"), proto: message.HTTP11, status: 403, detail: "upgrade_failed"},
		"an upgrade in the second line":   {set: websocket, head: streamtest.Head("GET", "/", "upgrade", "websocket", "upgrade", "spdy/3.1"), proto: message.HTTP11, status: 403, detail: "upgrade_failed"},
		"an upgrade in a list":            {set: websocket, head: streamtest.Head("GET", "/", "upgrade", "websocket, spdy/3.1"), proto: message.HTTP11, status: 403, detail: "upgrade_failed"},
		"CONNECT where it is not allowed": {set: websocket, head: streamtest.Head("CONNECT", ""), proto: message.HTTP11, status: 403, detail: "upgrade_failed"},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 1)
			logs := logged(r)
			if c.set != nil {
				c.set(r.Manager)
			}
			if name == "CONNECT where it is not allowed" {
				m := route.NewPath(route.PathConnect, "", false)
				r.Matcher = &m
			}
			client := r.Begin(c.proto, c.head, true).Done()
			if client.Status != c.status || logs.All[0].Details != c.detail {
				t.Errorf("%d, %+v", client.Status, logs.All)
			}
			if c.header[0] != "" && client.Header(c.header[0]) != c.header[1] {
				t.Errorf("%s: %s", c.header[0], client.Header(c.header[0]))
			}
			if r.Hosts[0].TryAccept() != nil {
				t.Error("the upstream was asked")
			}
		})
	}
}

func normalized(m *stream.Manager) { m.NormalizePath = true }

func websocket(m *stream.Manager) {
	m.Upgrades = []route.Upgrade{{Protocol: "websocket", Enabled: true}}
}

func TestFieldsWithUnderscoresAreDropped(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Manager.Underscores = stream.UnderscoreDrop
	m := seen(t, r, streamtest.Head("GET", "/", "x_forwarded_client_cert", "By=forged", "a_b", "1", "x-ok", "1"))
	if len(m["x_forwarded_client_cert"])+len(m["a_b"]) > 0 || len(m["x-ok"]) != 1 {
		t.Errorf("the upstream got %v", m)
	}
}

func TestThePortOfTheHost(t *testing.T) {
	for name, c := range map[string]struct {
		strip stream.StripPort
		host  string
		want  string
	}{
		"kept":                           {stream.KeepPort, "example.com:80", "example.com:80"},
		"that of the listener":           {stream.StripMatchingPort, "example.com:80", "example.com"},
		"another than the listener's":    {stream.StripMatchingPort, "example.com:81", "example.com:81"},
		"any":                            {stream.StripAnyPort, "example.com:81", "example.com"},
		"an IPv6 address without a port": {stream.StripAnyPort, "[2001:db8::1]", "[2001:db8::1]"},
		"an IPv6 address with a port":    {stream.StripAnyPort, "[2001:db8::1]:8080", "[2001:db8::1]"},
		"no port":                        {stream.StripAnyPort, "example.com", "example.com"},
		"no number":                      {stream.StripAnyPort, "example.com:x", "example.com:x"},
	} {
		t.Run(name, func(t *testing.T) {
			r := streamtest.New(t, 0)
			r.Manager.StripPort = c.strip
			got := ""
			r.Filters(&spy{head: func(_ stream.Context, h *message.Head) { got = string(h.Get(message.Authority)) }})
			h := streamtest.Head("GET", "/")
			h.SetNameString(message.Authority, c.host)
			r.Begin(message.HTTP2, h, true).Done()
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}
