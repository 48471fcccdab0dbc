package conn

import (
	"testing"
	"time"

	"sallyport/sidecar/loop"
)

// TestAClosingWithAnAnswerGoesOnWhileThePeerSends, for half a minute and no longer: who writes everything before it
// reads gets its answer, and who never stops is not read for ever.
func TestAClosingWithAnAnswerGoesOnWhileThePeerSends(t *testing.T) {
	for _, c := range []struct {
		name  string
		bytes int // one every 0.9 s
		after time.Duration
	}{
		{"a peer that is silent", 0, time.Second},
		{"a peer that stops", 10, 9 * time.Second},
		{"a peer that never stops", 100, answerTime},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Now()
			begin := now
			w, err := loop.NewWithClock(1, func() time.Time { return now })
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			s := newScript()
			l, err := Listen(w, loopback, ListenOptions{}, func(k *Conn) { s.c = k; k.Start(s) })
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			until := func(what string, cond func() bool) {
				t.Helper()
				for end := time.Now().Add(20 * time.Second); !cond(); {
					if time.Now().After(end) {
						t.Fatal(what)
					}
					w.Step(time.Millisecond)
				}
			}
			peer := dialNet(t, l.Addr())
			until("not accepted", func() bool { return s.c != nil })
			s.c.CloseAfterAnswer(time.Second)
			for sent := 0; now.Sub(begin) < time.Minute && !s.ended; sent++ {
				if sent < c.bytes {
					if _, err := peer.Write([]byte("x")); err != nil {
						break
					}
					until("the byte is not read", func() bool { return int(s.c.lingered) > sent || s.ended })
				}
				for range 9 {
					now = now.Add(100 * time.Millisecond)
					w.Step(0)
				}
			}
			if took := now.Sub(begin); !s.ended || took < c.after || took > c.after+time.Second {
				t.Errorf("ended %v after %v, want %v", s.ended, took, c.after)
			}
		})
	}
}
