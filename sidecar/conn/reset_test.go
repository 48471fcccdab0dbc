package conn

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAResetEndsAServersConnectionAtOnce: the client takes nothing any more, so what it sent before asks for nothing.
func TestAResetEndsAServersConnectionAtOnce(t *testing.T) {
	for _, c := range []struct {
		name string
		take func(s *script, p []byte) int // in a pause
		sent func(s *script) bool          // enough for the case
	}{
		{"input waits here and in the socket", func(*script, []byte) int { return 0 }, func(s *script) bool { return s.c.kept.Len() > 0 }},
		{"input waits in the socket", func(_ *script, p []byte) int { return len(p) }, func(s *script) bool { return s.c.read > 0 }},
		{"output waits", func(s *script, p []byte) int {
			s.c.Write(make([]byte, 8<<20))
			return len(p)
		}, func(s *script) bool { return s.c.Full() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := worker(t)
			s := newScript()
			s.data = func(p []byte) int {
				s.c.PauseRead()
				return c.take(s, p)
			}
			s.drained = func() { s.c.ResumeRead() }
			addr := listen(t, w, func(k *Conn) { s.c = k; k.EndOnReset(); k.Start(s) })
			client := dialNet(t, addr).(*net.TCPConn)
			wrote := make(chan error, 1)
			go func() {
				piece := make([]byte, 64<<10)
				var err error
				for err == nil {
					_, err = client.Write(piece)
				}
				wrote <- err
			}()
			for deadline, enough := time.Now().Add(20*time.Second), false; !enough; {
				on(w, func() { enough = s.c != nil && c.sent(s) })
				if time.Now().After(deadline) {
					t.Fatal("nothing waits")
				}
			}
			_ = client.SetLinger(0)
			client.Close()
			<-wrote
			if err := s.wait(t); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("closed with %v", err)
			}
		})
	}
}
