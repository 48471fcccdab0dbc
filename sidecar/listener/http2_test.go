package listener

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/sidecar/upstream"
)

// h2c is a client that speaks HTTP/2 with prior knowledge.
func h2c() *http.Client {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Protocols: &p}}
}

// h2cBackend is a server that speaks nothing but HTTP/2.
func h2cBackend(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: h, Protocols: &p}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

func TestEveryProtocolReachesEveryProtocol(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Proto", r.Proto)
		_, _ = w.Write(b)
		w.Header().Set("X-Sum", fmt.Sprint(len(b)))
	}
	for _, c := range []struct {
		name     string
		backend  func(testing.TB, http.HandlerFunc) string
		upstream upstream.Protocol
		client   *http.Client
		proto    string
	}{
		{"1 to 1", backend, upstream.HTTP1, http.DefaultClient, "HTTP/1.1"},
		{"1 to 2", h2cBackend, upstream.HTTP2, http.DefaultClient, "HTTP/2.0"},
		{"2 to 1", backend, upstream.HTTP1, h2c(), "HTTP/1.1"},
		{"2 to 2", h2cBackend, upstream.HTTP2, h2c(), "HTTP/2.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEngine(t).to(c.backend(t, echo))
			e.cluster.Protocol = c.upstream
			e.cluster.HTTP1.EnableTrailers, e.manager.HTTP1.EnableTrailers = true, true
			addr := e.serve()
			var wg sync.WaitGroup
			for i := range 40 {
				wg.Go(func() {
					body := strings.Repeat("x", i*i*1000)
					resp, err := c.client.Post("http://"+addr+"/p", "text/plain", strings.NewReader(body))
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					b, err := io.ReadAll(resp.Body)
					if err != nil || string(b) != body || resp.Header.Get("X-Proto") != c.proto {
						t.Errorf("%d bytes of %d over %s: %v", len(b), len(body), resp.Header.Get("X-Proto"), err)
					}
				})
			}
			wg.Wait()
			resp, err := c.client.Post("http://"+addr+"/trailers", "text/plain", strings.NewReader(strings.Repeat("x", 50000)))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.Trailer.Get("X-Sum") != "50000" {
				t.Errorf("trailer is %q", resp.Trailer)
			}
		})
	}
}

func TestACancelledRequestIsCancelledUpstream(t *testing.T) {
	begun, gone := make(chan struct{}), make(chan struct{})
	e := newEngine(t).to(h2cBackend(t, func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		close(gone)
	}))
	e.cluster.Protocol = upstream.HTTP2
	addr := e.serve()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-begun
		cancel()
	}()
	if _, err := h2c().Do(req); err == nil {
		t.Error("a cancelled request was answered")
	}
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("the upstream request goes on")
	}
}
