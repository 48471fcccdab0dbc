package listener

import (
	"bytes"
	"testing"
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
