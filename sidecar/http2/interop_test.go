package http2

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"sallyport/sidecar/message"
)

// loop drives a Conn over a net.Conn from one goroutine, as a worker does.
func loop(k net.Conn, c *Conn, out *sink) {
	in := make(chan []byte)
	go func() {
		defer close(in)
		for {
			b := make([]byte, 32<<10)
			n, err := k.Read(b)
			if n > 0 {
				in <- b[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	var rest []byte
	for {
		if out.b.Len() > 0 {
			if _, err := k.Write(out.take()); err != nil {
				break
			}
		}
		b, open := <-in
		if !open {
			break
		}
		rest = append(rest, b...)
		n, err := c.Feed(rest)
		rest = append(rest[:0], rest[n:]...)
		if err != nil {
			c.Closed(message.ProtocolError)
			_, _ = k.Write(out.take())
			break
		}
	}
	c.Closed(message.ConnectionClosed)
	k.Close()
	for range in {
		continue // until the reader is gone
	}
}

func listen(t *testing.T, serve func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			k, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(k) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// unencrypted is HTTP/2 with prior knowledge.
func unencrypted() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// TestAClientOfNetHTTP sends requests of many sizes at once to our server, which sends the content back.
func TestAClientOfNetHTTP(t *testing.T) {
	addr := listen(t, func(k net.Conn) {
		out := newSink()
		c := NewServer(out, nil, &hooks{stream: func(s *Stream) message.Receiver {
			r := &tape{t: t, s: s}
			var body []byte
			r.onData = func(p []byte, _ bool) { body, r.data = append(body, p...), r.data[:0] }
			r.onEnd = func() {
				s.Head(head(":status=200", "trailer=x-sum"), false)
				s.Data(body, false)
				s.Trailers(head("x-sum=" + fmt.Sprint(len(body))))
			}
			return r
		}})
		c.Start()
		loop(k, c, out)
	})
	tr := &http.Transport{Protocols: unencrypted()}
	defer tr.CloseIdleConnections()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			body := bytes.Repeat([]byte("x"), i*i*300)
			resp, err := (&http.Client{Transport: tr}).Post("http://"+addr+"/echo", "text/plain", bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(got, body) || resp.Trailer.Get("X-Sum") != fmt.Sprint(len(body)) {
				t.Errorf("%d bytes of %d, trailer %v: %v", len(got), len(body), resp.Trailer, err)
			}
		})
	}
	wg.Wait()
}

// TestAServerOfNetHTTP is the other way round.
func TestAServerOfNetHTTP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Protocols: unencrypted(), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 10}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Path", r.URL.Path)
		_, _ = w.Write(b)
		w.Header().Set("X-Sum", fmt.Sprint(len(b)))
	})}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	k, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	out := newSink()
	var owner hooks
	c := NewClient(out, nil, &owner)
	c.Start()
	const requests = 50
	answered := make(chan string, requests)
	queue := 0
	next := func() {
		for ; queue < requests && c.Capacity() > 0; queue++ {
			r := &tape{t: t}
			r.onReset = func() { answered <- r.String() }
			body := bytes.Repeat([]byte("y"), queue*queue*300)
			var got []byte
			r.onData = func(p []byte, _ bool) { got, r.data = append(got, p...), r.data[:0] }
			r.onEnd = func() {
				if !bytes.Equal(got, body) {
					answered <- fmt.Sprintf("%d bytes of %d", len(got), len(body))
					return
				}
				answered <- r.String()
			}
			s := c.Open(r)
			s.Head(head(":method=POST", ":scheme=http", ":authority=h", ":path=/p", "x-id="+fmt.Sprint(queue)), false)
			s.Data(body, true)
		}
	}
	// The first call is for the server's SETTINGS: before them, more streams
	// might be opened than it takes.
	owner.closed = next
	done := make(chan struct{})
	go func() { loop(k, c, out); close(done) }()
	for range requests {
		if got := <-answered; !strings.HasPrefix(got, "[:status=200 ") || !strings.Contains(got, "x-path=/p") || !strings.Contains(got, "+[x-sum=") {
			t.Error(got)
		}
	}
	k.Close()
	<-done
}
