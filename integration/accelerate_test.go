package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"sallyport/integration/harness"
	"sallyport/sidecar/accelerate"
)

// needAcceleration skips where this machine, or the user, cannot have BPF programs.
func needAcceleration(t *testing.T) {
	t.Helper()
	a, err := accelerate.Open(accelerate.Options{Mode: accelerate.On, Log: slog.New(slog.DiscardHandler)})
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		t.Fatal(err) // a mistake of the program's, not of the machine's
	}
	if err != nil {
		harness.NotRun(t, err.Error())
	}
	a.Close()
}

// application listens where the sidecar's cluster points to, and handles each connection.
func application(t *testing.T, at string, handle func(*net.TCPConn)) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		open.Wait()
	})
	return l
}

// spared starts a sidecar in front of the application.
func spared(t *testing.T, mode string, app net.Listener) *harness.Proxy {
	t.Helper()
	p := harness.NewSidecar(t).Bootstrap(read(t, "testdata/accelerate.yaml")).
		At("app", app.Addr().String()).Value("host", "127.0.0.1").Value("bind", "127.0.0.1").Value("compat", "false").
		Args("--concurrency", "2", "--accelerate", mode).Run()
	if mode == "on" {
		waitListeners(t, p)
	}
	return p
}

// waitListeners waits until both workers have both listeners: what connects before that is not accelerated.
func waitListeners(t *testing.T, p *harness.Proxy) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, "four listening sockets", func() error {
		if n := p.Stat("accelerate.listeners"); n != 4 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func dialTCP(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	return c.(*net.TCPConn)
}

// noise is a stream of bytes that repeats nowhere: the position, eight bytes at a time.
type noise struct{ at, end int64 }

func (n *noise) Read(p []byte) (int, error) {
	if n.at == n.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), n.end-n.at)]
	for i := range p {
		p[i] = noiseAt(n.at + int64(i))
	}
	n.at += int64(len(p))
	return len(p), nil
}

func noiseAt(i int64) byte {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(i/8)*0x9e3779b97f4a7c15)
	return b[i%8] ^ byte(i>>3)
}

// checkNoise reads n bytes of noise from the beginning and names the first that is not in its place.
func checkNoise(r io.Reader, n int64) error {
	buf := make([]byte, 64<<10)
	for at := int64(0); at < n; {
		m, err := r.Read(buf[:min(int64(len(buf)), n-at)])
		for i, b := range buf[:m] {
			if b != noiseAt(at+int64(i)) {
				return fmt.Errorf("byte %d is %#x instead of %#x", at+int64(i), b, noiseAt(at+int64(i)))
			}
		}
		if at += int64(m); err != nil && at < n {
			return fmt.Errorf("after %d of %d bytes: %w", at, n, err)
		}
	}
	return nil
}

// plainly hides what io.Copy would use instead of Read and Write: splice(2) does not see what passed TCP by.
type plainly struct{ io.ReadWriter }

func echo(c *net.TCPConn) {
	io.Copy(plainly{c}, plainly{c})
	c.CloseWrite()
}

// TestAcceleratedHopsAreUsed is what the other tests stand on: that it is not plain TCP that they test.
func TestAcceleratedHopsAreUsed(t *testing.T) {
	needAcceleration(t)
	p := spared(t, "on", application(t, "127.0.0.1:0", echo))
	c := dialTCP(t, p.Addr("tcp"))
	for range 100 {
		fmt.Fprintln(c, "ping")
		if err := expect(c, "ping\n"); err != nil {
			t.Fatal(err)
		}
	}
	if n := p.Stat("accelerate.connections"); n != 2 {
		t.Errorf("%d connections are accelerated, not both hops", n)
	}
	// The very first messages may have been sent before the peer was known.
	if n := p.Stat("accelerate.messages"); n < 390 {
		t.Errorf("%d messages passed TCP by, of 400", n)
	}
}

func expect(r io.Reader, want string) error {
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		return fmt.Errorf("%q, %v instead of %q", got[:n], err, want)
	}
	return nil
}

// TestAcceleratedIsAsTCP has what ends see of each other the same as without.
func TestAcceleratedIsAsTCP(t *testing.T) {
	needAcceleration(t)
	for _, s := range []struct {
		name string
		app  func(*net.TCPConn, io.Writer)
		do   func(*net.TCPConn, io.Writer)
	}{
		{"the client ends its sending first", func(c *net.TCPConn, log io.Writer) {
			said, err := io.ReadAll(plainly{c})
			fmt.Fprintf(log, "app: %x %v\n", sha256.Sum256(said), err)
			io.Copy(plainly{c}, bytes.NewReader(said))
		}, func(c *net.TCPConn, log io.Writer) {
			io.Copy(plainly{c}, &noise{end: 300_001})
			c.CloseWrite()
			said, err := io.ReadAll(plainly{c})
			fmt.Fprintf(log, "client: %x %v\n", sha256.Sum256(said), err)
		}},
		{"the application ends its sending first", func(c *net.TCPConn, log io.Writer) {
			io.Copy(plainly{c}, &noise{end: 70_003})
			c.CloseWrite()
			said, err := io.ReadAll(plainly{c})
			fmt.Fprintf(log, "app: %x %v\n", sha256.Sum256(said), err)
		}, func(c *net.TCPConn, log io.Writer) {
			said, err := io.ReadAll(plainly{c})
			fmt.Fprintf(log, "client: %x %v\n", sha256.Sum256(said), err)
			io.Copy(plainly{c}, &noise{end: 50_001})
			c.CloseWrite()
		}},
		{"both end at once", func(c *net.TCPConn, log io.Writer) {
			io.WriteString(c, "from the application")
			c.CloseWrite()
			said, err := io.ReadAll(plainly{c})
			fmt.Fprintf(log, "app: %s %v\n", said, err)
		}, func(c *net.TCPConn, log io.Writer) {
			io.WriteString(c, "from the client")
			c.CloseWrite()
			said, err := io.ReadAll(plainly{c})
			fmt.Fprintf(log, "client: %s %v\n", said, err)
		}},
		{"the last words of a client that closes", func(c *net.TCPConn, log io.Writer) {
			said, err := io.ReadAll(plainly{c})
			fmt.Fprintf(log, "app: %s %v\n", said, err)
		}, func(c *net.TCPConn, log io.Writer) {
			io.WriteString(c, "last words")
			c.Close()
		}},
		{"a client that resets", func(c *net.TCPConn, log io.Writer) {
			fmt.Fprintf(log, "app: %v\n", expect(c, "words"))
			io.WriteString(c, "!")
			n, _ := c.Read(make([]byte, 1))
			fmt.Fprintf(log, "app: %d after the reset\n", n)
		}, func(c *net.TCPConn, log io.Writer) {
			io.WriteString(c, "words")
			c.Read(make([]byte, 1)) // the answer to what the application has read
			c.SetLinger(0)
			c.Close()
		}},
		{"an application that resets", func(c *net.TCPConn, log io.Writer) {
			fmt.Fprintf(log, "app: %v\n", expect(c, "words"))
			c.SetLinger(0)
		}, func(c *net.TCPConn, log io.Writer) {
			io.WriteString(c, "words")
			n, _ := c.Read(make([]byte, 1))
			fmt.Fprintf(log, "client: %d after the reset\n", n)
		}},
		{"one byte at a time", func(c *net.TCPConn, log io.Writer) { echo(c) }, func(c *net.TCPConn, log io.Writer) {
			b := make([]byte, 1)
			sum := sha256.New()
			for i := range 3000 {
				c.Write([]byte{noiseAt(int64(i))})
				c.Read(b)
				sum.Write(b)
			}
			fmt.Fprintf(log, "client: %x\n", sum.Sum(nil))
			c.CloseWrite()
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			want, got := transcript(t, "off", s.app, s.do), transcript(t, "on", s.app, s.do)
			if got != want {
				t.Errorf("plain TCP:\n%saccelerated:\n%s", want, got)
			}
		})
	}
}

// transcript is what both sides noted, the application's part first.
func transcript(t *testing.T, mode string, app, do func(*net.TCPConn, io.Writer)) string {
	t.Helper()
	var a, b bytes.Buffer
	done := make(chan struct{})
	l := application(t, "127.0.0.1:0", func(c *net.TCPConn) {
		c.SetDeadline(time.Now().Add(30 * time.Second))
		app(c, &a)
		close(done)
	})
	c := dialTCP(t, spared(t, mode, l).Addr("tcp"))
	do(c, &b)
	<-done
	return a.String() + b.String()
}

// TestAcceleratedGibibyteBothWays has a GiB in each direction at once, in order.
func TestAcceleratedGibibyteBothWays(t *testing.T) {
	needAcceleration(t)
	const size = 1 << 30
	both := func(c *net.TCPConn) error {
		sent := make(chan error, 1)
		go func() {
			_, err := io.Copy(plainly{c}, &noise{end: size})
			sent <- errors.Join(err, c.CloseWrite())
		}()
		return errors.Join(checkNoise(c, size), <-sent)
	}
	app := make(chan error, 1)
	p := spared(t, "on", application(t, "127.0.0.1:0", func(c *net.TCPConn) { app <- both(c) }))
	if err := both(dialTCP(t, p.Addr("tcp"))); err != nil {
		t.Error("client:", err)
	}
	if err := <-app; err != nil {
		t.Error("application:", err)
	}
	t.Log("bytes past TCP:", p.Stat("accelerate.bytes"), "slow:", p.Stat("accelerate.slow_directions"))
}

// TestAcceleratedSlowReader has a reader that does not read: the sender has to wait, nothing grows, and all arrives
// once it reads again, at a reader that takes a short read for the last one too.
func TestAcceleratedSlowReader(t *testing.T) {
	needAcceleration(t)
	for _, from := range []string{"client", "application"} {
		t.Run("from the "+from, func(t *testing.T) {
			const size = 96 << 20
			start := make(chan struct{})
			read := func(c *net.TCPConn) error {
				<-start
				return edgeReader(c, size)
			}
			var sent atomic.Int64
			send := func(c *net.TCPConn) error {
				_, err := io.Copy(io.MultiWriter(plainly{c}, counter{&sent}), &noise{end: size})
				return errors.Join(err, c.CloseWrite())
			}
			one, other := send, read
			if from == "application" {
				one, other = read, send
			}
			app := make(chan error, 1)
			p := spared(t, "on", application(t, "127.0.0.1:0", func(c *net.TCPConn) { app <- other(c) }))
			client := make(chan error, 1)
			c := dialTCP(t, p.Addr("tcp"))
			go func() { client <- one(c) }()
			before := settled(t, &sent)
			if before > 32<<20 {
				t.Errorf("%d bytes were taken while nobody read", before)
			}
			if n := p.Stat("accelerate.bytes"); n > 8<<20 {
				t.Errorf("%d bytes wait past TCP", n)
			}
			close(start)
			for _, ch := range []chan error{client, app} {
				select {
				case err := <-ch:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(90 * time.Second):
					t.Fatal("bytes are stuck")
				}
			}
		})
	}
}

// TestAcceleratedShortRead has an application's direction change to TCP while the sidecar does not read, and nothing
// after that that would wake it again: its last redirected bytes come with a short read, behind which is more.
func TestAcceleratedShortRead(t *testing.T) {
	needAcceleration(t)
	const piece, after = 10_000, 4
	slow, release, app := make(chan struct{}), make(chan struct{}), make(chan int64, 1)
	p := spared(t, "on", application(t, "127.0.0.1:0", func(c *net.TCPConn) {
		src := &noise{end: 1 << 40}
		for left := after; left > 0; {
			if _, err := io.CopyN(plainly{c}, src, piece); err != nil {
				break
			}
			select {
			case <-slow:
				left--
			case <-time.After(time.Millisecond): // so that the other side is not outrun
			}
		}
		app <- src.at
		<-release
	}))
	defer close(release)
	c := dialTCP(t, p.Addr("tcp"))
	// The sidecar's direction to the client, then the application's to the sidecar.
	harness.Eventually(t, 30*time.Second, "two slow readers", func() error {
		if n := p.Stat("accelerate.slow_directions"); n < 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	close(slow)
	total := <-app
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if err := checkNoise(c, total); err != nil {
		t.Errorf("of %d bytes: %v", total, err)
	}
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// settled waits until a sender is stopped by its reader, and returns what it could send.
func settled(t *testing.T, n *atomic.Int64) int64 {
	t.Helper()
	last, since := int64(-1), time.Now()
	harness.Eventually(t, 30*time.Second, "a sender that waits", func() error {
		if now := n.Load(); now != last {
			last, since = now, time.Now()
		}
		if last == 0 || time.Since(since) < time.Second {
			return fmt.Errorf("%d bytes, still sending", last)
		}
		return nil
	})
	return last
}

// edgeReader checks noise as many applications read: edge-triggered, and a read that does not fill its buffer is taken
// for the last one (epoll(7)).
func edgeReader(c *net.TCPConn, size int64) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	ep, err := syscall.EpollCreate1(0)
	if err != nil {
		return err
	}
	defer syscall.Close(ep)
	var check error
	err = raw.Control(func(fd uintptr) {
		ev := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | 1<<31}
		if check = syscall.EpollCtl(ep, syscall.EPOLL_CTL_ADD, int(fd), &ev); check != nil {
			return
		}
		check = readEdges(ep, int(fd), size)
	})
	return errors.Join(err, check)
}

func readEdges(ep, fd int, size int64) error {
	buf := make([]byte, 48<<10)
	events := make([]syscall.EpollEvent, 1)
	for at := int64(0); ; {
		n, err := syscall.EpollWait(ep, events, 20_000)
		if err == syscall.EINTR {
			continue
		}
		if n != 1 {
			return fmt.Errorf("no event after %d of %d bytes: %v", at, size, err)
		}
		for {
			n, err := syscall.Read(fd, buf)
			if err == syscall.EAGAIN {
				break
			}
			if err != nil {
				return err
			}
			if n == 0 {
				if at != size {
					return fmt.Errorf("the end after %d of %d bytes", at, size)
				}
				return nil
			}
			for i, b := range buf[:n] {
				if b != noiseAt(at+int64(i)) {
					return fmt.Errorf("byte %d is %#x", at+int64(i), b)
				}
			}
			at += int64(n)
			if n < len(buf) && events[0].Events&syscall.EPOLLRDHUP == 0 {
				break
			}
		}
	}
}
