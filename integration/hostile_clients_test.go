package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sallyport/integration/harness"
)

// siege is a crowd of hostile clients, and the upstreams that they ask for. It ends with its test, or with over.
type siege struct {
	t    *testing.T
	p    *harness.Proxy
	done chan struct{}
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	errs  []error // of clients: how their connections ended

	// What the process would hold if it kept whatever it is sent, and fetched whatever it is asked for.
	demand atomic.Int64
	sent   atomic.Int64 // bytes
	waits  atomic.Int64 // clients that did all they wanted, and stay
	ended  atomic.Int64 // clients whose connection the edge ended
}

// crowd starts n clients of a listener. A client that returns nil stays until the end.
func (s *siege) crowd(n int, listener string, do func(c *hostileConn) error) {
	for range n {
		s.wg.Go(func() {
			raw, err := net.Dial("tcp", s.p.Addr(listener))
			if err != nil {
				s.note(err)
				return
			}
			defer raw.Close()
			// What the kernel takes for a client that does not read is not the edge's: let it be little.
			_ = raw.(*net.TCPConn).SetReadBuffer(8 << 10)
			// It ends with a reset. Otherwise a client's kernel would go on for it, with what it wrote and the edge does not read.
			_ = raw.(*net.TCPConn).SetLinger(0)
			s.mu.Lock()
			s.conns = append(s.conns, raw)
			s.mu.Unlock()
			if err := do(&hostileConn{raw, s}); err != nil {
				s.note(err)
				return
			}
			s.waits.Add(1)
			<-s.done
		})
	}
}

func (s *siege) note(err error) {
	select {
	case <-s.done:
		return
	default:
	}
	s.mu.Lock()
	s.errs = append(s.errs, err)
	s.mu.Unlock()
	s.ended.Add(1)
}

// firstErr is how the first of the connections that the edge ended did end.
func (s *siege) firstErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.errs) == 0 {
		return nil
	}
	return s.errs[0]
}

// over has all clients go away.
func (s *siege) over() {
	select {
	case <-s.done:
		return
	default:
	}
	close(s.done)
	s.mu.Lock()
	for _, c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// hostileConn counts what is sent.
type hostileConn struct {
	net.Conn
	s *siege
}

func (c *hostileConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.s.sent.Add(int64(n))
	return n, err
}

// drain reads until the edge ends the connection, and says how.
func (c *hostileConn) drain() error {
	b, err := io.ReadAll(io.LimitReader(c, 1<<20))
	line, _, _ := strings.Cut(string(b[:min(len(b), 80)]), "\r\n")
	return fmt.Errorf("ended with %q, %v", line, err)
}

// pipelines sends GETs of a path for ever, and reads nothing. Each asks for size bytes.
func pipelines(path string, size int) func(*hostileConn) error {
	const batch = 100
	one := harness.Request("GET", path, "")
	text := []byte(strings.Repeat(one, batch))
	return func(c *hostileConn) error {
		for {
			n, err := c.Write(text)
			c.s.demand.Add(int64(n / len(one) * size))
			if err != nil {
				return err
			}
		}
	}
}

// hostile2 speaks HTTP/2 frame by frame.
type hostile2 struct {
	*hostileConn
	*h2.Framer
	w     *bufio.Writer
	enc   *hpack.Encoder
	block bytes.Buffer
}

// http2 begins HTTP/2. What is written waits for a Flush of w.
func (c *hostileConn) http2(settings ...h2.Setting) *hostile2 {
	h := &hostile2{hostileConn: c, w: bufio.NewWriterSize(c, 64<<10)}
	h.Framer = h2.NewFramer(h.w, bufio.NewReader(c))
	h.enc = hpack.NewEncoder(&h.block)
	_, _ = h.w.WriteString(h2.ClientPreface)
	_ = h.WriteSettings(settings...)
	return h
}

// encode is the header block of a request.
func (h *hostile2) encode(method, path string, fields ...hpack.HeaderField) []byte {
	h.block.Reset()
	for _, f := range append([]hpack.HeaderField{{Name: ":method", Value: method}, {Name: ":scheme", Value: "http"},
		{Name: ":authority", Value: "test.example"}, {Name: ":path", Value: path}}, fields...) {
		_ = h.enc.WriteField(f)
	}
	return h.block.Bytes()
}

// head sends a header block, in as many frames as it needs.
func (h *hostile2) head(id uint32, end bool, block []byte) error {
	const most = 16 << 10
	n := min(len(block), most)
	err := h.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: block[:n], EndStream: end, EndHeaders: n == len(block)})
	for block = block[n:]; err == nil && len(block) > 0; block = block[n:] {
		n = min(len(block), most)
		err = h.WriteContinuation(id, n == len(block), block[:n])
	}
	return err
}

// upload2 opens as many streams as it may and sends size bytes of content on each, as fast as windows are given.
func upload2(path string, streams, size int) func(*hostileConn) error {
	return func(c *hostileConn) error {
		c.s.demand.Add(int64(streams * size))
		h := c.http2()
		for i := range streams {
			if err := h.head(uint32(2*i+1), false, h.encode("POST", path)); err != nil {
				return err
			}
		}
		windows := map[uint32]int{0: 65535}
		left := make([]int, streams)
		for i := range left {
			left[i], windows[uint32(2*i+1)] = size, 65535
		}
		piece := make([]byte, 16<<10)
		for {
			for i := 0; i < streams && windows[0] > 0; i++ {
				id := uint32(2*i + 1)
				for n := 1; n > 0; {
					n = max(0, min(len(piece), left[i], windows[0], windows[id]))
					if n == 0 {
						break
					}
					if err := h.WriteData(id, false, piece[:n]); err != nil {
						return err
					}
					left[i] -= n
					windows[0] -= n
					windows[id] -= n
				}
			}
			if err := h.w.Flush(); err != nil {
				return err
			}
			f, err := h.ReadFrame()
			if err != nil {
				return err
			}
			switch f := f.(type) {
			case *h2.WindowUpdateFrame:
				windows[f.StreamID] += int(f.Increment)
			case *h2.SettingsFrame:
				if f.IsAck() {
					break
				}
				if v, ok := f.Value(h2.SettingInitialWindowSize); ok {
					for i := range streams {
						windows[uint32(2*i+1)] += int(v) - 65535
					}
				}
				if err := h.WriteSettingsAck(); err != nil {
					return err
				}
			case *h2.GoAwayFrame:
				return fmt.Errorf("GOAWAY %v", f.ErrCode)
			}
		}
	}
}

// untilGoAway reads to the end of the connection and says which error the edge gave.
func (h *hostile2) untilGoAway() error {
	for {
		f, err := h.ReadFrame()
		if err != nil {
			return err
		}
		if g, ok := f.(*h2.GoAwayFrame); ok {
			return fmt.Errorf("GOAWAY %v", g.ErrCode)
		}
	}
}

// clientHello is the first flight of a TLS client.
func clientHello(t *testing.T) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		_ = tls.Client(theirs, &tls.Config{ServerName: "localhost", InsecureSkipVerify: true}).Handshake()
	}()
	record := make([]byte, 5)
	if _, err := io.ReadFull(ours, record); err != nil {
		t.Fatal(err)
	}
	hello := make([]byte, int(record[3])<<8|int(record[4]))
	if _, err := io.ReadFull(ours, hello); err != nil {
		t.Fatal(err)
	}
	return append(record, hello...)
}

// listenRaw serves connections with handle until the end of the test.
func listenRaw(t *testing.T, handle func(net.Conn)) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() { defer c.Close(); handle(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l
}

// deaf is an upstream that accepts connections and reads nothing.
func deaf(t *testing.T) net.Listener {
	done := make(chan struct{})
	l := listenRaw(t, func(c net.Conn) {
		_ = c.(*net.TCPConn).SetReadBuffer(8 << 10)
		<-done
	})
	t.Cleanup(func() { close(done) }) // runs before that of listenRaw
	return l
}

// deaf2 is an HTTP/2 upstream that reads heads and no content.
func deaf2(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Protocols: &protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000},
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Close(); wg.Wait() })
	return l
}

// large answers each request with as many bytes as the size in its query says.
func large(t *testing.T) net.Listener {
	zeros := make([]byte, 64<<10)
	return listenRaw(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			size, _ := strconv.Atoi(req.URL.Query().Get("size"))
			if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n", size); err != nil {
				return
			}
			for size > 0 {
				n, err := c.Write(zeros[:min(size, len(zeros))])
				if err != nil {
					return
				}
				size -= n
			}
		}
	})
}
