package listener

import (
	"strings"
	"testing"
	"time"
)

// TestARequestThatIsHalfSentWhenItsConnectionDrainsIsServed, and is the last: a client cannot tell whether one that
// HTTP/1 gives no answer to was processed (RFC 9110 §9.2.2).
func TestARequestThatIsHalfSentWhenItsConnectionDrainsIsServed(t *testing.T) {
	for name, c := range map[string]struct {
		before, sent, then string
		want               string // how the answer to it begins; "": there is none
	}{
		"the first request":           {"", getRequest[:10], getRequest[10:], "HTTP/1.1 200 "},
		"one after another":           {getRequest, getRequest[:10], getRequest[10:], "HTTP/1.1 200 "},
		"one byte of it":              {"", getRequest[:1], getRequest[1:], "HTTP/1.1 200 "},
		"a part of HTTP/2's preface":  {"", "PRI * HTTP/2.0", "", ""}, // a client may connect again
		"one that is not sent":        {getRequest, "", "", ""},
		"one that is never completed": {getRequest, getRequest[:10], "", "HTTP/1.1 408 "},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepped(t)
			s.manager.RequestHeaders, s.manager.Drain = 5*time.Second, time.Minute
			s.direct(200, nil)
			s.serve()
			client := s.dial(0)
			if c.before != "" {
				s.inPieces(client, c.before, len(c.before))
				s.until("an answer", func() bool { return client.answers() == 1 })
				client.got, client.counted = nil, 0
			}
			s.inPieces(client, c.sent, len(c.sent)+1)
			s.only().drain()
			s.pass(time.Second)
			if client.read(); client.gone != (c.want == "") {
				t.Fatalf("a second later the connection is closed: %v", client.gone)
			}
			if c.want == "" {
				return
			}
			s.inPieces(client, c.then, len(c.then)+1)
			s.pass(5 * time.Second)
			s.until("the connection ends", func() bool { client.read(); return client.gone })
			if got := string(client.got); !strings.HasPrefix(got, c.want) || !strings.Contains(got, "connection: close\r\n") {
				t.Errorf("answered %q", got)
			}
		})
	}
}
