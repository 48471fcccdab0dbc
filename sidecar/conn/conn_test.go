package conn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pattern(n int) []byte {
	p := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{1})
	_, _ = rnd.Read(p)
	return p
}

// roundTrip sends p in pieces, closes the writing half, and wants p back.
func roundTrip(t *testing.T, c net.Conn, p []byte, piece func() int) {
	t.Helper()
	if c, ok := c.(*tls.Conn); ok {
		// CloseWrite needs it, and with no bytes nothing else would do it.
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		for rest := p; len(rest) > 0; {
			n := min(piece(), len(rest))
			if _, err := c.Write(rest[:n]); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			rest = rest[n:]
		}
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	if !bytes.Equal(got, p) {
		t.Fatalf("got %d bytes back, sent %d; equal is false", len(got), len(p))
	}
}

func TestEchoAndHalfClose(t *testing.T) {
	w := worker(t)
	addr := listen(t, w, startEcho)
	for _, n := range []int{0, 1, 100, 64 << 10, 64<<10 + 1, 8 << 20} {
		roundTrip(t, dialNet(t, addr), pattern(n), func() int { return 1 + rand.IntN(100000) })
	}
	on(w, func() {
		if n := Count(w); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

func TestResetReachesTheHandlerAndThePeer(t *testing.T) {
	w := worker(t)
	t.Run("by the peer", func(t *testing.T) {
		s := newScript()
		addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
		c := dialNet(t, addr).(*net.TCPConn)
		_ = c.SetLinger(0)
		c.Close()
		if err := s.wait(t); !errors.Is(err, unix.ECONNRESET) {
			t.Fatalf("closed with %v", err)
		}
	})
	t.Run("by the peer, noticed though reading is paused", func(t *testing.T) {
		s := newScript()
		addr := listen(t, w, func(c *Conn) { s.c = c; c.PauseRead(); c.Start(s) })
		c := dialNet(t, addr).(*net.TCPConn)
		_ = c.SetLinger(0)
		c.Close()
		if err := s.wait(t); !errors.Is(err, unix.ECONNRESET) {
			t.Fatalf("closed with %v", err)
		}
	})
	t.Run("by us", func(t *testing.T) {
		s := newScript()
		s.data = func([]byte) int { s.c.Reset(); return 0 }
		addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
		c := dialNet(t, addr)
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("the peer read %v", err)
		}
		if err := s.wait(t); err != nil {
			t.Fatalf("closed with %v", err)
		}
	})
}

func TestEOFDuringAPauseIsNoticedAndDataBeforeItKept(t *testing.T) {
	w := worker(t)
	t.Run("nothing to read", func(t *testing.T) {
		s := newScript()
		s.eof = func() { s.c.Close() }
		addr := listen(t, w, func(c *Conn) { s.c = c; c.PauseRead(); c.Start(s) })
		dialNet(t, addr).Close()
		_ = s.wait(t)
	})
	t.Run("data first", func(t *testing.T) {
		s := newScript()
		got := ""
		s.data = func(p []byte) int { got += string(p); return len(p) }
		s.eof = func() { got += "|"; s.c.Close() }
		var accepted = make(chan struct{})
		addr := listen(t, w, func(c *Conn) { s.c = c; c.PauseRead(); c.Start(s); close(accepted) })
		c := dialNet(t, addr)
		_, _ = c.Write([]byte("hello"))
		c.Close()
		<-accepted
		on(w, func() {
			if got != "" {
				t.Errorf("got %q during the pause", got)
			}
			s.c.ResumeRead()
		})
		_ = s.wait(t)
		if got != "hello|" {
			t.Fatalf("got %q", got)
		}
	})
}

// TestUnconsumedInputIsPresentedAgain: lines, of which the handler takes whole ones only.
func TestUnconsumedInputIsPresentedAgain(t *testing.T) {
	w := worker(t)
	s := newScript()
	var lines []string
	s.data = func(p []byte) int {
		used := 0
		for {
			i := bytes.IndexByte(p[used:], '\n')
			if i < 0 {
				return used
			}
			lines = append(lines, string(p[used:used+i]))
			used += i + 1
		}
	}
	s.eof = func() { s.c.Close() }
	addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
	c := dialNet(t, addr)
	for _, part := range []string{"a", "lpha\nbe", "", "ta", "\n", "gamma\ndelta"} {
		_, _ = c.Write([]byte(part))
		on(w, func() {})
	}
	c.Close()
	_ = s.wait(t)
	if len(lines) != 3 || lines[0] != "alpha" || lines[1] != "beta" || lines[2] != "gamma" {
		t.Fatalf("got %q", lines)
	}
}

func TestInputOverTheLimitCloses(t *testing.T) {
	w := worker(t)
	s := newScript()
	s.data = func([]byte) int { return 0 }
	addr := listen(t, w, func(c *Conn) { s.c = c; c.SetLimit(100000); c.Start(s) })
	c := dialNet(t, addr)
	_, _ = c.Write(make([]byte, 200000))
	if err := s.wait(t); !errors.Is(err, ErrReadLimit) {
		t.Fatalf("closed with %v", err)
	}
}

func TestPauseStopsTheSenderAndResumeLosesNothing(t *testing.T) {
	w := worker(t)
	s := newScript()
	var got int
	accepted := make(chan struct{})
	s.data = func(p []byte) int {
		got += len(p)
		if got == 100 {
			s.c.PauseRead()
			s.c.PauseRead()
			return 1 // the rest comes after the second ResumeRead
		}
		return len(p)
	}
	s.eof = func() { s.c.Close() }
	addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s); close(accepted) })
	c := dialNet(t, addr).(*net.TCPConn)
	<-accepted
	_, _ = c.Write(make([]byte, 100))
	for seen := 0; seen == 0; {
		on(w, func() { seen = got })
	}
	// The kernel's buffers fill up, then the sender must stop.
	_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	sent, err := c.Write(make([]byte, 64<<20))
	if err == nil {
		t.Fatal("64 MiB went to a reader that does not read")
	}
	on(w, func() {
		if got != 100 {
			t.Errorf("%d bytes were presented during the pause", got-100)
		}
		s.c.ResumeRead()
	})
	on(w, func() {
		if got != 100 {
			t.Errorf("presented after the first of two ResumeRead")
		}
		s.c.ResumeRead()
	})
	c.Close()
	_ = s.wait(t)
	if want := 100 + 99 + sent; got != want {
		t.Fatalf("got %d bytes in all, want %d", got, want)
	}
}

// TestSlowReaderBoundsMemory: a source that honors Full never has more than
// the high mark and one piece waiting.
func TestSlowReaderBoundsMemory(t *testing.T) {
	w := worker(t)
	const piece, total, limit = 50000, 30 << 20, 256 << 10
	s := newScript()
	sent, most, drains := 0, 0, 0
	produce := func() {
		for sent < total && !s.c.Full() {
			s.c.Write(make([]byte, piece))
			sent += piece
			most = max(most, s.c.pending())
		}
		if sent >= total {
			s.c.CloseAfterFlush(10 * time.Second)
		}
	}
	s.connected = produce
	s.drained = func() { drains++; produce() }
	addr := listen(t, w, func(c *Conn) { s.c = c; c.SetLimit(limit); c.Start(s) })
	c := dialNet(t, addr)
	n := 0
	buf := make([]byte, 20000)
	for {
		m, err := c.Read(buf)
		n += m
		if n < 4<<20 {
			on(w, func() {})
		}
		if err != nil {
			break
		}
	}
	c.Close()
	if err := s.wait(t); err != nil || n != sent {
		t.Fatalf("closed with %v; %d of %d bytes arrived", err, n, sent)
	}
	if most > limit+piece || drains == 0 {
		t.Fatalf("at most %d bytes waited, Drained %d times", most, drains)
	}
}

// TestLastResponseSurvivesUnreadInput: without lingering the unread input
// makes the kernel send RST, which takes the response with it.
func TestLastResponseSurvivesUnreadInput(t *testing.T) {
	w := worker(t)
	response := pattern(300000)
	s := newScript()
	s.data = func(p []byte) int {
		s.c.Write(response)
		s.c.CloseAfterFlush(5 * time.Second)
		return 0
	}
	addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
	c := dialNet(t, addr)
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = c.Write(make([]byte, 3<<20))
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, response) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	<-wrote
	c.Close()
	if err := s.wait(t); err != nil {
		t.Fatalf("closed with %v", err)
	}
}

func TestLingeringIsBounded(t *testing.T) {
	w := worker(t)
	t.Run("in time", func(t *testing.T) {
		s := newScript()
		addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s); c.CloseAfterFlush(20 * time.Millisecond) })
		dialNet(t, addr)
		_ = s.wait(t) // the peer never closes
	})
	for name, c := range map[string]struct {
		most int
		end  func(*Conn, time.Duration)
	}{
		"in bytes":                 {lingerBytes, (*Conn).CloseAfterFlush},
		"in bytes, with an answer": {answerBytes, (*Conn).CloseAfterAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript()
			addr := listen(t, w, func(k *Conn) { s.c = k; k.Start(s); c.end(k, time.Hour) })
			peer := dialNet(t, addr)
			piece := make([]byte, 1<<20)
			for n := 0; ; n++ {
				if _, err := peer.Write(piece); err != nil {
					break
				}
				if n > c.most>>20+64 { // the kernel's buffers have some too
					t.Fatalf("%d MiB were taken", n)
				}
			}
			_ = s.wait(t)
		})
	}
}

// TestEarlyAnswerIsReadThoughWritingFails: the server answers and closes while
// the client still sends.
func TestEarlyAnswerIsReadThoughWritingFails(t *testing.T) {
	w := worker(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newScript()
	var got []byte
	s.data = func(p []byte) int { got = append(got, p...); return len(p) }
	s.connected = func() { s.c.Write([]byte("request")) }
	on(w, func() {
		s.c = Dial(w, TCP(l.Addr().(*net.TCPAddr).AddrPort()), DialOptions{}, s)
	})
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	// Reading pauses, so that the answer is still unread when writing fails.
	on(w, func() { s.c.PauseRead() })
	_, _ = c.Write([]byte("answer"))
	c.Close() // with "request" unread: RST
	on(w, func() { s.c.Write([]byte("more")) })
	on(w, func() { s.c.Write([]byte("more")) })
	on(w, func() { s.c.ResumeRead() })
	if err := s.wait(t); err == nil {
		t.Error("closed without an error")
	}
	// The kernel may have thrown the answer away with the RST; what it kept must be there.
	if len(got) > 0 && string(got) != "answer" {
		t.Fatalf("got %q", got)
	}
}

// TestClosingInsideCallbacks: no call but Closed follows, once, and nothing breaks.
func TestClosingInsideCallbacks(t *testing.T) {
	for _, how := range []struct {
		name  string
		close func(*Conn)
	}{
		{"Close", (*Conn).Close},
		{"Reset", (*Conn).Reset},
		{"CloseAfterFlush", func(c *Conn) { c.CloseAfterFlush(50 * time.Millisecond) }},
		{"Close twice", func(c *Conn) { c.Close(); c.Close(); c.Reset(); c.CloseAfterFlush(0); c.CloseWrite() }},
	} {
		for _, where := range []string{"Connected", "Data", "EOF", "Drained"} {
			t.Run(how.name+" in "+where, func(t *testing.T) {
				w := worker(t)
				s := newScript()
				over := false
				end := func(at string) {
					if over {
						t.Errorf("%s after the end", at)
					}
					if at == where {
						over = true
						how.close(s.c)
						if s.ended {
							t.Error("Closed was called within the call")
						}
						// Writing to a closed connection does nothing.
						s.c.Write(make([]byte, 100))
						s.c.WriteThrough(make([]byte, 100))
						s.c.Buffer().Append([]byte("x"))
						s.c.Flush()
						s.c.PauseRead()
						s.c.ResumeRead()
					}
				}
				s.connected = func() {
					end("Connected")
					if where == "Drained" {
						s.c.Write(make([]byte, 8<<20))
						s.c.Full()
					}
				}
				s.data = func(p []byte) int { end("Data"); return len(p) / 2 }
				s.eof = func() { end("EOF") }
				s.drained = func() { end("Drained") }
				addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
				// A reset can be so early that dialing fails.
				if c, err := net.Dial("tcp", addr.IP.String()); err == nil {
					_, _ = c.Write([]byte("some data"))
					_ = c.(*net.TCPConn).CloseWrite()
					_, _ = io.Copy(io.Discard, c)
					c.Close()
				}
				if err := s.wait(t); err != nil {
					t.Fatalf("closed with %v", err)
				}
				on(w, func() {
					if n := Count(w); n != 0 {
						t.Errorf("%d connections are left", n)
					}
				})
			})
		}
	}
}

func TestWriteThrough(t *testing.T) {
	w := worker(t)
	want := pattern(6 << 20)
	s := newScript()
	s.connected = func() {
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 100000)
			s.c.WriteThrough(rest[:n])
			rest = rest[n:]
		}
		s.c.CloseAfterFlush(5 * time.Second)
	}
	addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
	c := dialNet(t, addr)
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d of %d bytes, %v", len(got), len(want), err)
	}
	c.Close()
	_ = s.wait(t)
	if n := s.c.BytesWritten(); n != uint64(len(want)) {
		t.Fatalf("BytesWritten is %d", n)
	}
}

// TestSlowReaderGetsTheLastResponse: the timeout of CloseAfterFlush is for
// progress, not for the whole.
func TestSlowReaderGetsTheLastResponse(t *testing.T) {
	w := worker(t)
	response := pattern(24 << 20) // more than the kernel's buffers take
	s := newScript()
	s.connected = func() {
		s.c.Write(response)
		s.c.CloseAfterFlush(2 * time.Second)
	}
	addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
	c := dialNet(t, addr)
	var got []byte
	buf := make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(c, buf)
		got = append(got, buf[:n]...)
		if err != nil {
			break
		}
		<-time.After(100 * time.Millisecond) // the reader's slowness, 2.4 s in all
	}
	if !bytes.Equal(got, response) {
		t.Fatalf("got %d of %d bytes", len(got), len(response))
	}
	c.Close()
	_ = s.wait(t)
}

// TestWhatIsGivenUpIsReset: a reader must not take a part for the whole.
func TestWhatIsGivenUpIsReset(t *testing.T) {
	response := pattern(24 << 20) // more than the kernel's buffers take
	for name, end := range map[string]func(*Conn){
		"nothing is read in time": func(c *Conn) { c.CloseAfterFlush(20 * time.Millisecond) },
		"nor within the patience": func(c *Conn) { c.CloseAfterSlowFlush(20 * time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			w := worker(t)
			s := newScript()
			s.connected = func() {
				s.c.Write(response)
				end(s.c)
			}
			addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
			c := dialNet(t, addr)
			_ = s.wait(t)
			n, err := io.Copy(io.Discard, c)
			if !errors.Is(err, syscall.ECONNRESET) || n >= int64(len(response)) {
				t.Fatalf("%d of %d bytes, then %v; want a reset", n, len(response), err)
			}
		})
	}
}

// TestPatienceIsForWhatWaits: a peer that has got everything and does not close is not waited for.
func TestPatienceIsForWhatWaits(t *testing.T) {
	w := worker(t)
	response := pattern(24 << 20)
	s := newScript()
	s.connected = func() {
		s.c.Write(response)
		s.c.CloseAfterSlowFlush(time.Hour)
	}
	addr := listen(t, w, func(c *Conn) { s.c = c; c.Start(s) })
	c := dialNet(t, addr)
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, response) {
		t.Fatalf("got %d of %d bytes, %v", len(got), len(response), err)
	}
	_ = s.wait(t)
}

// TestANewHandlerLearnsOfTheEnd: one that is put in place when the peer has ended its sending gets what was not consumed,
// and then the end, also where it pauses first.
func TestANewHandlerLearnsOfTheEnd(t *testing.T) {
	for _, pause := range []bool{false, true} {
		for _, sent := range []string{"", "not consumed"} {
			w := worker(t)
			var got []byte
			second := newScript()
			second.data = func(p []byte) int { got = append(got, p...); return len(p) }
			first := &script{data: func([]byte) int { return 0 }}
			first.eof = func() {
				if pause {
					first.c.PauseRead()
				}
				first.c.SetHandler(second)
			}
			ended := make(chan struct{})
			second.eof = func() {
				if string(got) != sent {
					t.Errorf("before the end %q was presented, want %q", got, sent)
				}
				close(ended)
			}
			addr := listen(t, w, func(c *Conn) { first.c = c; c.Start(first) })
			c := dialNet(t, addr).(*net.TCPConn)
			if _, err := io.WriteString(c, sent); err != nil {
				t.Fatal(err)
			}
			_ = c.CloseWrite()
			for paused := pause; paused; {
				on(w, func() {
					if first.c != nil && first.c.Handler() == second {
						first.c.ResumeRead()
						paused = false
					}
				})
			}
			<-ended
			on(w, func() { first.c.CloseWrite() }) // both halves are closed
			if err := second.wait(t); err != nil {
				t.Errorf("closed with %v", err)
			}
		}
	}
}
