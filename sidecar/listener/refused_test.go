package listener

import (
	"strings"
	"testing"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

// TestARequestWithBadContentIsOneRequest in the log and the counts, with what its client was answered.
func TestARequestWithBadContentIsOneRequest(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	for name, c := range map[string]struct{ raw, logged string }{
		"a chunk without its size":       {head + "zz", "400 http1.codec_error"},
		"a chunk without its end":        {head + "1\r\nabc", "400 http1.codec_error"},
		"a length among the trailers":    {head + "0\r\ncontent-length: 3\r\n", "400 http1.codec_error"},
		"trailers larger than the limit": {head + "0\r\na: " + strings.Repeat("x", 70000) + "\r\n", "431 http1.headers_too_large"},
		"a head, in a second request":    {getRequest + "GET", "200 direct_response 400 http1.codec_error"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepped(t)
			var log lines
			s.manager.AccessLogs = []stream.AccessLog{&log}
			if strings.HasPrefix(c.raw, "POST") {
				s.manager.Filters = holding(t)
			}
			s.direct(200, nil)
			s.serve()
			k := s.dial(0)
			s.send(k, c.raw+"\n")
			s.until("the end of the connection", func() bool { k.read(); return k.gone })
			k.close()
			s.until("the connection is closed", func() bool { return len(s.open()) == 0 })
			if got := strings.Join(log, " "); got != c.logged {
				t.Errorf("logged %q, want %q", got, c.logged)
			}
			st := s.manager.Stats
			if total, answered := st.Value(stream.StatRqTotal), st.Value(stream.StatRq2xx)+st.Value(stream.StatRq4xx); total != int64(len(log)) || answered != total || st.Value(stream.StatRqActive) != 0 {
				t.Errorf("%d requests are counted, %d answers", total, answered)
			}
		})
	}
}

// holds is a filter that keeps each request.
type holds struct{}

func (holds) Name() string                                                   { return "holds" }
func (holds) RequestHead(stream.Context, *message.Head, bool) stream.Verdict { return stream.Hold }

func holding(t *testing.T) *stream.Chain {
	t.Helper()
	c, err := stream.NewChain([]stream.Filter{holds{}}, []route.FilterID{0})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAnErrorOfTheProtocolIsCountedOnce(t *testing.T) {
	const ping = "\x00\x00\x08\x06\x00\x00\x00\x00\x01" + "12345678" // on a stream (RFC 9113 §6.7)
	for name, raw := range map[string]string{
		"HTTP/1, in the head":                getRequest[:5] + "\x00\r\n",
		"HTTP/1, in the content":             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"HTTP/2, with no stream":             head2(10)[:24+9] + ping,
		"HTTP/2, with a stream that is open": head2(10) + ping,
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepped(t)
			s.manager.Filters = holding(t)
			s.direct(200, nil)
			s.serve()
			k := s.dial(0)
			s.send(k, raw)
			s.until("the end of the connection", func() bool { k.read(); return k.gone })
			if n := s.manager.Stats.Value(stream.StatCxProtocolError); n != 1 {
				t.Errorf("counted %d times", n)
			}
		})
	}
}
