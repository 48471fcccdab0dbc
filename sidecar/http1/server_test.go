package http1

import (
	"fmt"
	"strings"
	"testing"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
)

const (
	getA = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
	getB = "GET /b HTTP/1.1\r\nHost: h\r\n\r\n"
)

func TestAPipelinedRequestWaitsForTheResponseBeforeIt(t *testing.T) {
	p := newPeer(t, nil)
	rest, err := p.feed(getA+getB, 1000)
	if err != nil || rest != getB || p.streams != 1 {
		t.Fatalf("rest %q, error %v, %d streams", rest, err, p.streams)
	}
	p.s.Head(head(":status", "200"), false)
	if rest, _ = p.feed(rest, 1000); rest != getB {
		t.Fatal("the next request was read in the middle of a response")
	}
	p.s.Data(nil, true)
	if p.done != 1 {
		t.Fatal("StreamClosed was not called")
	}
	if rest, _ = p.feed(rest, 1000); rest != "" || p.text() != "GET h /a{}. GET h /b{}." {
		t.Errorf("rest %q, %s", rest, p.text())
	}
}

func TestRequestsAnsweredAtOnceGoOnInOneBuffer(t *testing.T) {
	p := newPeer(t, nil)
	p.onHead = func(*message.Head, bool) { p.s.Head(head(":status", "204"), true) }
	raw := strings.Repeat(getA, 5)
	if n, err := p.c.Feed([]byte(raw)); n != len(raw) || err != nil || p.done != 5 {
		t.Errorf("consumed %d, error %v, done %d", n, err, p.done)
	}
	if got := p.out.take(); got != strings.Repeat("HTTP/1.1 204 No Content\r\n\r\n", 5) {
		t.Errorf("sent %q", got)
	}
}

func TestFeedFromWithinACallbackDoesNothing(t *testing.T) {
	p := newPeer(t, nil)
	p.onHead = func(*message.Head, bool) {
		if n, err := p.c.Feed([]byte(getB)); n != 0 || err != nil {
			t.Errorf("consumed %d, error %v", n, err)
		}
	}
	p.feed(getA, 1000)
	if got := p.text(); got != "GET h /a{}." {
		t.Error(got)
	}
}

func TestNothingIsReadAfterTheLastResponse(t *testing.T) {
	p := newPeer(t, nil)
	p.onHead = func(*message.Head, bool) { p.s.Head(head(":status", "204"), true) }
	rest, err := p.feed("GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"+getB, 1000)
	if rest != "" || err != nil || p.streams != 1 || !over(p.c) {
		t.Errorf("rest %q, error %v, %d streams", rest, err, p.streams)
	}
}

func TestPauseLeavesBytesUntilResume(t *testing.T) {
	for _, raw := range []string{
		"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabcdef",
		"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
	} {
		p := newPeer(t, &Options{MaxBodyPiece: 2})
		p.onHead = func(*message.Head, bool) { p.s.Pause(); p.s.Pause() }
		rest, _ := p.feed(raw, 1000)
		if got := p.text(); got == "" || strings.Contains(got, "a\"") || p.c.phase != serverBody {
			t.Fatalf("%s while paused", got)
		}
		p.s.Resume()
		if n, _ := p.c.Feed([]byte(rest)); n != 0 || p.resumes != 0 {
			t.Fatal("one Resume undid two Pauses")
		}
		p.s.Resume()
		if p.resumes != 1 {
			t.Fatal("Resumed was not called")
		}
		p.onData = func([]byte, bool) { p.s.Pause() }
		pieces := 0
		for rest != "" {
			n, err := p.c.Feed([]byte(rest))
			if n == 0 || err != nil {
				t.Fatal(n, err)
			}
			rest = rest[n:]
			p.s.Resume()
			pieces++
		}
		if pieces < 3 || !p.ended {
			t.Errorf("%d pieces, ended %v", pieces, p.ended)
		}
	}
}

func TestAClientThatGoesAwayResetsTheStream(t *testing.T) {
	for name, raw := range map[string]string{
		"in the content":      "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabc",
		"in the chunks":       "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc",
		"in the trailers":     "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n",
		"before the response": getA,
		"before the upgrade":  "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
	} {
		p := newPeer(t, nil)
		p.feed(raw, 1000)
		p.c.EOF()
		if p.reset != message.ConnectionClosed || !over(p.c) {
			t.Errorf("%s: reset %v", name, p.reset)
		}
		p.s.Head(head(":status", "200"), true) // without effect
		if got := p.out.take(); got != "" {
			t.Errorf("%s: sent %q", name, got)
		}
	}
	p := newPeer(t, nil)
	p.feed(getA[:10], 3)
	p.c.Closed(message.RemoteReset)
	if p.streams != 0 || !over(p.c) {
		t.Error("a head that is cut off made a stream")
	}
}

func TestAResponseMayEndBeforeItsRequest(t *testing.T) {
	const post = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabc"
	p := newPeer(t, nil)
	p.feed(post, 1000)
	p.s.Head(head(":status", "413"), true)
	if p.done != 0 {
		t.Fatal("the exchange is over before the request is")
	}
	if got := p.out.take(); !strings.Contains(got, "\r\nconnection: close\r\n") {
		t.Errorf("the client is not told that nobody waits for the rest: %q", got)
	}
	p.feed("def", 1000)
	if p.done != 1 || p.c.End() != message.Linger || p.text() != `POST h /{content-length: 6}"abcdef".` {
		t.Errorf("done %d, %s", p.done, p.text())
	}

	p = newPeer(t, nil)
	p.feed(post, 1000)
	p.s.Head(head(":status", "413"), true)
	p.s.Reset(message.LocalReset)
	if p.done != 1 || !over(p.c) || aborted(p.c) {
		t.Errorf("done %d, close %v, aborted %v", p.done, over(p.c), aborted(p.c))
	}
	if n, err := p.c.Feed([]byte("def")); n != 3 || err != nil {
		t.Errorf("the rest is not discarded: %d, %v", n, err)
	}
}

func TestAResetInTheMiddleOfAResponseAborts(t *testing.T) {
	p := newPeer(t, nil)
	p.feed(getA, 1000)
	p.s.Head(head(":status", "200"), false)
	p.s.Reset(message.RemoteReset)
	if !over(p.c) || !aborted(p.c) || p.done != 1 || p.reset != 0 {
		t.Errorf("close %v, aborted %v, done %d, reset %v", over(p.c), aborted(p.c), p.done, p.reset)
	}
}

func TestAResetFromWithinAnEvent(t *testing.T) {
	for _, at := range []string{"head", "data", "end"} {
		p := newPeer(t, nil)
		switch at {
		case "head":
			p.onHead = func(*message.Head, bool) { p.s.Reset(message.LocalReset) }
		case "data":
			p.onData = func([]byte, bool) { p.s.Reset(message.LocalReset) }
		case "end":
			p.onEnd = func() { p.s.Reset(message.LocalReset) }
		}
		rest, err := p.feed("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"+getB, 1000)
		if rest != "" || err != nil || p.streams != 1 || p.done != 1 || !over(p.c) {
			t.Errorf("%s: rest %q, error %v, %d streams, done %d", at, rest, err, p.streams, p.done)
		}
	}
}

func TestInformationalResponsesPrecedeTheFinalOne(t *testing.T) {
	p := newPeer(t, nil)
	p.feed("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", 1000)
	p.s.Head(head(":status", "100"), false)
	p.feed("a", 1000)
	p.s.Head(head(":status", "103", "link", "x", "content-length", "5"), false)
	p.s.Head(head(":status", "200"), true)
	want := "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
	if got := p.out.take(); got != want || p.done != 1 {
		t.Errorf("sent %q, done %d", got, p.done)
	}

	p = newPeer(t, http10)
	p.feed("GET / HTTP/1.0\r\n\r\n", 1000)
	p.s.Head(head(":status", "103"), false)
	if got := p.out.take(); got != "" {
		t.Errorf("an HTTP/1.0 client got %q", got)
	}
}

const upgrade = "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

func TestAnUpgradeBecomesATunnelWhenItIsAccepted(t *testing.T) {
	p := newPeer(t, nil)
	rest, _ := p.feed(upgrade+getB, 1000)
	if rest != getB || p.ended || !p.s.IsUpgrade() {
		t.Fatalf("rest %q before the answer", rest)
	}
	p.s.Head(head(":status", "101", "upgrade", "websocket"), false)
	if p.resumes != 1 {
		t.Fatal("Resumed was not called")
	}
	rest, _ = p.feed(rest, 1000)
	p.s.Data([]byte("down"), false)
	if got := p.out.take(); rest != "" || p.streams != 1 || !strings.HasSuffix(got, "connection: upgrade\r\n\r\ndown") {
		t.Fatalf("rest %q, sent %q", rest, got)
	}
	p.s.Data(nil, true)
	if p.eofs != 1 || p.done != 0 {
		t.Fatal("a half-close ended the tunnel")
	}
	p.feed("up", 1000)
	p.c.EOF()
	want := "GET h /ws{upgrade: websocket}" + `"GET /b HTTP/1.1\r\nHost: h\r\n\r\nup".`
	if got := p.text(); got != want || p.done != 1 || !over(p.c) || aborted(p.c) {
		t.Errorf("%s, done %d", got, p.done)
	}
}

func TestATunnelMayEndOnTheClientsSideFirst(t *testing.T) {
	p := newPeer(t, nil)
	p.feed("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 1000)
	p.s.Head(head(":status", "200"), false)
	p.c.EOF()
	p.s.Data([]byte("more"), false)
	if p.done != 0 {
		t.Fatal("the tunnel is over while one side sends")
	}
	p.s.Data(nil, true)
	if got := p.out.take(); !strings.HasSuffix(got, "\r\n\r\nmore") || p.done != 1 || p.eofs != 1 || !over(p.c) {
		t.Errorf("sent %q, done %d", got, p.done)
	}
}

func TestWhatWasMeantForARefusedTunnelIsNoRequest(t *testing.T) {
	for _, asked := range []string{upgrade, "CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n"} {
		p := newPeer(t, nil)
		rest, _ := p.feed(asked+getB, 1000)
		p.s.Head(head(":status", "403"), true)
		if !p.ended || p.done != 1 {
			t.Fatalf("ended %v, done %d", p.ended, p.done)
		}
		rest, err := p.feed(rest, 1000)
		if rest != "" || err != nil || p.streams != 1 || p.c.End() != message.Linger {
			t.Errorf("rest %q, error %v, %d streams", rest, err, p.streams)
		}
		if got := p.out.take(); !strings.Contains(got, "\r\nconnection: close\r\n") {
			t.Errorf("sent %q", got)
		}
	}
}

func TestRefuseAnswersOnce(t *testing.T) {
	p := newPeer(t, nil)
	_, err := p.feed("GET / HTTP/1.1\r\n\r\n", 1000)
	refused, status, n := p.c.Refuse(err.(*Error).Kind)
	want := "HTTP/1.1 400 Bad Request\r\ncontent-length: 11\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nBad Request"
	if got := p.out.take(); got != want || !over(p.c) || !refused || status != 400 || n != len("Bad Request") {
		t.Errorf("sent %q, told %v %d %d", got, refused, status, n)
	}
	p.c.Refuse(failure.BadRequest)
	if got := p.out.take(); got != "" {
		t.Errorf("sent %q once more", got)
	}

	// After an exchange the next bad request gets its answer.
	p = newPeer(t, nil)
	p.onHead = func(*message.Head, bool) { p.s.Head(head(":status", "204"), true) }
	p.feed(getA, 1000)
	if _, err = p.feed("BAD\x00", 100); err != error(errMethod) {
		t.Fatal(err)
	}
	p.out.take()
	p.c.Refuse(failure.BadRequest)
	if got := p.out.take(); got != want {
		t.Errorf("sent %q", got)
	}

	// Where the content is wrong, the stream knows of it: it is no request more.
	for raw, why := range map[string]message.Reason{
		"x":                                    message.ProtocolError,
		"0\r\na: " + strings.Repeat("b", 1000): message.HeaderTooLarge,
	} {
		p = newPeer(t, &Options{MaxHeaderBytes: 500})
		p.feed("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", 1000)
		_, err = p.feed(raw, 2000)
		refused, status, _ = p.c.Refuse(err.(*Error).Kind)
		if got := p.out.take(); refused || !strings.HasPrefix(got, fmt.Sprint("HTTP/1.1 ", status)) || !over(p.c) || p.reset != why {
			t.Errorf("%.9q: sent %q, a request more: %v, reset %v", raw, got, refused, p.reset)
		}
	}

	// In the middle of a response nothing can be said.
	p = newPeer(t, nil)
	p.feed("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", 1000)
	p.s.Head(head(":status", "200"), false)
	p.out.take()
	_, err = p.feed("x", 1000)
	refused, _, _ = p.c.Refuse(failure.BadRequest)
	if got := p.out.take(); refused || err == nil || got != "" || !aborted(p.c) || p.reset != message.ProtocolError {
		t.Errorf("sent %q, error %v, aborted %v, reset %v", got, err, aborted(p.c), p.reset)
	}
}

func TestDrainedFollowsFull(t *testing.T) {
	p := newPeer(t, nil)
	p.feed(getA, 1000)
	p.s.Head(head(":status", "200"), false)
	p.c.Writable()
	p.out.full = true
	if !p.s.Full() || p.drains != 0 {
		t.Fatal("not full")
	}
	p.out.full = false
	p.c.Writable()
	p.c.Writable()
	if p.drains != 1 {
		t.Errorf("Drained was called %d times", p.drains)
	}
}

func TestTheHeadMayBeTakenByExchange(t *testing.T) {
	p := newPeer(t, nil)
	var own message.Head
	p.onHead = func(h *message.Head, _ bool) {
		if own.Len() == 0 {
			own, *h = *h, own
		}
		p.s.Head(head(":status", "204"), true)
	}
	p.feed(getA+getB, 1000)
	if got := headText(&own); got != "GET h /a{}" {
		t.Error(got)
	}
}

func TestHeadTellsRequestHeadsApart(t *testing.T) {
	p := newPeer(t, nil)
	if p.c.Head(0) != 0 {
		t.Error("a new connection has a head")
	}
	p.feed("GET / HTTP/1.1\r\n", 1000)
	first := p.c.Head(0)
	if p.feed("a: b\r\n", 1000); first == 0 || first != p.c.Head(0) {
		t.Errorf("in a head it is %d and %d", first, p.c.Head(0))
	}
	p.feed("Host: h\r\n\r\n", 1000)
	if p.c.Head(0) != 0 {
		t.Error("an exchange has a head")
	}
	p.s.Head(head(":status", "204"), true)
	if next := p.c.Head(1); p.c.Head(0) != 0 || next == 0 || next == first {
		t.Errorf("behind an exchange it is %d, and %d with a byte", p.c.Head(0), next)
	}
}

func TestADrainedConnectionEndsWithTheNextResponse(t *testing.T) {
	p := newPeer(t, nil)
	if p.c.Drain(false); over(p.c) {
		t.Error("a request on its way is lost")
	}
	p.feed(getA, 1000)
	if p.c.Drain(true); over(p.c) {
		t.Error("an exchange is lost")
	}
	p.s.Head(head(":status", "204"), true)
	if got := p.out.take(); got != "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n" || p.c.End() != message.Linger {
		t.Errorf("sent %q", got)
	}
	p = newPeer(t, nil)
	if p.c.Drain(true); p.c.End() != message.Linger {
		t.Error("a connection without an exchange goes on")
	}
}

func TestRestTellsWaitingForBytesFromWaitingForOthers(t *testing.T) {
	p := newPeer(t, nil)
	step := func(raw string, want bool) {
		t.Helper()
		p.feed(raw, 1000)
		if (p.c.Rest() == message.ForOwner) != want {
			t.Fatalf("after %q it waits for %v", raw, p.c.Rest())
		}
	}
	step("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n", false)
	p.s.Pause()
	step("a", true)
	p.s.Resume()
	step("ab", true) // the response is missing
	p.s.Head(head(":status", "204"), true)
	step(upgrade, true)
	p.s.Head(head(":status", "101", "upgrade", "websocket"), false)
	step("x", false)
}

func TestNoRequestIsBegunWhileTheOutputIsFull(t *testing.T) {
	p := newPeer(t, nil)
	answer := func() { p.s.Head(head(":status", "204"), true) }
	p.feed(getA, 1000)
	p.out.full = true
	answer()
	rest, err := p.feed(getB, 1000)
	if rest != getB || err != nil || p.streams != 1 || p.c.Rest() != message.ForOwner || p.c.Head(len(rest)) != 0 {
		t.Fatalf("%q is left, %v, %d streams, it waits for %v", rest, err, p.streams, p.c.Rest())
	}
	resumes := p.resumes
	p.out.full = false
	p.c.Writable()
	if p.resumes != resumes+1 || p.c.Rest() == message.ForOwner {
		t.Fatalf("resumed %d times, it waits for %v", p.resumes-resumes, p.c.Rest())
	}
	if rest, err := p.feed(getB, 1000); rest != "" || err != nil || p.streams != 2 {
		t.Errorf("%q is left, %v, %d streams", rest, err, p.streams)
	}
	// A head that was begun is read to its end: there is nothing more to hold it back from.
	answer()
	line := strings.Index(getA, "Host")
	p.feed(getA[:line], 1000)
	p.out.full = true
	if rest, err := p.feed(getA[line:], 1000); rest != "" || err != nil || p.streams != 3 {
		t.Errorf("%q is left, %v, %d streams", rest, err, p.streams)
	}
}

func TestInformationalResponsesAreNotPiledUp(t *testing.T) {
	p := newPeer(t, nil)
	p.feed(getA, 1000)
	hints := head(":status", "103", "link", "</a>")
	p.s.Head(hints, false)
	if got := p.out.take(); got != "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" {
		t.Errorf("sent %q", got)
	}
	p.out.full = true
	p.s.Head(hints, false)
	if got := p.out.take(); got != "" {
		t.Errorf("%q was sent to a client that does not read", got)
	}
	p.s.Head(head(":status", "204"), true) // the final one is never left out
	if got := p.out.take(); got != "HTTP/1.1 204 No Content\r\n\r\n" {
		t.Errorf("sent %q", got)
	}
}

// TestFeedDoesAsMuchAsATurnAllows: what is left is read in the next turn, and nothing is lost.
func TestFeedDoesAsMuchAsATurnAllows(t *testing.T) {
	const requests = 20
	p := newPeer(t, nil)
	p.c.Turn.Limit = 3 * message.HeadCost
	p.onEnd = func() { p.s.Head(head(":status", "204"), true) }
	rest := strings.Repeat(getA, requests)
	for turns := 0; rest != ""; turns++ {
		before := p.streams
		n, err := p.c.Feed([]byte(rest))
		if err != nil || p.streams-before > 3 || p.streams == before {
			t.Fatalf("turn %d: %d requests, %v", turns, p.streams-before, err)
		}
		if rest = rest[n:]; rest != "" && p.c.Rest() != message.ForTurn {
			t.Fatal("something is left, and the turn is not over")
		}
	}
	if p.streams != requests {
		t.Errorf("%d requests of %d", p.streams, requests)
	}

	// Content in small pieces.
	p = newPeer(t, nil)
	p.c.Turn.Limit = 10
	pieces := 0
	p.onData = func([]byte, bool) { pieces++ }
	rest = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\na\r\n", 100) + "0\r\n\r\n"
	for rest != "" {
		before := pieces
		n, err := p.c.Feed([]byte(rest))
		if rest = rest[n:]; err != nil || pieces-before > 10 {
			t.Fatalf("%d pieces in a turn, %v", pieces-before, err)
		}
	}
	if want := `POST h /{}"` + strings.Repeat("a", 100) + `".`; p.text() != want {
		t.Errorf("got %s", p.text())
	}
}
