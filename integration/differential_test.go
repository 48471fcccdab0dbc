package integration

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sallyport/integration/harness"
)

// TestSameAnswersAsEnvoy gives one bootstrap to Envoy and to sallyport, sends both the same bytes, and compares what comes
// out at both ends: what the client got and what each upstream got.
func TestSameAnswersAsEnvoy(t *testing.T) {
	harness.Need(t, harness.Envoy)
	// One worker each, so that which upstream connections are kept does not depend on the kernel's choice.
	compare(t, harness.NewEnvoy(t), harness.NewSidecar(t).Args("--concurrency", "1"), true)
}

// TestEnvoyAgreesWithItself proves the comparison: the expectations are Envoy's, and nothing in an observation changes from
// run to run.
func TestEnvoyAgreesWithItself(t *testing.T) {
	harness.Need(t, harness.Envoy)
	compare(t, harness.NewEnvoy(t), harness.NewEnvoy(t), false)
}

// exchange is one thing to try: raw bytes, an HTTP/2 request, or a conversation of its own.
type exchange struct {
	name     string
	listener string // "http" where empty
	raw      string
	h2       *harness.H2Request
	talk     func(*testing.T, *harness.Proxy) string
	n        int      // final responses expected to raw; 1 where 0
	replies  []string // of the backends "one" and "h2", in order
	want     int      // Envoy's (last) status; 0 is a reset, a closed connection, or a talk

	// Where sallyport differs, and means to. With ours, its own status is expected, and that nothing reached an upstream
	// unless it is a success. With but, just these lines of the observation differ: "- Envoy's", "+ ours".
	ours int
	but  []string
	why  string
}

// reset is the status of a stream that was reset.
const reset = -1

// again is the request that tells whether a connection still takes one.
var again = harness.Request("GET", "/prefix/again", "")

type stage struct {
	one, two, h2, tcp *harness.Backend
}

func compare(t *testing.T, reference, candidate *harness.ProxyBuilder, differs bool) {
	bootstrap, err := os.ReadFile("testdata/differential.yaml")
	if err != nil {
		t.Fatal(err)
	}
	issuer := harness.NewIssuer(t, "https://issuer.example")
	s := &stage{one: harness.NewBackend(t, "one").HTTP1(), two: harness.NewBackend(t, "two").HTTP1(),
		h2: harness.NewBackend(t, "h2").H2C(), tcp: harness.NewBackend(t, "tcp").TCP()}
	start := func(b *harness.ProxyBuilder) *harness.Proxy {
		return b.Bootstrap(string(bootstrap)).Value("jwks", issuer.JWKS()).
			Backend("one", s.one).Backend("two", s.two).Backend("h2", s.h2).Backend("tcp", s.tcp).Run()
	}
	envoy, other := start(reference), start(candidate)
	compared := 0
	for _, x := range exchanges(issuer) {
		if !envoy.Running() || !other.Running() {
			break // which fails the test by the log that is shown
		}
		t.Run(x.name, func(t *testing.T) {
			compared++
			want := s.observe(t, envoy, x)
			if want.status != x.want {
				t.Errorf("Envoy answers %d, expected %d:\n%s", want.status, x.want, want)
			}
			got := s.observe(t, other, x)
			if !other.Running() {
				t.Fatal("the proxy has ended")
			}
			if x.ours != 0 && differs {
				if got.status != x.ours {
					t.Errorf("answers %d, expected %d (Envoy %d; the difference is meant: %s):\n%s", got.status, x.ours, want.status, x.why, got)
				}
				if (got.status < 200 || got.status > 299) && got.upstream != "" {
					t.Errorf("refused with %d, and yet an upstream got:\n%s", got.status, got.upstream)
				}
				return
			}
			if x.but != nil && differs {
				if diff := cmp.Diff(x.but, changed(want.String(), got.String())); diff != "" {
					t.Errorf("not the differences that are meant (%s), expected (-) and seen (+):\n%s", x.why, diff)
				}
				return
			}
			if diff := cmp.Diff(strings.Split(want.String(), "\n"), strings.Split(got.String(), "\n")); diff != "" {
				t.Errorf("Envoy (-) and %s (+):\n%s", other.Name, diff)
			}
		})
	}
	t.Logf("%d exchanges compared", compared)
	if !envoy.Running() || !other.Running() {
		t.Error("a proxy ended during the test")
	}
}

// changed lists the lines that one text has and the other has not, in the order of the texts.
func changed(before, after string) (lines []string) {
	only := func(sign, a, b string) {
		rest := map[string]int{}
		for _, line := range strings.Split(b, "\n") {
			rest[line]++
		}
		for _, line := range strings.Split(a, "\n") {
			if rest[line]--; rest[line] < 0 {
				lines = append(lines, sign+" "+line)
			}
		}
	}
	only("-", before, after)
	only("+", after, before)
	return lines
}

// observation is what one exchange showed, with what must differ between two runs masked.
type observation struct {
	status               int
	downstream, upstream string
}

func (o observation) String() string {
	return "downstream\n" + o.downstream + "upstream\n" + o.upstream
}

func (s *stage) observe(t *testing.T, p *harness.Proxy, x exchange) (o observation) {
	t.Helper()
	backends := []*harness.Backend{s.one, s.two, s.h2}
	for _, b := range backends {
		b.Take()
	}
	s.one.Script(x.replies...)
	s.h2.Script(x.replies...)
	listener := x.listener
	if listener == "" {
		listener = "http"
	}
	var down strings.Builder
	switch {
	case x.talk != nil:
		down.WriteString(x.talk(t, p))
	case x.h2 != nil:
		c := harness.DialH2(t, p.Addr(listener), nil)
		m, err := c.Try(*x.h2)
		if o.status = m.Status(); m.Reset != "" {
			o.status = reset
		}
		down.WriteString(masked(m))
		fmt.Fprintf(&down, "error: %v\n", err != nil)
		if m.Reset == "" && err == nil {
			after, err := c.Try(harness.H2Request{Path: "/direct"})
			fmt.Fprintf(&down, "then: %d, error: %v\n", after.Status(), err != nil)
		}
		c.Close()
	default:
		got := harness.Exchange(t, p.Addr(listener), x.raw, max(x.n, 1), again)
		for _, m := range got.Responses {
			o.status = m.Status()
			down.WriteString(masked(m))
		}
		fmt.Fprintf(&down, "cut: %v, open: %v\n", got.Err != nil, got.Open)
	}
	o.downstream = down.String()
	var up strings.Builder
	for _, b := range backends {
		for _, m := range b.Take() {
			if m.Target() == "/prefix/again" {
				continue
			}
			up.WriteString(b.Name + " got\n" + masked(m))
		}
	}
	o.upstream = up.String()
	return o
}

// varying are the fields whose value is each proxy's own, or the time's; that they are there is still compared.
var varying = []string{"date", "server", "x-request-id", "x-envoy-upstream-service-time"}

// systemError is Envoy's wording of a failed connection, which ends in the operating system's.
var systemError = regexp.MustCompile(`(?s)^(upstream connect error or disconnect/reset before headers\.).*`)

// generated matches the value of a cookie that a proxy made.
var generated = regexp.MustCompile(`"?[0-9a-f]{16}"?`) // Envoy quotes it

// left matches what is left of the route's 15 s by the time of a retry.
var left = regexp.MustCompile(`^(14[0-9]{3}|15000)$`)

func masked(m harness.Message) string {
	m.Fields = slices.Clone(m.Fields)
	if short := systemError.ReplaceAll(m.Body, []byte("$1…")); len(short) != len(m.Body) {
		m.Body = short
		for i, f := range m.Fields {
			if strings.EqualFold(f.Name, "content-length") {
				m.Fields[i].Value = "…"
			}
		}
	}
	for i, f := range m.Fields {
		switch name := strings.ToLower(f.Name); {
		case slices.Contains(varying, name):
			m.Fields[i].Value = "…"
		case name == "x-envoy-expected-rq-timeout-ms" && left.MatchString(f.Value):
			m.Fields[i].Value = "15000"
		case name == "set-cookie":
			m.Fields[i].Value = generated.ReplaceAllString(f.Value, `"…"`)
		case name == "x-forwarded-for":
			// Envoy puts this machine's own address where the client's is a loopback one.
			before, _, several := lastCut(f.Value, ",")
			m.Fields[i].Value = "client"
			if several {
				m.Fields[i].Value = before + ",client"
			}
		}
	}
	return m.String()
}

func lastCut(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+len(sep):], true
}

// websocket upgrades, talks through the tunnel both ways, and leaves.
func websocket(t *testing.T, p *harness.Proxy) string {
	c := harness.Dial(t, p.Addr("http"), nil)
	c.Send(harness.Request("GET", "/prefix/ws", "", "connection: Upgrade", "upgrade: websocket",
		"sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="))
	m, err := c.Response("GET")
	if err != nil {
		t.Fatal(err)
	}
	said := masked(m)
	for _, word := range []string{"ping", strings.Repeat("a longer frame ", 1000)} {
		c.Send(word)
		if back := c.ReadBytes(len(word)); back != word {
			t.Errorf("the tunnel gave back %q", back)
		}
	}
	return said
}

func tcpEcho(t *testing.T, p *harness.Proxy) string {
	c := harness.Dial(t, p.Addr("tcp"), nil)
	c.Send("hello\x00\r\n")
	first := c.ReadBytes(8)
	long := strings.Repeat("0123456789", 10000)
	c.Send(long)
	if c.ReadBytes(len(long)) != long {
		t.Error("100,000 bytes came back changed")
	}
	// A half-close travels through the proxy; the echo server answers it with its own.
	if err := c.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.WaitClosed(5 * time.Second)
	return first
}

func tcpRefused(t *testing.T, p *harness.Proxy) string {
	c := harness.Dial(t, p.Addr("tcpdead"), nil)
	c.WaitClosed(5 * time.Second)
	return "closed"
}

// waitFor100 sends the content only after the server has asked for it.
func waitFor100(t *testing.T, p *harness.Proxy) string {
	c := harness.Dial(t, p.Addr("http"), nil)
	c.Send("POST /direct/continue HTTP/1.1\r\nhost: test.example\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
	refused, err := c.Response("POST")
	if err != nil || refused.Status() != 418 && refused.Status() != 100 {
		t.Errorf("a request that is refused: %v %s", err, refused.String())
	}
	c = harness.Dial(t, p.Addr("http"), nil)
	c.Send("POST /prefix/continue HTTP/1.1\r\nhost: test.example\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
	interim, err := c.Response("POST")
	if err != nil || interim.Status() != 100 {
		t.Fatalf("no 100: %v %s", err, interim.String())
	}
	c.Send("hello")
	final, err := c.Response("POST")
	if err != nil {
		t.Fatal(err)
	}
	return masked(interim) + masked(final)
}

// interleaved sends the content in two pieces.
func interleaved(t *testing.T, p *harness.Proxy) string {
	c := harness.Dial(t, p.Addr("http"), nil)
	c.Send("POST /prefix HTTP/1.1\r\nhost: test.example\r\ncontent-length: 10\r\n\r\nhello")
	c.Send("world")
	m, err := c.Response("POST")
	if err != nil {
		t.Fatal(err)
	}
	return masked(m)
}
