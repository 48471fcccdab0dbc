package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sallyport/integration/harness"
)

// TestAcceleratedConnectStorm opens connections faster than both ends can be found, on which each side sends at once,
// in pieces: what went by TCP before and past TCP after must arrive in its order.
func TestAcceleratedConnectStorm(t *testing.T) {
	needAcceleration(t)
	const clients, rounds, size = 32, 60, 20_000
	pieces := func(c *net.TCPConn) error {
		sent := make(chan error, 1)
		go func() {
			src := &noise{end: size}
			for n := int64(1); ; n = n*3 + 1 {
				if _, err := io.CopyN(plainly{c}, src, n); err != nil {
					if errors.Is(err, io.EOF) {
						err = nil
					}
					sent <- errors.Join(err, c.CloseWrite())
					return
				}
			}
		}()
		return errors.Join(checkNoise(c, size), <-sent)
	}
	failed := make(chan error, clients)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	p := spared(t, "on", application(t, "127.0.0.1:0", func(c *net.TCPConn) {
		if err := pieces(c); err != nil {
			fail(fmt.Errorf("application: %w", err))
		}
	}))
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for range rounds {
				c, err := net.Dial("tcp", p.Addr("tcp"))
				if err == nil {
					c.SetDeadline(time.Now().Add(30 * time.Second))
					err = pieces(c.(*net.TCPConn))
					c.Close()
				}
				if err != nil {
					fail(fmt.Errorf("client: %w", err))
					return
				}
			}
		})
	}
	all.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	// Both hops of each were found, and nothing of them is kept.
	if n := p.Stat("accelerate.connections"); n < clients*rounds*19/10 {
		t.Errorf("%d connections were accelerated, of %d", n, 2*clients*rounds)
	}
	harness.Eventually(t, 10*time.Second, "the end of all sockets", func() error {
		if n := socketsKnown(t, p); n > 0 {
			return fmt.Errorf("%d are still in the maps", n)
		}
		return nil
	})
}

// programs are the ids of the BPF programs with that name.
func programs(t *testing.T, name string) (ids []ebpf.ProgramID) {
	t.Helper()
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			return ids
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // unloaded meanwhile
		}
		if info, err := p.Info(); err == nil && info.Name == name {
			ids = append(ids, id)
		}
		p.Close()
	}
}

// attached counts the links of such programs.
func attached(t *testing.T, ids []ebpf.ProgramID) (n int) {
	t.Helper()
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		for _, id := range ids {
			if err == nil && info.Program == id {
				n++
			}
		}
	}
	return n
}

// socketsKnown counts the entries of the sidecar's map of ends, which is found among its descriptors.
func socketsKnown(t *testing.T, p *harness.Proxy) (n int) {
	t.Helper()
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, path := range infos {
		_, text, ok := strings.Cut(string(readAny(path)), "\nmap_id:")
		if !ok {
			continue
		}
		id, err := strconv.ParseUint(strings.Fields(text)[0], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		m, err := ebpf.NewMapFromID(ebpf.MapID(id))
		if err != nil {
			t.Fatal(err)
		}
		if info, err := m.Info(); err == nil && info.Name == "ends" {
			found = true
			key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
			for it := m.Iterate(); it.Next(&key, &value); {
				n++
			}
		}
		m.Close()
	}
	if !found {
		t.Fatal("the sidecar has no map of ends")
	}
	return n
}

// readAny is empty for a file that went away.
func readAny(path string) []byte {
	text, _ := os.ReadFile(path)
	return text
}

// TestKilledSidecarLeavesNothing kills a sidecar: what it had sent is still read, then nothing of it is in the kernel.
func TestKilledSidecarLeavesNothing(t *testing.T) {
	needAcceleration(t)
	harness.Eventually(t, 10*time.Second, "the end of other tests' programs", func() error {
		if ids := programs(t, "watch"); len(ids) > 0 {
			return fmt.Errorf("programs %v", ids)
		}
		return nil
	})
	accepted := make(chan *net.TCPConn, 1)
	release := make(chan struct{})
	p := spared(t, "on", application(t, "127.0.0.1:0", func(c *net.TCPConn) {
		accepted <- c
		<-release
	}))
	c := dialTCP(t, p.Addr("tcp"))
	app := <-accepted
	for range 3 {
		io.WriteString(c, "ping\n")
		if err := expect(app, "ping\n"); err != nil {
			t.Fatal(err)
		}
		io.WriteString(app, "pong\n")
		if err := expect(c, "pong\n"); err != nil {
			t.Fatal(err)
		}
	}
	if ids := programs(t, "watch"); len(ids) != 1 || attached(t, ids) != 1 {
		t.Fatalf("before: %v, attached %d times", ids, attached(t, ids))
	}
	before := p.Stat("accelerate.messages")
	io.WriteString(app, "last words")
	harness.Eventually(t, 10*time.Second, "the last words at the client", func() error {
		if n := p.Stat("accelerate.messages"); n != before+2 {
			return fmt.Errorf("%d messages", n-before)
		}
		return nil
	})
	p.Kill()
	if ids := programs(t, "watch"); attached(t, ids) != 0 {
		t.Errorf("programs %v are attached after the death of the sidecar", ids)
	}
	// The client's socket still has what was put into it.
	said, err := io.ReadAll(plainly{c})
	if string(said) != "last words" {
		t.Errorf("the client read %q, %v", said, err)
	}
	c.Close()
	close(release)
	harness.Eventually(t, 10*time.Second, "the end of programs and maps", func() error {
		if ids := append(programs(t, "watch"), programs(t, "pass")...); len(ids) > 0 {
			return fmt.Errorf("programs %v are loaded", ids)
		}
		return nil
	})
}

// TestAcceleratedHTTP has requests and responses of all sizes, on connections that are kept.
func TestAcceleratedHTTP(t *testing.T) {
	needAcceleration(t)
	app := application(t, "127.0.0.1:0", func(c *net.TCPConn) {
		in := bufio.NewReader(plainly{c})
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			n, err := io.Copy(io.Discard, r.Body)
			if err == nil {
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n", n)
				_, err = io.Copy(plainly{c}, &noise{end: n})
			}
			if err != nil {
				return
			}
		}
	})
	p := spared(t, "on", app)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 4}, Timeout: time.Minute}
	defer client.CloseIdleConnections()
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for i := range 40 {
				size := int64(1)<<(i%23) + int64(worker)
				resp, err := client.Post("http://"+p.Addr("http"), "application/octet-stream", &noise{end: size})
				if err != nil {
					t.Error(err)
					return
				}
				err = checkNoise(resp.Body, size)
				resp.Body.Close()
				if err != nil || resp.ContentLength != size {
					t.Errorf("%d bytes: %d, %v", size, resp.ContentLength, err)
					return
				}
			}
		})
	}
	all.Wait()
	if n := p.Stat("accelerate.messages"); n < 320 {
		t.Errorf("%d messages passed TCP by", n)
	}
}

// TestAccelerationTouchesOnlyItsOwn has connections that are not the sidecar's.
func TestAccelerationTouchesOnlyItsOwn(t *testing.T) {
	needAcceleration(t)
	app := application(t, "127.0.0.1:0", echo)
	p := spared(t, "on", app)
	ping := func(addr string) {
		t.Helper()
		c := dialTCP(t, addr)
		for range 10 {
			io.WriteString(c, "ping")
			if err := expect(c, "ping"); err != nil {
				t.Fatal(err)
			}
		}
	}
	ping(app.Addr().String()) // past the sidecar
	elsewhere(t, func() {     // the sidecar's port in another network namespace
		ping(application(t, p.Addr("tcp"), echo).Addr().String())
	})
	if n := p.Stat("accelerate.connections"); n != 0 {
		t.Errorf("%d foreign connections are accelerated", n)
	}
	if n := socketsKnown(t, p); n > 0 {
		t.Errorf("%d foreign sockets are in the maps", n)
	}
	ping(p.Addr("tcp"))
	if n := p.Stat("accelerate.connections"); n != 2 {
		t.Errorf("%d connections are accelerated", n)
	}
}

// elsewhere calls f in a network namespace of its own.
func elsewhere(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal("a network namespace: ", err)
	}
	defer func() {
		// The thread must not end: children that it started would be killed (see ownGroup).
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
		runtime.UnlockOSThread()
	}()
	if err := loopbackUp(); err != nil {
		t.Fatal("lo: ", err)
	}
	f()
}

// TestAcceleratedFamilies has an application and clients of both address families.
func TestAcceleratedFamilies(t *testing.T) {
	needAcceleration(t)
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		harness.NotRun(t, err.Error())
	} else {
		l.Close()
	}
	for _, c := range []struct{ name, app, host, bind, client string }{
		{"IPv6", "[::1]:0", "::1", "::1", "::1"},
		{"an IPv4 client of a socket for both", "127.0.0.1:0", "127.0.0.1", "::", "127.0.0.1"},
		{"an application that listens for both", "[::]:0", "127.0.0.1", "127.0.0.1", "127.0.0.1"},
		{"another address of 127.0.0.0/8", "127.0.0.2:0", "127.0.0.2", "127.0.0.1", "127.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := application(t, c.app, echo)
			p := harness.NewSidecar(t).Bootstrap(read(t, "testdata/accelerate.yaml")).At("app", app.Addr().String()).
				Value("host", c.host).Value("bind", c.bind).Value("compat", "true").
				Args("--concurrency", "2", "--accelerate", "on").Run()
			waitListeners(t, p)
			conn := dialTCP(t, net.JoinHostPort(c.client, p.Addr("tcp")[strings.LastIndexByte(p.Addr("tcp"), ':')+1:]))
			for range 10 {
				io.WriteString(conn, "ping")
				if err := expect(conn, "ping"); err != nil {
					t.Fatal(err)
				}
			}
			if n := p.Stat("accelerate.connections"); n != 2 {
				t.Errorf("%d connections are accelerated, not both hops", n)
			}
		})
	}
}

// TestAccelerationThatIsNotToBeHad says why, and is plain TCP or no start at all.
func TestAccelerationThatIsNotToBeHad(t *testing.T) {
	app := application(t, "127.0.0.1:0", echo)
	start := func(mode string) *harness.Proxy {
		return harness.NewSidecar(t).Bootstrap(read(t, "testdata/accelerate.yaml")).At("app", app.Addr().String()).
			Value("host", "127.0.0.1").Value("bind", "127.0.0.1").Value("compat", "false").
			Args("--accelerate", mode, "--accelerate-cgroup", t.TempDir()).Start()
	}
	p := start("on")
	if code := p.WaitExit(30 * time.Second); code == 0 || !strings.Contains(p.Log(), "--accelerate on: ") {
		t.Errorf("exit code %d", code)
	}
	p = start("auto")
	p.WaitReady()
	p.WaitLog("local hops are plain TCP, not accelerated")
	c := dialTCP(t, p.Addr("tcp"))
	io.WriteString(c, "ping")
	if err := expect(c, "ping"); err != nil {
		t.Error(err)
	}
}

// TestSpliceDoesNotSeeWhatIsAccelerated is why it is off unless it is asked for: an application that reads a socket by
// splice(2) gets nothing. Should a kernel change that, this test says so, and the documents are to be changed.
func TestSpliceDoesNotSeeWhatIsAccelerated(t *testing.T) {
	needAcceleration(t)
	result := make(chan error, 1)
	p := spared(t, "on", application(t, "127.0.0.1:0", func(c *net.TCPConn) {
		// A byte that is read makes sure that what follows passes TCP by.
		if err := expect(c, "a"); err != nil {
			result <- err
			return
		}
		io.WriteString(c, "b")
		peek := make([]byte, 1)
		raw, _ := c.SyscallConn()
		raw.Read(func(fd uintptr) bool {
			n, _, _ := syscall.Recvfrom(int(fd), peek, syscall.MSG_PEEK)
			return n > 0
		})
		raw.Control(func(fd uintptr) {
			var pipe [2]int
			if err := syscall.Pipe2(pipe[:], syscall.O_NONBLOCK); err != nil {
				result <- err
				return
			}
			_, err := syscall.Splice(int(fd), nil, pipe[1], nil, 1, 2) // SPLICE_F_NONBLOCK
			syscall.Close(pipe[0])
			syscall.Close(pipe[1])
			result <- err
		})
	}))
	c := dialTCP(t, p.Addr("tcp"))
	io.WriteString(c, "a")
	if err := expect(c, "b"); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "c")
	if err := <-result; err != syscall.EAGAIN {
		t.Errorf("splice: %v instead of EAGAIN: this kernel is better than the documents say", err)
	}
}

// loopbackUp brings up lo of the thread's network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
