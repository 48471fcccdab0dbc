package listener

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"sallyport/sidecar/upstream"
)

// mesh is an edge before a sidecar before the backend, with HTTP/2 between the two.
func mesh(t testing.TB, h http.HandlerFunc) (addr string, edge *engine) {
	sidecar := newEngine(t).to(backend(t, h))
	edge = newEngine(t).to(sidecar.serve())
	edge.cluster.Protocol = upstream.HTTP2
	return edge.serve(), edge
}

// TestUploadsThatNobodyReadsStopNoOther of the users that share the connection between edge and sidecar.
func TestUploadsThatNobodyReadsStopNoOther(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	addr, _ := mesh(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stuck" {
			arrived <- struct{}{}
			<-release
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
	})
	var stuck sync.WaitGroup
	for range 6 {
		stuck.Go(func() {
			// More than the kernel's buffers on the way take.
			resp, err := http.Post("http://"+addr+"/stuck", "text/plain", io.LimitReader(zeros{}, 64<<20))
			if err == nil {
				resp.Body.Close()
			}
		})
		<-arrived
	}
	for range 3 {
		resp, err := http.Post("http://"+addr+"/read", "text/plain", strings.NewReader(strings.Repeat("x", 4<<20)))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Error(resp.Status)
		}
	}
	close(release)
	stuck.Wait()
}

// zeros is content without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestAUserOfASharedConnectionHarmsNoOther, neither by giving up requests nor by heads that only the sidecar would refuse.
func TestAUserOfASharedConnectionHarmsNoOther(t *testing.T) {
	hanging, release := make(chan struct{}, 1000), make(chan struct{})
	addr, edge := mesh(t, func(_ http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/victim":
			<-release
		case "/hang":
			hanging <- struct{}{}
			<-r.Context().Done()
		}
	})
	victim := make(chan error)
	go func() {
		resp, err := http.Post("http://"+addr+"/victim", "text/plain", strings.NewReader("hi"))
		if err == nil {
			if resp.Body.Close(); resp.StatusCode != 200 {
				err = errors.New(resp.Status)
			}
		}
		victim <- err
	}()
	for range 600 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
		<-hanging
		c.Close()
	}
	many, err := http.NewRequest(http.MethodGet, "http://"+addr+"/fields", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 92 {
		many.Header.Set(fmt.Sprintf("x%d", i), "y")
	}
	for range 600 {
		resp, err := http.DefaultClient.Do(many)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != 431 {
			t.Fatal(resp.Status)
		}
	}
	close(release)
	if err := <-victim; err != nil {
		t.Error(err)
	}
	if n := edge.clusters.Lookup("backend").Stats.Value(upstream.StatCxTotal); n > 20 {
		t.Errorf("%d connections to the sidecar", n)
	}
}
