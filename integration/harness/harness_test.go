package harness

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

func TestMessageIsReadAsItWasSent(t *testing.T) {
	for name, c := range map[string]struct {
		raw, method string
		status      int
		body        string
		framing     Framing
		left        string
	}{
		"with a length":            {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcREST", "GET", 200, "abc", Length, "REST"},
		"chunked, with trailers":   {"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\nREST", "GET", 200, "abc", Chunked, "REST"},
		"until the end":            {"HTTP/1.1 200 OK\r\n\r\nabc", "GET", 200, "abc", Close, ""},
		"to HEAD":                  {"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nREST", "HEAD", 200, "", None, "REST"},
		"without content":          {"HTTP/1.1 204 No Content\r\n\r\nREST", "GET", 204, "", None, "REST"},
		"interim":                  {"HTTP/1.1 100 Continue\r\n\r\nREST", "GET", 100, "", None, "REST"},
		"not modified, its length": {"HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\nREST", "GET", 304, "", None, "REST"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReader(strings.NewReader(c.raw))
			m, err := r.response(c.method)
			if err != nil || m.Status() != c.status || string(m.Body) != c.body || m.Framing != c.framing {
				t.Fatalf("%v %+v", err, m)
			}
			if want := strings.TrimSuffix(c.raw, c.left); string(m.Raw) != want {
				t.Errorf("raw %q, want %q", m.Raw, want)
			}
		})
	}
}

func TestMessageThatIsBroken(t *testing.T) {
	for name, raw := range map[string]string{
		"cut in its head":   "HTTP/1.1 200 OK\r\nx: y\r\n",
		"cut in its body":   "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab",
		"cut in a chunk":    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\na",
		"framed twice":      "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\nabc",
		"with two lengths":  "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
		"without its colon": "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			if m, err := newReader(strings.NewReader(raw)).response("GET"); err == nil {
				t.Errorf("read as %v", m)
			}
		})
	}
}

func TestBackendRecordsThenAnswers(t *testing.T) {
	b := NewBackend(t, "orders").HTTP1()
	b.Script(Response(503, "down"))
	if m := Get(t, b.Addr(), "/one"); m.Status() != 503 || string(m.Body) != "down" {
		t.Errorf("scripted: %v", m.String())
	}
	if m := Get(t, b.Addr(), "/two"); m.Status() != 200 || string(m.Body) != "orders" {
		t.Errorf("ordinary: %v", m.String())
	}
	got := b.Take()
	if len(got) != 2 || got[0].Target() != "/one" || got[1].Target() != "/two" || len(b.Requests()) != 0 {
		t.Errorf("recorded %v", got)
	}
}

func TestHTTP2ClientAndBackendSeeEverything(t *testing.T) {
	b := NewBackend(t, "orders").H2C()
	c := DialH2(t, b.Addr(), nil)
	m := c.Do(H2Request{Method: "POST", Path: "/pkg.Service/Call", Body: "hello",
		Fields: []Field{{"content-type", "application/grpc"}, {"te", "trailers"}}, Trailers: []Field{{"x-end", "yes"}}})
	if m.Status() != 200 || string(m.Body) != "hello" || m.Trailer("grpc-status") != "0" {
		t.Errorf("response:\n%v", m.String())
	}
	got := b.Take()
	if len(got) != 1 || got[0].Method() != "POST" || got[0].Target() != "/pkg.Service/Call" || string(got[0].Body) != "hello" {
		t.Fatalf("recorded %v", got)
	}
	if m := c.Get("/again"); string(m.Body) != "orders" {
		t.Errorf("second on the connection: %v", m.String())
	}
	b.Close()
	c.WaitClosed(5 * time.Second)
}

func TestHTTP2OverTLS(t *testing.T) {
	ca := NewAuthority(t, "test")
	id := ca.Issue("127.0.0.1")
	b := NewBackend(t, "orders").TLS(id.Server()).H2C()
	if m := DialH2(t, b.Addr(), ca.Client("127.0.0.1")).Get("/"); m.Status() != 200 {
		t.Errorf("%v", m.String())
	}
}

func TestLoadCountsFailures(t *testing.T) {
	b := NewBackend(t, "orders").HTTP1()
	l := NewLoad(t, HTTPCall(t, "http://"+b.Addr()+"/", false)).Rate(200).Start().After(20)
	b.Script(Response(503, "down"), Response(503, "down"))
	r := l.After(20).Stop()
	if r.Failed != 2 || r.Errors["503 down"] != 2 {
		t.Errorf("%v", r)
	}
}

func TestProcessIsEndedAndItsLogKept(t *testing.T) {
	p := Command{Name: "shell", Path: "/bin/sh", Args: []string{"-c", "trap 'echo bye; exit 3' TERM; sleep 100 >/dev/null 2>&1 & echo hello; wait"}}.Start(t)
	p.WaitLog("hello")
	if code := p.Stop(5 * time.Second); code != 3 || !strings.Contains(p.Log(), "bye") || p.Running() {
		t.Errorf("exit %d, log %q", code, p.Log())
	}
	if left := p.Left(); len(left) != 1 || left[0] != "sleep 100" {
		t.Errorf("left behind: %q", left)
	}
}

func TestLogKeepsBothEnds(t *testing.T) {
	var b logBuffer
	b.Write([]byte("first"))
	b.Write(make([]byte, 2*maxLog))
	b.Write([]byte("last"))
	if s := b.String(); !strings.HasPrefix(s, "first") || !strings.HasSuffix(s, "last") || len(s) > maxLog+100 {
		t.Errorf("%d bytes", len(s))
	}
}

func TestConsul(t *testing.T) {
	c := NewConsul(t).Run()
	c.Register(Instance{Service: "orders", Addr: "127.0.0.1:1"})
	healthy := func() int {
		t.Helper()
		all, _, err := c.Client.Health().Service("orders", "", true, nil)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if healthy() != 1 {
		t.Error("registered, and not healthy")
	}
	c.Fail("orders")
	Eventually(t, 10*time.Second, "failing instance leaves", func() error {
		if healthy() != 0 {
			return errors.New("still healthy")
		}
		return nil
	})
	c.Intend("web", "orders", false)
	c.Entry(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "orders", Protocol: "http"})
	c.Unintend("web", "orders")
	c.Deregister("orders")
}

func TestRedis(t *testing.T) {
	if r := NewRedis(t); !r.Running() {
		t.Error("ended")
	}
}

func TestEnvoyRuns(t *testing.T) {
	p := NewEnvoy(t).Bootstrap("admin: {address: {socket_address: {address: 127.0.0.1, port_value: ${admin}}}}\n").Run()
	if s := p.Stat("server.live"); s != 1 {
		t.Errorf("server.live is %d", s)
	}
	if code := p.Stop(10 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestCollectorReceives(t *testing.T) {
	c := NewCollector(t)
	exportSpan(t, context.Background(), c.Addr(), "orders")
	if got := c.WaitTrace(strings.Repeat("01", 16), 1); got[0].Service != "orders" || got[0].Name != "GET /" || got[0].Parent != "" {
		t.Errorf("%+v", got)
	}
}

// TestACrashFailsItsTest runs a test of its own, whose failure it expects.
func TestACrashFailsItsTest(t *testing.T) {
	for said, fails := range map[string]bool{"panic: oh": true, "WARNING: DATA RACE": true, "do not panic: all is well": false} {
		inner := &recorder{TB: t}
		Command{Name: "shell", Path: "/bin/sh", Args: []string{"-c", "echo '" + said + "'"}}.Start(inner).WaitExit(5 * time.Second)
		inner.end()
		if (inner.failures > 0) != fails {
			t.Errorf("%q: %d failures", said, inner.failures)
		}
	}
}

// recorder is a test that may fail without failing the one it stands in.
type recorder struct {
	testing.TB
	cleanups []func()
	failures int
}

func (r *recorder) Cleanup(f func())      { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(string, ...any) { r.failures++ }
func (r *recorder) Logf(string, ...any)   {}
func (r *recorder) Failed() bool          { return r.failures > 0 }

func (r *recorder) end() {
	for _, f := range r.cleanups {
		f()
	}
}
