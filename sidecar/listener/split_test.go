package listener

import (
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"testing"

	"sallyport/sidecar/hpack"
	"sallyport/sidecar/message"
	"sallyport/sidecar/stream"
)

// inPieces sends p a piece at a time, each read by the proxy before the next comes.
func (s *stepped) inPieces(c *socket, p string, piece int) {
	s.t.Helper()
	k := s.only()
	from := k.conn.BytesRead()
	for sent := 0; sent < len(p) && !c.gone; {
		n := c.write(p[sent:min(sent+piece, len(p))])
		sent += n
		s.until("the piece is read", func() bool {
			c.read()
			return c.gone || k.phase == closed || k.conn.Closing() || k.conn.BytesRead() == from+uint64(sent)
		})
	}
}

// head2 is a GET over HTTP/2 as HEADERS and CONTINUATION frames, with a field of that many bytes.
func head2(n int) string {
	enc := hpack.NewEncoder(4096)
	block := enc.Begin(nil)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "a"}, {"cookie", strings.Repeat("~", n)}} {
		block = enc.Field(block, message.NameOf([]byte(f[0])), f[0], []byte(f[1]), false)
	}
	b := []byte(preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	kind, flags := byte(1), byte(1)
	for len(block) > 0 {
		k := min(len(block), 16384)
		if k == len(block) {
			flags |= 4
		}
		b = binary.BigEndian.AppendUint32(b, uint32(k)<<8|uint32(kind))
		b = append(b, flags)
		b = append(binary.BigEndian.AppendUint32(b, 1), block[:k]...)
		block, kind, flags = block[k:], 9, 0
	}
	return string(b)
}

// lines is an access log.
type lines []string

func (l *lines) Log(s *stream.Stream) { *l = append(*l, fmt.Sprint(s.Status, " ", s.Details)) }

// TestAHeadIsTakenHoweverItsBytesAreSplit: what a head may be is for max_request_headers_kb to say, and not for
// per_connection_buffer_limit_bytes, the listener's inspection, or the number of packets. What exceeds it is answered.
func TestAHeadIsTakenHoweverItsBytesAreSplit(t *testing.T) {
	const most = 60 << 10
	for _, limit := range []int{1024, 32 << 10, 1 << 20} {
		for _, n := range []int{100, 5000, 20000, 40000, 59000, 70000} {
			for _, piece := range []int{1400, 1 << 20} {
				for _, inspect := range []bool{false, true} {
					t.Run(fmt.Sprintf("limit %d, cookie of %d, pieces of %d, inspected %v", limit, n, piece, inspect), func(t *testing.T) {
						s := newStepped(t)
						s.bufferLimit, s.inspect = limit, inspect
						var log lines
						s.manager.AccessLogs = []stream.AccessLog{&log}
						s.direct(204, nil)
						s.serve()
						want, logged := "HTTP/1.1 204 ", "204 direct_response 204 direct_response"
						if n > most {
							want, logged = "HTTP/1.1 431 ", "431 http1.headers_too_large 431 http2.headers_too_large"
						}
						c := s.dial(0)
						s.inPieces(c, "GET / HTTP/1.1\r\nHost: a\r\nCookie: "+strings.Repeat("x", n)+"\r\n\r\n", piece)
						s.until("an answer", func() bool { c.read(); return len(c.got) > 0 || c.gone })
						if !strings.HasPrefix(string(c.got), want) {
							t.Errorf("answered %q, want %q", c.got, want)
						}
						c.close()
						s.until("the connection is closed", func() bool { return len(s.open()) == 0 })

						// HEADERS of the answer on stream 1: SETTINGS, their acknowledgment, then a head.
						c = s.dial(0)
						s.inPieces(c, head2(n), piece)
						var kinds string
						s.until("an answer over HTTP/2", func() bool {
							c.read()
							kinds = frameKinds(c.got)
							return strings.ContainsAny(kinds, "17") || c.gone // HEADERS, GOAWAY
						})
						if !strings.Contains(kinds, "1") {
							t.Errorf("answered frames of the types %s over HTTP/2", kinds)
						}
						if got := strings.Join(log, " "); got != logged {
							t.Errorf("logged %q, want %q", got, logged)
						}
					})
				}
			}
		}
	}
}

// frameKinds is a digit for each whole frame.
func frameKinds(p []byte) string {
	var kinds strings.Builder
	for len(p) >= 9 {
		n := int(p[0])<<16 | int(p[1])<<8 | int(p[2])
		if len(p) < 9+n {
			break
		}
		fmt.Fprint(&kinds, p[3])
		p = p[9+n:]
	}
	return kinds.String()
}

// TestAResponseHeadIsTakenHoweverItsBytesAreSplit: the same for upstreams and their clusters.
func TestAResponseHeadIsTakenHoweverItsBytesAreSplit(t *testing.T) {
	for _, limit := range []int{1024, 32 << 10, 1 << 20} {
		for _, piece := range []int{1400, 1 << 20} {
			t.Run(fmt.Sprintf("limit %d, pieces of %d", limit, piece), func(t *testing.T) {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				s := newStepped(t)
				s.cluster.BufferLimit = limit
				s.to(l.Addr().String())
				s.serve()
				c := s.dial(0)
				s.send(c, getRequest)
				up := s.accept(l)
				for answer := "HTTP/1.1 204 No Content\r\nset-cookie: " + strings.Repeat("x", 50000) + "\r\n\r\n"; answer != ""; {
					n := min(piece, len(answer))
					if _, err := up.Write([]byte(answer[:n])); err != nil {
						break // what the client is answered says why
					}
					answer = answer[n:]
					for range 3 {
						s.worker.Step(0)
					}
				}
				s.until("an answer", func() bool { c.read(); return strings.Contains(string(c.got), "\r\n\r\n") || c.gone })
				if !strings.HasPrefix(string(c.got), "HTTP/1.1 204 ") {
					t.Errorf("answered %.100q", c.got)
				}
			})
		}
	}
}
