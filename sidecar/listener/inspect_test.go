package listener

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/route"
)

// inspected serves with both inspectors: HTTP by the engine's manager, everything else as TCP.
func (e *engine) inspected(wait time.Duration) string {
	e.t.Helper()
	e.serve()
	tcp := &Chain{Name: "tcp", Key: "tcp", TCP: &TCPProxy{StatPrefix: "t", Stats: e.metrics.Set("tcp", "t", TCPStats), TotalWeight: 1,
		Clusters: []route.WeightedCluster{{Cluster: route.ClusterRef{Name: "backend", Ref: e.clusters.Ref("backend")}, Weight: 1}}}}
	cfg := &Config{Name: "inspected", StatPrefix: "inspected", Hash: 2, Bind: true, BufferLimit: 1 << 20, Inspect: true, HTTPInspect: true, FilterTime: wait, ContinueTime: true,
		Addresses: []conn.Address{conn.TCP(netip.MustParseAddrPort("127.0.0.1:0"))},
		Chains: []*Chain{{Name: "http", Key: "http", HTTP: e.manager,
			Match: Match{TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.0", "http/1.1", "h2c"}}}},
		Default: tcp}
	if err := e.server.Apply(cfg); err != nil {
		e.t.Fatal(err)
	}
	return e.server.AddrOf("inspected").String()
}

func TestPlaintextThatWasInspectedIsServed(t *testing.T) {
	e := newEngine(t).to(backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) }))
	at := e.inspected(20 * time.Second)
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	// In two pieces, so that there is something to wait for.
	for _, piece := range []string{"GET /first HT", "TP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"} {
		if _, err := io.WriteString(c, piece); err != nil {
			t.Fatal(err)
		}
	}
	b, err := io.ReadAll(c)
	if err != nil || len(b) < 20 || string(b[:15]) != "HTTP/1.1 200 OK" || string(b[len(b)-6:]) != "/first" {
		t.Fatalf("%q, %v", b, err)
	}
}

// TestAServerThatSpeaksFirstIsNotWaitedForLong: and what the client said meanwhile is not lost.
func TestAServerThatSpeaksFirstIsNotWaitedForLong(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, "220 welcome\n")
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	e := newEngine(t).to(l.Addr().String())
	at := e.inspected(30 * time.Millisecond)
	for name, first := range map[string]string{"silent client": "", "half a request line": "GET"} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.WriteString(c, first); err != nil {
				t.Fatal(err)
			}
			want := "220 welcome\n" + first
			b := make([]byte, len(want))
			if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
				t.Fatalf("%q, %v", b, err)
			}
		})
	}
}
