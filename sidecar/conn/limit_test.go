package conn

import (
	"crypto/tls"
	"errors"
	"net"
	"testing"
)

// TestAReadIsNotMuchLargerThanTheLimit: what a handler gets at once may have to be kept when it pauses.
func TestAReadIsNotMuchLargerThanTheLimit(t *testing.T) {
	ca := newAuthority(t)
	for _, c := range []struct {
		name        string
		secure      bool
		limit, most int
	}{
		{"plain, a small limit", false, 1000, minRead},
		{"plain, the limit of an edge", false, 32 << 10, 64 << 10},
		{"plain, the default", false, DefaultLimit, ReadSize},
		{"TLS, a small limit", true, 1000, minRead + maxRecord},
		{"TLS, the limit of an edge", true, 32 << 10, 64<<10 + maxRecord},
		{"TLS, the default", true, DefaultLimit, secureSize},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := worker(t)
			s := newScript()
			const size = 2 << 20
			total, most := 0, 0
			s.data = func(p []byte) int {
				total += len(p)
				most = max(most, len(p))
				if total == size {
					s.c.Close()
				}
				return len(p)
			}
			cfg := ca.server(t)
			begin := make(chan struct{})
			addr := listen(t, w, func(k *Conn) {
				s.c = k
				k.SetLimit(c.limit)
				if c.secure {
					k.StartTLSServer(cfg)
				}
				k.PauseRead() // until much has arrived
				k.Start(s)
				close(begin)
			})
			var peer net.Conn = dialNet(t, addr)
			if c.secure {
				peer = tls.Client(peer, ca.client())
			}
			wrote := make(chan error, 1)
			go func() {
				_, err := peer.Write(make([]byte, size))
				wrote <- err
			}()
			<-begin
			on(w, func() { s.c.ResumeRead() })
			if err := <-wrote; err != nil {
				t.Fatal(err)
			}
			if err := s.wait(t); err != nil {
				t.Fatal(err)
			}
			if most > c.most {
				t.Errorf("%d bytes at once, want %d at most", most, c.most)
			}
		})
	}
}

// TestAHandlerMayLeaveMoreThanTheOutputsLimit, where it said that its protocol needs it.
func TestAHandlerMayLeaveMoreThanTheOutputsLimit(t *testing.T) {
	const limit = 50000
	for _, c := range []struct {
		name string
		sent int
		over bool
	}{
		{"as much as it said", limit, false},
		{"more", limit + 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := worker(t)
			s := newScript()
			s.data = func(p []byte) int {
				if len(p) == limit && !c.over {
					s.c.Close()
				}
				return 0
			}
			addr := listen(t, w, func(k *Conn) {
				s.c = k
				k.SetLimit(1000)
				k.SetInputLimit(limit)
				k.Start(s)
			})
			if _, err := dialNet(t, addr).Write(make([]byte, c.sent)); err != nil {
				t.Fatal(err)
			}
			if err := s.wait(t); errors.Is(err, ErrReadLimit) != c.over {
				t.Errorf("closed with %v", err)
			}
		})
	}
}
