package conn

import (
	"bytes"
	"crypto/tls"
	"net"
	"testing"
)

// TestAHandlerThatYieldsIsCalledInTheNextTurn: it takes a piece at a time, yields, and gets everything
// in order, its end last, and at most one piece in a turn of the loop.
func TestAHandlerThatYieldsIsCalledInTheNextTurn(t *testing.T) {
	ca := newAuthority(t)
	for _, secure := range []bool{false, true} {
		name := "plain"
		if secure {
			name = "TLS"
		}
		t.Run(name, func(t *testing.T) {
			w := worker(t)
			s := newScript()
			sent := pattern(1 << 20)
			var got []byte
			turn, calls := int64(-1), 0
			s.data = func(p []byte) int {
				if turn == w.NowMono() {
					t.Error("two pieces in a turn")
				}
				turn = w.NowMono()
				calls++
				n := min(len(p), 5000)
				got = append(got, p[:n]...)
				s.c.Yield()
				return n
			}
			s.eof = func() {
				got = append(got, '.')
				s.c.Close()
			}
			cfg := ca.server(t)
			addr := listen(t, w, func(c *Conn) {
				s.c = c
				if secure {
					c.StartTLSServer(cfg)
				}
				c.Start(s)
			})
			var c net.Conn = dialNet(t, addr)
			if secure {
				c = tls.Client(c, ca.client())
			}
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			c.Close()
			if err := s.wait(t); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, append(sent, '.')) {
				t.Errorf("%d bytes came in %d calls, want %d and the end", len(got), calls, len(sent))
			}
		})
	}
}
