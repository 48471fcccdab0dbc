package listener

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/http2"
)

// TestAHeadHasItsTime: the time of a head runs from its first byte to its last, whatever its
// bytes look like and however they come; a connection on which nothing began is idle.
func TestAHeadHasItsTime(t *testing.T) {
	const start2 = http2.Preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	whole2 := head2(10)
	headers2 := strings.TrimPrefix(whole2, start2)
	open2 := headers2[:3] + "\x01\x01" + headers2[5:] // without END_HEADERS
	const (
		http1  = "HTTP/1.1 408 "
		goAway = "GOAWAY"
		silent = ""
	)
	for _, c := range []struct {
		name     string
		sent     string // at once
		then     string // a byte of it twenty times in the time of a head, or less where it ends
		headers  time.Duration
		idle     time.Duration
		want     string
		after    time.Duration
		detail   string
		finishes string // what completes the head
	}{
		{name: "nothing", want: silent, headers: time.Second, after: time.Hour},
		{name: "a byte", sent: "G", want: http1, headers: time.Second, after: time.Second, detail: "request_header_timeout", finishes: getRequest[1:]},
		{name: "an empty line", sent: "\r\n", want: http1, headers: time.Second, after: time.Second, detail: "request_header_timeout", finishes: getRequest},
		{name: "half a line", sent: "GET / HT", want: http1, headers: time.Second, after: time.Second, detail: "request_header_timeout", finishes: getRequest[8:]},
		{name: "whole lines", sent: "GET / HTTP/1.1\r\nHost: a\r\n", want: http1, headers: time.Second, after: time.Second, detail: "request_header_timeout", finishes: "\r\n"},
		{name: "a byte at a time", sent: "GET / HTTP/1.1\r\nHost: a\r\nx: ", then: strings.Repeat("y", 20), want: http1, headers: time.Second, after: time.Second, detail: "request_header_timeout", finishes: "\r\n\r\n"},
		{name: "lines at a time", sent: "GET / HTTP/1.1\r\nHost: a\r\n", then: strings.Repeat("a:\r\n", 5), want: http1, headers: time.Second, after: time.Second, detail: "request_header_timeout", finishes: "\r\n"},
		{name: "a request behind one that was answered", sent: getRequest + "GET", want: http1, headers: time.Second, after: time.Second, detail: "request_header_timeout", finishes: getRequest[3:]},
		{name: "without its own timeout it is a stream that is idle", sent: "GET / HTTP/1.1\r\n", want: http1, idle: time.Minute, after: time.Minute, detail: "stream_idle_timeout", finishes: "Host: a\r\n\r\n"},
		{name: "the shorter of the two", sent: "GET / HTTP/1.1\r\n", want: http1, headers: time.Hour / 2, idle: time.Minute, after: time.Minute, detail: "stream_idle_timeout", finishes: "Host: a\r\n\r\n"},
		{name: "part of a preface", sent: http2.Preface[:10], want: http1, headers: time.Second, after: time.Second, detail: "request_header_timeout", finishes: whole2[10:]},
		{name: "HTTP/2 without a request", sent: start2, want: goAway, headers: time.Second, after: time.Hour},
		{name: "HEADERS without END_HEADERS", sent: start2 + open2, want: goAway, headers: time.Second, after: time.Second, detail: "request_header_timeout", finishes: "\x00\x00\x00\x09\x04\x00\x00\x00\x01"},
		{name: "half of HEADERS", sent: whole2[:len(whole2)-3], want: goAway, headers: time.Second, after: time.Second, detail: "request_header_timeout", finishes: whole2[len(whole2)-3:]},
		{name: "HEADERS a byte at a time", sent: whole2[:len(whole2)-9], then: whole2[len(whole2)-9 : len(whole2)-2], want: goAway, headers: time.Second, after: time.Second, detail: "request_header_timeout", finishes: whole2[len(whole2)-2:]},
		{name: "HTTP/2 without a timeout of its own", sent: start2 + open2, want: goAway, idle: time.Minute, after: time.Minute, detail: "stream_idle_timeout", finishes: "\x00\x00\x00\x09\x04\x00\x00\x00\x01"},
	} {
		for _, finish := range []bool{false, true} {
			if finish && c.finishes == "" {
				continue
			}
			t.Run(fmt.Sprintf("%s, completed %v", c.name, finish), func(t *testing.T) {
				s := newStepped(t)
				var log lines
				s.manager.AccessLogs = append(s.manager.AccessLogs, &log)
				s.manager.RequestHeaders, s.manager.StreamIdle, s.manager.ConnectionIdle = c.headers, c.idle, time.Hour
				s.direct(204, nil)
				s.serve()
				client := s.dial(0)
				s.inPieces(client, c.sent, len(c.sent)+1)
				answers := client.answers()
				begun := len(log)
				client.got = nil
				step := c.after / 20
				s.worker.Step(0)
				if finish {
					s.now = s.now.Add(c.after - step)
					s.worker.Step(0)
					s.inPieces(client, c.then+c.finishes, len(c.then+c.finishes))
					s.pass(10 * c.after)
					if len(log) != begun+1 || log[begun] != "204 direct_response" {
						t.Errorf("logged %q", log[begun:])
					}
					return
				}
				for i := range 19 {
					s.now = s.now.Add(step)
					s.worker.Step(0)
					if i < len(c.then) {
						s.inPieces(client, c.then[i:i+1], 1)
					}
				}
				if client.read(); client.gone || len(client.got) > 0 {
					t.Fatalf("ended too early, with %q", client.got)
				}
				s.now = s.now.Add(step + 50*time.Millisecond)
				s.worker.Step(0)
				s.pass(time.Minute) // for the closing
				s.until("the connection ends", func() bool { client.read(); return client.gone || len(s.open()) == 0 })
				client.read()
				got := string(client.got)
				switch c.want {
				case goAway:
					if got = frameKinds(client.got); !strings.HasSuffix(got, "7") {
						t.Errorf("answered frames of the types %s", got)
					}
				default:
					if c.want == silent != (got == "") || !strings.HasPrefix(got, c.want) {
						t.Errorf("answered %q after %d others", got, answers)
					}
				}
				if last := strings.Join(log[begun:], " "); !strings.HasSuffix(last, c.detail) || c.detail == "" && last != "" {
					t.Errorf("logged %q, want %q", last, c.detail)
				}
			})
		}
	}
}

// TestEachHeadHasATimeOfItsOwn: what is left of one head's time is not taken from the next.
func TestEachHeadHasATimeOfItsOwn(t *testing.T) {
	s := newStepped(t)
	s.manager.RequestHeaders = time.Second
	s.direct(204, nil)
	s.serve()
	c := s.dial(0)
	for i := range 5 {
		s.inPieces(c, getRequest[:10], 10)
		s.pass(900 * time.Millisecond)
		// The end of this head and the beginning of the next in one piece.
		s.inPieces(c, getRequest[10:]+"GET", len(getRequest))
		s.until("an answer", func() bool { return c.answers() == 2*i+1 })
		s.pass(900 * time.Millisecond)
		s.inPieces(c, getRequest[3:], len(getRequest))
		s.until("an answer", func() bool { return c.answers() == 2*i+2 })
	}
	if strings.Contains(string(c.got), "408") {
		t.Errorf("a head that came in time was answered 408")
	}
}

// TestASlowHeadOverHTTP2LetsOtherRequestsEnd: the client learns which requests were taken, and gets their responses.
func TestASlowHeadOverHTTP2LetsOtherRequestsEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newStepped(t)
	s.manager.RequestHeaders = time.Second
	s.to(l.Addr().String())
	s.serve()
	c := s.dial(0)
	s.inPieces(c, getRequests2(2), 1<<20)
	ups := []net.Conn{s.accept(l), s.accept(l)}
	third := getRequests2(3)[len(getRequests2(2)):]
	s.inPieces(c, third[:len(third)-1], 1<<20)
	s.pass(2 * time.Second)
	s.until("GOAWAY", func() bool { c.read(); return strings.HasSuffix(frameKinds(c.got), "7") })
	goAway := c.got[len(c.got)-8:]
	if last := goAway[3]; last != 3 {
		t.Errorf("GOAWAY names stream %d as the last that was taken, want 3", last)
	}
	s.pass(time.Minute)
	for _, up := range ups {
		if _, err := up.Write([]byte("HTTP/1.1 204 No Content\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	s.until("the connection ends", func() bool { c.read(); return c.gone })
	if kinds := frameKinds(c.got); strings.Count(kinds, "1") != 2 {
		t.Errorf("frames of the types %s, want two heads", kinds)
	}
}

// accept takes a connection of the proxy to an upstream.
func (s *stepped) accept(l net.Listener) (up net.Conn) {
	s.t.Helper()
	s.until("the request reaches the upstream", func() bool {
		if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
			s.t.Fatal(err)
		}
		var err error
		up, err = l.Accept()
		return err == nil
	})
	s.t.Cleanup(func() { up.Close() })
	return up
}
