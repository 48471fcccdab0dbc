package listener

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/hpack"
	"sallyport/sidecar/http2"
	"sallyport/sidecar/message"
	"sallyport/sidecar/stream"
)

const getRequest = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"

// TestPipelinedRequestsThatAreNotReadHoldLittle: a client sends requests as fast as it can and reads no response.
// At no time does the output hold more than the connection's limit and one response; when
// the client reads, all of them are answered.
func TestPipelinedRequestsThatAreNotReadHoldLittle(t *testing.T) {
	const requests, limit, body = 4000, 32 << 10, 4000
	s := newStepped(t)
	s.bufferLimit = limit
	s.direct(200, bytes.Repeat([]byte("y"), body))
	s.serve()
	c := s.dial(4096)
	k := s.only()
	all := bytes.Repeat([]byte(getRequest), requests)
	most := 0
	write := func() {
		if len(all) > 0 {
			all = all[c.write(string(all)):]
		}
		most = max(most, k.conn.Unsent())
	}
	idle := 0
	for sent := uint64(0); idle < 200; { // until nothing moves any more
		write()
		s.worker.Step(0)
		if now := k.conn.BytesWritten(); now > sent {
			sent, idle = now, 0
		}
		idle++
	}
	s.until("everything is answered", func() bool {
		write()
		return c.answers() == requests
	})
	if most > limit+body+1000 {
		t.Errorf("%d bytes waited for a client that reads nothing; the limit is %d", most, limit)
	}
	if most < limit/2 {
		t.Errorf("only %d bytes waited: the client read after all, and nothing was tested", most)
	}
}

// TestATurnServesAFewRequestsOfAConnection: a client sends thousands at once, which the proxy answers
// itself; in no turn of the loop are more begun than its share, and all are answered.
func TestATurnServesAFewRequestsOfAConnection(t *testing.T) {
	const requests = 2000
	for name, raw := range map[string]string{
		"HTTP/1": strings.Repeat(getRequest, requests),
		"HTTP/2": getRequests2(requests),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepped(t)
			s.direct(204, nil)
			s.serve()
			c := s.dial(0)
			begun := func() int { return int(s.manager.Stats.Value(stream.StatRqTotal)) }
			most, before := 0, 0
			s.until("everything is answered", func() bool {
				raw = raw[c.write(raw):]
				c.read()
				most, before = max(most, begun()-before), begun()
				return before == requests
			})
			// A turn presents what was kept and reads four times.
			if share := 5 * message.TurnCost / message.HeadCost; most > share {
				t.Errorf("%d requests in a turn, the share is %d", most, share)
			}
			if c.gone {
				t.Errorf("the proxy ended the connection: %v", c.err)
			}
		})
	}
}

// getRequests2 is a connection's worth of GETs over HTTP/2.
func getRequests2(n int) string {
	enc := hpack.NewEncoder(4096)
	b := []byte(http2.Preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	for i := range n {
		block := enc.Begin(nil)
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "a"}} {
			block = enc.Field(block, message.NameOf([]byte(f[0])), f[0], []byte(f[1]), false)
		}
		b = append(b, 0, 0, byte(len(block)), 1, 5)
		b = binary.BigEndian.AppendUint32(b, uint32(2*i+1))
		b = append(b, block...)
	}
	return string(b)
}

// TestAClientThatWritesBeforeItReadsGetsItsAnswer: the answer is early and the connection ends with it, but the client,
// which is still writing its upload, must not meet a closed one before it reads.
func TestAClientThatWritesBeforeItReadsGetsItsAnswer(t *testing.T) {
	const size = 24 << 20 // many times what the kernel's buffers take
	s := newStepped(t)
	s.direct(413, []byte("too large"))
	s.serve()
	c := s.dial(0)
	body := strings.Repeat("x", 1<<20)
	s.send(c, fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", size))
	for sent := 0; sent < size && !c.gone; sent += len(body) {
		s.send(c, body)
	}
	if c.gone {
		t.Fatalf("the connection ended while the client wrote: %v", c.err)
	}
	s.until("the answer and the end", func() bool { c.read(); return c.gone })
	if !strings.HasPrefix(string(c.got), "HTTP/1.1 413 ") || !strings.HasSuffix(string(c.got), "too large") || c.err != nil {
		t.Errorf("answered %q, %v", c.got, c.err)
	}
}

// TestAResponseThatIsNotReadDoesNotStay: it is complete, so no stream has a timer any more; what waits
// for a client that takes nothing is given up after stream_idle_timeout.
func TestAResponseThatIsNotReadDoesNotStay(t *testing.T) {
	// A client that would take everything at once, as far as windows go.
	const settings = "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x7f\xff\xff\xff"
	const window = "\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\xff\x00\x00"
	many := getRequests2(1)
	http2 := http2.Preface + settings + window + strings.TrimPrefix(many, http2.Preface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	const size = 16 << 20
	for _, c := range []struct {
		name, sent string
		reads      bool
	}{
		{"HTTP/1", getRequest, false},
		{"HTTP/1, a slow reader", getRequest, true},
		{"HTTP/2", http2, false},
		{"HTTP/2, a slow reader", http2, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStepped(t)
			s.bufferLimit = 32 << 10
			s.manager.StreamIdle, s.manager.ConnectionIdle = time.Minute, 24*time.Hour
			s.direct(200, bytes.Repeat([]byte("x"), size))
			s.serve()
			client := s.dial(4096)
			s.send(client, c.sent)
			k := s.only()
			s.until("the response waits", func() bool { return k.conn.BytesWritten() > 0 && k.conn.Unsent() > 0 && k.http.active == 0 })
			s.pass(50 * time.Second)
			if k.phase == closed {
				t.Fatal("given up before its time")
			}
			if c.reads {
				for range 20 { // each time as much as makes room for more
					before := k.conn.BytesWritten()
					s.until("a piece is sent", func() bool {
						client.read()
						return k.conn.BytesWritten() > before || k.conn.Unsent() == 0
					})
					s.pass(50 * time.Second)
				}
				s.until("everything is read", func() bool { client.read(); return len(client.got) >= size })
				return
			}
			s.pass(2 * time.Minute)
			s.until("the connection ends", func() bool { return k.phase == closed })
			if n := s.manager.Stats.Value(stream.StatRqIdleTimeout); n != 1 {
				t.Errorf("downstream_rq_idle_timeout is %d", n)
			}
			// The client must not take a part for the whole.
			s.until("the client learns of it", func() bool { client.read(); return client.gone })
			if client.err == nil {
				t.Error("the end looks like a good one")
			}
		})
	}
}

// TestABurstOfLargeHeadsDoesNotStayInMemory: streams, codecs and heads are kept for reuse, but not with the memory of the
// largest that each of them has seen.
func TestABurstOfLargeHeadsDoesNotStayInMemory(t *testing.T) {
	skipUnderRace(t)
	const requests, size = 400, 50000
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it accepts nothing, and answers nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s := newStepped(t)
	s.to(silent.Addr().String())
	s.serve()
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what is in pools goes with the second
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	request := "GET / HTTP/1.1\r\nHost: a\r\nCookie: " + strings.Repeat("x", size) + "\r\n\r\n"
	before := heap()
	active := func() int64 { return s.manager.Stats.Value(stream.StatRqActive) }
	var clients []*socket
	for i := range requests {
		c := s.dial(0)
		s.send(c, request)
		s.until("the request is under way", func() bool { return active() == int64(i+1) })
		clients = append(clients, c)
	}
	during := heap() - before
	for _, c := range clients {
		c.close()
	}
	s.until("the connections are gone", func() bool { return len(s.open()) == 0 })
	// The worker's pool of buffers is bounded by itself.
	if after := heap() - before; during < requests*size || after > during/3 {
		t.Errorf("%d KiB during the burst, %d KiB after it", during>>10, after>>10)
	}
}
