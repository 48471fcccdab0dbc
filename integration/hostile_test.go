package integration

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sallyport/integration/harness"
)

// limits are those of the bootstrap (testdata/hostile.yaml), with the values that the control plane gives to an edge.
type limits struct {
	buffer    int // per_connection_buffer_limit_bytes, of listeners and clusters
	streams   int // max_concurrent_streams
	stream    int // initial_stream_window_size
	window    int // initial_connection_window_size
	heads     int // max_request_headers_kb, its default
	handshake int // places of handshakes on a worker (sidecar/conn)
	spans     int // bytes of spans that wait for a collector (sidecar/telemetry)
}

var edgeLimits = limits{buffer: 32 << 10, streams: 100, stream: 64 << 10, window: 1 << 20, heads: 60 << 10, handshake: 2048, spans: 8 << 20}

// times has buffers and windows that are n times as large.
func (l limits) times(n int) limits {
	l.buffer, l.stream, l.window = n*l.buffer, n*l.stream, n*l.window
	return l
}

// What costs memory without a limit of its own, because it has one size.
const (
	perConnection = 16 << 10 // a connection, its codec and timers
	perStream     = 24 << 10 // a stream, its attempt, and three heads, which keep up to 8 KiB each
	perHandshake  = 32 << 10 // measured by TestWhatAHandshakeCostsWhileItWaits: 24 KiB
	frame         = 16 << 10 // SETTINGS_MAX_FRAME_SIZE, and a TLS record
)

// growing is the memory of a buffer that holds n bytes: it grows by doubling.
func growing(n int) int { return 2 * n }

// read is how much a connection reads at once: twice its buffer limit, within 33 and 64 KiB.
func (l limits) read() int { return min(max(2*l.buffer, 33<<10), 64<<10) }

// connection is what a plain connection holds: each way its buffer limit, and one read that went beyond it.
func (l limits) connection() int { return 2*growing(l.buffer+l.read()) + perConnection }

// secure is what TLS adds: ciphertext of one read with the record that it cut, and ciphertext of a piece of 64 KiB that was
// made before the socket was full.
func (l limits) secure() int { return growing(l.read()+frame) + growing(72<<10) }

// exchange is an HTTP/1 request to an HTTP/1 upstream, of which each connection is full.
func (l limits) exchange() int { return 2*l.connection() + perStream }

// response2 is a stream whose response the client does not take: one read of the upstream's connection, of which a part
// waits on the stream and the rest at the connection.
func (l limits) response2() int { return growing(l.read()) + perStream + perConnection }

// upload is the content of a request that the upstream does not read: the retained body and the output, each with its buffer
// limit and the piece that went beyond it.
func (l limits) upload(piece int) int { return 2 * growing(l.buffer+piece) }

// uploads2 is an HTTP/2 connection with an upload on each stream: the codec holds no more than the connection's window, and
// the windows of 16 streams beyond that.
func (l limits) uploads2() int {
	return l.connection() + growing(l.window+16*l.stream) + l.streams*(l.upload(frame)+perStream+perConnection)
}

// head1 is the head of a request that comes over HTTP/1: what waits for the end of a line, with a read that went beyond it,
// and the copy of what was read.
func (l limits) head1() int { return growing(l.heads+l.read()) + growing(l.heads) + perConnection }

// block2 is a header block that is not complete. It may be twice what is allowed of a head, to be answered with 431.
func (l limits) block2() int {
	return growing(2*l.heads+frame) + growing(l.buffer+l.read()) + perConnection
}

const (
	// gcPercent is what the process runs with (sidecar/memory.go): the collector may let garbage reach twice what lives,
	// whether it is the clients' or was there before them.
	gcPercent = 200
	// slack is memory that does not depend on what clients do: the worker's free lists of buffers (4 MiB in each of
	// the seven size classes up to 256 KiB), and what a quiet process does not find worth returning (4 MiB), once for the
	// heap and once for stacks and the collector's own.
	slack = (7*4 + 2*4) << 20
)

// kind is one way to make a proxy hold memory.
type kind struct {
	name     string
	listener string
	// attack starts the clients.
	attack func(s *siege)
	// pressed says whether all the clients are where they press hardest, by facts.
	pressed func(s *siege) error
	// bound is what the limits let the process hold for these clients.
	bound func(l limits) int
	// least must be held, where what the clients want is within the limits. Where it is 0 they want more than
	// the limits allow, as the siege counts it.
	least int
	// without is by how much larger limits let the same clients exceed the bound; 0: not tried.
	without int
}

const mib = 1 << 20

// stat is what the connection manager counts.
func (s *siege) stat(name string) int64 { return s.p.Stat("http.edge." + name) }

// at says whether a number is what it should be.
func at(what string, got int64, want int) error {
	if got != int64(want) {
		return fmt.Errorf("%d %s, not %d", got, what, want)
	}
	return nil
}

func atLeast(what string, got int64, want int) error {
	if got < int64(want) {
		return fmt.Errorf("%d %s, not %d and more", got, what, want)
	}
	return nil
}

var window0 = h2.Setting{ID: h2.SettingInitialWindowSize, Val: 0}

func kinds(t *testing.T) []kind {
	hello := clientHello(t)
	direct := 4000
	return []kind{
		{name: "pipelined requests whose responses from an upstream are not read", without: 256,
			attack:  func(s *siege) { s.crowd(16, "plain", pipelines("/large?size=16000", 16000)) },
			pressed: func(s *siege) error { return atLeast("requests", s.stat("downstream_rq_total"), 16) },
			bound:   func(l limits) int { return 16 * l.exchange() }},
		{name: "pipelined requests whose responses from the edge are not read", without: 256,
			attack:  func(s *siege) { s.crowd(16, "plain", pipelines("/direct", direct)) },
			pressed: func(s *siege) error { return atLeast("requests", s.stat("downstream_rq_total"), 16) },
			bound:   func(l limits) int { return 16 * (l.connection() + perStream + direct) }},
		{name: "pipelined requests over TLS whose responses are not read", listener: "tls",
			attack: func(s *siege) {
				s.crowd(16, "tls", func(c *hostileConn) error {
					return pipelines("/large?size=16000", 16000)(&hostileConn{tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true}), s})
				})
			},
			pressed: func(s *siege) error { return atLeast("requests", s.stat("downstream_rq_total"), 16) },
			bound:   func(l limits) int { return 16 * (l.exchange() + l.secure()) }},
		{name: "large responses that are not read",
			attack:  func(s *siege) { s.crowd(64, "plain", pipelines("/large?size=16000000", 16000000)) },
			pressed: func(s *siege) error { return at("requests", s.stat("downstream_rq_active"), 64) },
			bound:   func(l limits) int { return 64 * l.exchange() }},
		{name: "responses on all streams of HTTP/2 connections without a window",
			attack: func(s *siege) {
				s.crowd(5, "plain", func(c *hostileConn) error {
					h := c.http2(window0)
					for i := range 100 {
						s.demand.Add(4 * mib)
						if err := h.head(uint32(2*i+1), true, h.encode("GET", "/large?size=4194304")); err != nil {
							return err
						}
					}
					return h.w.Flush()
				})
			},
			pressed: func(s *siege) error { return at("requests", s.stat("downstream_rq_active"), 500) },
			bound:   func(l limits) int { return 5 * (l.connection() + growing(l.buffer) + l.streams*l.response2()) }},
		{name: "uploads that an HTTP/1 upstream does not read",
			attack: func(s *siege) {
				s.crowd(20, "plain", func(c *hostileConn) error {
					const size = 32 * mib
					s.demand.Add(size)
					_ = c.Conn.(interface{ SetWriteBuffer(int) error }).SetWriteBuffer(64 << 10)
					_, err := c.Write([]byte(harness.Request("POST", "/deaf", "", fmt.Sprintf("content-length: %d", size))))
					for sent := 0; err == nil && sent < size; sent += frame {
						_, err = c.Write(make([]byte, frame))
					}
					return err
				})
			},
			pressed: func(s *siege) error { return at("requests", s.stat("downstream_rq_active"), 20) },
			bound:   func(l limits) int { return 20 * (l.exchange() + growing(l.buffer+l.read())) }}, // and the body
		{name: "uploads on all streams of HTTP/2 connections that an HTTP/1 upstream does not read",
			attack:  func(s *siege) { s.crowd(3, "plain", upload2("/deaf", 100, 4*mib)) },
			pressed: func(s *siege) error { return at("requests", s.stat("downstream_rq_active"), 300) },
			bound:   func(l limits) int { return 3 * l.uploads2() }},
		{name: "uploads on all streams of HTTP/2 connections that an HTTP/2 upstream does not read",
			attack:  func(s *siege) { s.crowd(3, "plain", upload2("/deaf2", 100, 4*mib)) },
			pressed: func(s *siege) error { return at("requests", s.stat("downstream_rq_active"), 300) },
			bound:   func(l limits) int { return 3 * l.uploads2() }},
		{name: "heads over HTTP/1 that stop before their end", least: 400 * 57000,
			attack: func(s *siege) {
				s.crowd(400, "plain", func(c *hostileConn) error {
					_, err := c.Write([]byte("GET / HTTP/1.1\r\nhost: a\r\ncookie: " + strings.Repeat("x", 29000) + "\r\nx: " + strings.Repeat("y", 29000)))
					return err
				})
			},
			pressed: func(s *siege) error { return at("clients", s.waits.Load(), 400) },
			bound:   func(l limits) int { return 400 * l.head1() }},
		{name: "heads over HTTP/1 that do not end",
			attack: func(s *siege) {
				s.crowd(200, "plain", func(c *hostileConn) error {
					s.demand.Add(4 * mib)
					_, err := c.Write([]byte("GET / HTTP/1.1\r\nhost: a\r\n"))
					line := []byte(strings.Repeat("x: "+strings.Repeat("y", 1000)+"\r\n", 16))
					for sent := 0; err == nil && sent < 4*mib; sent += len(line) {
						_, err = c.Write(line)
					}
					return c.drain()
				})
			},
			pressed: func(s *siege) error { return at("connections ended", s.ended.Load(), 200) },
			bound:   func(l limits) int { return 200 * l.head1() }},
		{name: "heads over HTTP/2 that stop before their end", least: 400 * 100_000,
			attack: func(s *siege) {
				s.crowd(400, "plain", func(c *hostileConn) error {
					h := c.http2()
					_ = h.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, frame)})
					for range 6 {
						_ = h.WriteContinuation(1, false, make([]byte, frame))
					}
					return h.w.Flush()
				})
			},
			pressed: func(s *siege) error { return at("clients", s.waits.Load(), 400) },
			bound:   func(l limits) int { return 400 * l.block2() }},
		{name: "heads over HTTP/2 that do not end",
			attack: func(s *siege) {
				s.crowd(200, "plain", func(c *hostileConn) error {
					s.demand.Add(4 * mib)
					h := c.http2()
					_ = h.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, frame)})
					for range 4 * mib / frame {
						if h.WriteContinuation(1, false, make([]byte, frame)) != nil {
							break
						}
					}
					return h.untilGoAway()
				})
			},
			pressed: func(s *siege) error { return at("connections ended", s.ended.Load(), 200) },
			bound:   func(l limits) int { return 200 * l.block2() }},
		{name: "small header blocks that stand for heads of many megabytes",
			attack: func(s *siege) {
				s.crowd(16, "plain", func(c *hostileConn) error {
					h := c.http2()
					big := hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 4000)}
					block := bytes.Clone(h.encode("GET", "/", big)) // the entry goes into the table
					err := h.head(1, true, block)
					block = append(bytes.Clone(h.encode("GET", "/")), bytes.Repeat([]byte{0x80 | 62}, 10_000)...)
					for i := 1; err == nil && i < 50; i++ {
						s.demand.Add(10_000 * 4000)
						err = h.head(uint32(2*i+1), true, block)
					}
					return errors.Join(err, h.w.Flush())
				})
			},
			pressed: func(s *siege) error { return atLeast("requests", s.stat("downstream_rq_total"), 16*50) },
			bound:   func(l limits) int { return 16 * (l.block2() + growing(l.heads) + l.streams*perStream) }},
		{name: "a burst of large heads", least: 400 * 50_000,
			attack: func(s *siege) {
				s.crowd(200, "plain", func(c *hostileConn) error {
					_, err := c.Write([]byte(harness.Request("GET", "/deaf", "", "cookie: "+strings.Repeat("x", 50_000))))
					return err
				})
				s.crowd(2, "plain", func(c *hostileConn) error {
					h := c.http2()
					for i := range 100 {
						field := hpack.HeaderField{Name: "cookie", Value: strings.Repeat("~", 50_000), Sensitive: true}
						if err := h.head(uint32(2*i+1), true, h.encode("GET", "/deaf", field)); err != nil {
							return err
						}
					}
					return h.w.Flush()
				})
			},
			pressed: func(s *siege) error { return at("requests", s.stat("downstream_rq_active"), 400) },
			// Beside a head: the stream, and the output of the upstream's connection.
			bound: func(l limits) int {
				return 200*l.head1() + 2*(l.block2()+l.connection()) + 200*growing(l.heads) + 400*(perStream+growing(l.heads)+perConnection)
			}},
		{name: "connections that stop behind their ClientHello", listener: "tls", least: 2048 * 16 << 10,
			attack: func(s *siege) {
				s.crowd(2600, "tls", func(c *hostileConn) error {
					if _, err := c.Write(hello); err != nil {
						return err
					}
					return c.drain()
				})
			},
			// Those without a place have taken those of others.
			pressed: func(s *siege) error { return atLeast("connections ended", s.ended.Load(), 2600-edgeLimits.handshake) },
			bound:   func(l limits) int { return l.handshake*perHandshake + 2600*perConnection }},
		{name: "sampling that is forced with a long field while the collector does not answer",
			attack: func(s *siege) {
				s.crowd(4, "plain", func(c *hostileConn) error {
					agent := "user-agent: " + strings.Repeat("u", 55_000)
					buf := make([]byte, 4096)
					for i := range 1500 {
						s.demand.Add(55_000)
						_, err := c.Write([]byte(harness.Request("GET", "/direct", "", agent, fmt.Sprintf("traceparent: 00-%032x-%016x-01", i+1, i+1))))
						for n := 0; err == nil && n < 4000; {
							var k int
							k, err = c.Read(buf)
							n += k
						}
						if err != nil {
							return err
						}
					}
					return nil
				})
			},
			pressed: func(s *siege) error {
				return errors.Join(at("clients", s.waits.Load(), 4), atLeast("spans dropped", s.p.Stat("tracing.opentelemetry.spans_dropped"), 1))
			},
			// The batch that is being sent is there a second time, in protobuf, and a third time in gRPC's buffers.
			bound: func(l limits) int { return 3*l.spans + 4*(l.connection()+growing(l.heads)+perStream) }},
		{name: "requests that are reset at once",
			attack: func(s *siege) {
				s.crowd(16, "plain", func(c *hostileConn) error {
					const requests = 3000
					s.demand.Add(requests * 15_000)
					h := c.http2()
					field := hpack.HeaderField{Name: "cookie", Value: strings.Repeat("~", 15_000), Sensitive: true}
					for i := range requests {
						if h.head(uint32(2*i+1), true, h.encode("GET", "/deaf", field)) != nil ||
							h.WriteRSTStream(uint32(2*i+1), h2.ErrCodeCancel) != nil {
							break
						}
					}
					_ = h.w.Flush()
					return h.untilGoAway()
				})
			},
			pressed: func(s *siege) error { return at("connections ended", s.ended.Load(), 16) },
			bound:   func(l limits) int { return 16 * (l.connection() + l.streams*(perStream+growing(15_000))) }},
		{name: "control frames whose answers are not read",
			attack: func(s *siege) {
				s.crowd(16, "plain", func(c *hostileConn) error {
					h := c.http2()
					err := h.w.Flush()
					var ping bytes.Buffer
					f := h2.NewFramer(&ping, nil)
					for range 4000 {
						_ = f.WritePing(false, [8]byte{})
					}
					for range 16 * mib / ping.Len() {
						s.demand.Add(int64(ping.Len()))
						if err == nil {
							_, err = c.Write(ping.Bytes())
						}
					}
					return err
				})
			},
			pressed: func(s *siege) error { return at("connections ended", s.ended.Load(), 16) },
			bound:   func(l limits) int { return 16 * l.connection() }},
	}
}

// TestAClientOfAnyKindGrowsTheProcessByNoMoreThanItsLimitsSay drives a sidecar that has the limits of an edge, on one worker.
// (An edge is the same program, which takes its configuration from a control plane only.)
func TestAClientOfAnyKindGrowsTheProcessByNoMoreThanItsLimitsSay(t *testing.T) {
	if os.Getenv("SALLYPORT_RACE") == "1" {
		t.Skip("most of the memory would be the race detector's")
	}
	t.Setenv("GOGC", "") // what the process runs with by itself
	authority := harness.NewAuthority(t, "test")
	identity := authority.Issue("localhost")
	for _, k := range kinds(t) {
		t.Run(k.name, func(t *testing.T) {
			g := k.hold(t, edgeLimits, identity)
			bound := k.bound(edgeLimits)
			most, peak := bound+slack, bound+(bound+g.before)*gcPercent/100+slack
			t.Logf("from %s it grew by %s (%s allowed), held %s (%s allowed), kept %s; the clients wanted %s", show(g.before), show(g.peak), show(peak), show(g.held), show(most), show(g.after), show(g.demand))
			if k.least == 0 && g.demand < 2*peak {
				t.Errorf("the clients wanted %s: too little to show anything", show(g.demand))
			}
			if g.held < k.least {
				t.Errorf("%s are held, less than the clients sent: %s", show(g.held), show(k.least))
			}
			if g.peak > peak {
				t.Errorf("it grew by %s, the limits allow %s", show(g.peak), show(peak))
			}
			if g.held > most {
				t.Errorf("it holds %s, the limits allow %s", show(g.held), show(most))
			}
			if g.after > slack {
				t.Errorf("%s stay when the clients have gone", show(g.after))
			}
			if k.without == 0 {
				return
			}
			if g := k.hold(t, edgeLimits.times(k.without), identity); g.peak < peak {
				t.Errorf("it grew by %s under limits that are %d times as large: too little to show anything", show(g.peak), k.without)
			}
		})
	}
}

func show(n int) string { return fmt.Sprintf("%.1f MiB", float64(n)/mib) }

// growth is how large a process was before the clients, and by how much it grew.
type growth struct{ before, peak, held, after, demand int }

// hold has the clients of a kind meet a process with those limits.
func (k kind) hold(t *testing.T, l limits, identity harness.Identity) growth {
	one := harness.NewBackend(t, "one").HTTP1()
	b := harness.NewSidecar(t).Args("--concurrency", "1").Bootstrap(hostileBootstrap(t)).Backend("one", one)
	for name, v := range map[string]int{"buffer": l.buffer, "streams": l.streams, "stream-window": l.stream, "connection-window": l.window} {
		b.Value(name, strconv.Itoa(v))
	}
	b.Value("direct", strings.Repeat("y", 4000)).Value("certificate", identity.CertPath).Value("key", identity.KeyPath)
	p := b.At("large", large(t).Addr().String()).At("deaf", deaf(t).Addr().String()).At("deaf2", deaf2(t).Addr().String()).
		At("collector", deaf(t).Addr().String()).Run()

	ordinary := func(when string) {
		t.Helper()
		if k.listener == "tls" {
			c := harness.Dial(t, p.Addr("tls"), &tls.Config{InsecureSkipVerify: true})
			defer c.Close()
			if m, err := c.Send(harness.Request("GET", "/", "")).Response("GET"); m.Status() != 200 {
				t.Errorf("%s an ordinary client is answered %d, %v", when, m.Status(), err)
			}
			return
		}
		if m := harness.Get(t, p.Addr("plain"), "/"); m.Status() != 200 {
			t.Errorf("%s an ordinary client is answered %d", when, m.Status())
		}
	}
	ordinary("before")
	m := &meter{pid: p.Pid()}
	before := m.still(t, func() string { return "" })

	s := &siege{t: t, p: p, done: make(chan struct{})}
	t.Cleanup(s.over)
	stop := m.watch()
	defer stop()
	k.attack(s)
	harness.Eventually(t, 20*time.Second, "the clients press", func() error {
		err := k.pressed(s)
		if err != nil && s.ended.Load() > 0 {
			err = fmt.Errorf("%w; %d ended: %v", err, s.ended.Load(), s.firstErr())
		}
		return err
	})
	ordinary("meanwhile")
	m.still(t, func() string {
		return fmt.Sprint(s.sent.Load(), s.ended.Load(), s.stat("downstream_rq_total"))
	})
	if err := k.pressed(s); err != nil {
		t.Errorf("the clients do not press any more: %v", err)
	}
	t.Logf("%d clients wait, %d ended (%v), %s sent", s.waits.Load(), s.ended.Load(), s.firstErr(), show(int(s.sent.Load())))
	g := growth{before: before, demand: int(s.demand.Load())}
	g.held = m.least(k.bound(l)+slack+before, 10*time.Second) - before
	ordinary("meanwhile")
	stop()
	g.peak = int(m.peak.Load()) - before
	s.over()
	harness.Eventually(t, 20*time.Second, "the clients' connections have gone", func() error {
		return at("connections", s.stat("downstream_cx_active"), 0)
	})
	// Where the last collection was while all of it lived, the next one may be that of the runtime, every two minutes.
	g.after = m.least(slack+before, 130*time.Second) - before
	ordinary("afterwards")
	if n := p.Stat("server.panics"); n != 0 {
		t.Errorf("%d panics", n)
	}
	return g
}

func hostileBootstrap(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("testdata/hostile.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// meter reads how much memory of its own a process has: RssAnon, which is VmRSS without pages of files.
type meter struct {
	pid  int
	peak atomic.Int64
}

// now is the size in bytes, and -1 where there is none any more.
func (m *meter) now() int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.pid))
	if err != nil {
		return -1
	}
	_, rest, _ := strings.Cut(string(status), "\nRssAnon:")
	n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.SplitN(rest, "\n", 2)[0], "kB")))
	if err != nil {
		return -1
	}
	return n << 10
}

// watch keeps the peak until the returned function is called. (The process returns nothing to the system within half a
// second: looks that are some milliseconds apart miss nothing that matters.)
func (m *meter) watch() (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if n := int64(m.now()); n > m.peak.Load() {
					m.peak.Store(n)
				}
			}
		}
	})
	return sync.OnceFunc(func() { close(done); wg.Wait() })
}

// still waits until neither a fact nor the memory changes any more, and returns the memory.
func (m *meter) still(t *testing.T, fact func() string) (size int) {
	t.Helper()
	const looks, rounding = 40, mib
	seen, last := 0, ""
	harness.Eventually(t, 20*time.Second, "nothing changes any more", func() error {
		n, f := m.now(), fact()
		if n > size+rounding || n < size-rounding || f != last {
			seen, size, last = 0, n, f
		}
		if seen++; seen < looks {
			return fmt.Errorf("%s, %s", show(n), f)
		}
		return nil
	})
	return size
}

// least waits until the memory is at most that, while the process collects and returns what it does not need, and returns it.
// It waits no longer than the process may take for that.
func (m *meter) least(most int, limit time.Duration) (size int) {
	for deadline := time.Now().Add(limit); ; {
		size = m.now()
		if size <= most || time.Now().After(deadline) {
			return size
		}
		time.Sleep(20 * time.Millisecond) // sampling memory, which nothing announces
	}
}
