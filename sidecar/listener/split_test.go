package listener

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"sallyport/sidecar/hpack"
	"sallyport/sidecar/http2"
	"sallyport/sidecar/message"
	"sallyport/sidecar/stream"
)

// inPieces sends p a piece at a time, each read by the proxy before the next comes.
func (s *stepped) inPieces(c *socket, p string, piece int) {
	s.t.Helper()
	open := s.open()
	if len(open) == 0 {
		c.gone = true // the proxy ended the connection before
		return
	}
	k := open[0]
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
	b := []byte(http2.Preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00")
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

// perStream is what was answered, where that is HTTP/2 apart for each stream: in which order streams
// send, and in how many frames, depends on when the output is full.
func perStream(p []byte) string {
	if len(p) < 9 || string(p[3:9]) != "\x04\x00\x00\x00\x00\x00" {
		return fmt.Sprintf("%q", p)
	}
	streams := map[uint32]string{}
	for len(p) >= 9 {
		n := int(p[0])<<16 | int(p[1])<<8 | int(p[2])
		if len(p) < 9+n {
			break
		}
		id := binary.BigEndian.Uint32(p[5:])
		switch payload := p[9 : 9+n]; {
		case p[3] == 0:
			streams[id] += string(payload) // content, and its end below
		case p[3] == 1: // compressed with what came before on other streams
			streams[id] += "head"
		default:
			streams[id] += fmt.Sprintf(" type %d %x", p[3], payload)
		}
		if p[3] <= 1 && p[4]&1 != 0 {
			streams[id] += "."
		}
		p = p[9+n:]
	}
	return fmt.Sprint(streams)
}

// FuzzConnectionSplits sends the same bytes at once and in pieces to a listener, where inspection, the choice of the codec,
// the limits of the connection and the turns of the loop come in: what is answered and logged must be the same.
func FuzzConnectionSplits(f *testing.F) {
	f.Add([]byte(getRequest+"POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"), uint64(1))
	f.Add([]byte(strings.Repeat(getRequest, 100)), uint64(2))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\nCookie: "+strings.Repeat("x", 3000)+"\r\n\r\n"), uint64(3))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\nCookie: "+strings.Repeat("x", 70000)+"\r\n\r\n"), uint64(4))
	f.Add([]byte("PROPFIND http://a/ HTTP/1.0\r\n\r\n"), uint64(5))
	f.Add([]byte(head2(10)), uint64(6))
	f.Add([]byte(head2(5000)), uint64(7))
	f.Add([]byte(getRequests2(50)), uint64(8))
	f.Add([]byte(http2.Preface[:20]+"x"), uint64(9))
	f.Add([]byte("\r\n"+getRequest), uint64(10))
	f.Fuzz(func(t *testing.T, raw []byte, seed uint64) {
		if len(raw) > 100<<10 {
			return // more than a window of HTTP/2: when credit is given depends on when it was used
		}
		raw = append(raw, '\n') // ends the last line: a partial one is not judged yet
		r := rand.New(rand.NewPCG(seed, 0))
		come := func(piece func(left int) int) string {
			s := newStepped(t)
			s.bufferLimit, s.inspect = int(1024<<(seed%8)), seed&8 != 0
			var log lines
			s.manager.AccessLogs = []stream.AccessLog{&log}
			s.manager.HTTP1.AllowHTTP10, s.manager.HTTP1.DefaultHost = true, "d"
			s.direct(200, []byte("hello"))
			s.serve()
			c := s.dial(0)
			k := s.only()
			for left := string(raw); left != "" && !c.gone; {
				n := min(len(left), piece(len(left)))
				s.inPieces(c, left[:n], n)
				left = left[n:]
			}
			for range 100 {
				s.worker.Step(0)
			}
			// The kernel may take its time to deliver.
			s.until("what was sent is here", func() bool { c.read(); return c.gone || uint64(len(c.got)) >= k.conn.BytesWritten() })
			ended := c.gone || k.phase == closed || k.conn.Closing()
			return fmt.Sprintf("%s, ended %v, logged %q", perStream(c.got), ended, log)
		}
		whole := come(func(left int) int { return left })
		// At most some hundred pieces: each is a round through the kernel.
		most := 2 + 2*len(raw)/100
		split := come(func(int) int { return 1 + r.IntN(most) })
		if goAway := " type 7 "; strings.Contains(whole, goAway) && strings.Contains(split, goAway) {
			return // an error of HTTP/2's connection ends what is under way, however far it came
		}
		if split != whole {
			t.Fatalf("at once:\n%s\nin pieces:\n%s", whole, split)
		}
	})
}
