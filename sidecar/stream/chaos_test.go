package stream_test

import (
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/offload"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
	"sallyport/sidecar/stream/chain"
	"sallyport/sidecar/stream/streamtest"
)

// chaos is a filter that holds, awaits goroutines and timers, replaces, answers
// and panics at random at every event of a real stream. It adds to each byte,
// so that the result does not depend on how the content was cut.
type chaos struct {
	r    *rand.Rand
	add  byte
	calm bool // neither answers nor panics
}

func (f *chaos) Name() string { return "chaos" }

func (f *chaos) chance(percent int) bool { return f.r.IntN(100) < percent }

// pause is a Work that ends with a timer.
type pause struct {
	c    stream.Context
	d    time.Duration
	stop func()
}

func (p *pause) Start(done func()) {
	t := newTimer(done)
	p.c.Stream.Worker().Schedule(t, p.d)
	p.stop = t.Stop
}
func (p *pause) Cancel() { p.stop() }

func (f *chaos) verdict(c stream.Context) stream.Verdict {
	switch {
	case !f.calm && f.chance(2):
		return c.Stream.Reply(403, "no", "chaos", 0)
	case !f.calm && f.chance(1):
		panic("chaos")
	case f.chance(60):
		return stream.Continue
	case f.chance(10):
		c.Resume()
		return stream.Hold
	case f.chance(40):
		return c.Await(&pause{c: c, d: time.Duration(f.r.IntN(20)) * time.Millisecond}, f.verdict)
	}
	n := 0
	job := offload.Of(c.Stream.Worker()).New(netip.MustParseAddr("192.0.2.1"), func() { n++ })
	return c.Await(job, func(c stream.Context) stream.Verdict {
		if n == 0 && !job.Refused {
			panic("the job did not run")
		}
		return f.verdict(c)
	})
}

func (f *chaos) change(p []byte) []byte {
	out := make([]byte, len(p))
	for i, b := range p {
		out[i] = shift(b, f.add)
	}
	return out
}

// shift turns letters around the alphabet, so that framing stays readable.
func shift(b, by byte) byte { return 'a' + (b-'a'+by)%26 }

func (f *chaos) RequestHead(c stream.Context, _ *message.Head, _ bool) stream.Verdict {
	return f.verdict(c)
}
func (f *chaos) ResponseHead(c stream.Context, h *message.Head, _ bool) stream.Verdict {
	if v := f.verdict(c); v != stream.Continue || h.Is(message.Status, "200") {
		return v
	}
	return stream.Continue
}
func (f *chaos) RequestData(c stream.Context, p []byte, _ bool) ([]byte, stream.Verdict) {
	return f.change(p), f.verdict(c)
}
func (f *chaos) ResponseData(c stream.Context, p []byte, _ bool) ([]byte, stream.Verdict) {
	if c.Stream.Response.Is(message.Status, "200") {
		p = f.change(p)
	}
	return p, f.verdict(c)
}
func (f *chaos) RequestTrailers(c stream.Context, _ *message.Head) stream.Verdict {
	return f.verdict(c)
}
func (f *chaos) ResponseTrailers(c stream.Context, _ *message.Head) stream.Verdict {
	return f.verdict(c)
}

// echo is an upstream that answers with what it got, in pieces, and sometimes
// early, late, with 503, or not at all.
type echo struct {
	r     *rand.Rand
	rig   *streamtest.Rig
	links []*echoLink
	calm  bool
}

type echoLink struct {
	*streamtest.Link
	out  string
	last bool // the connection ends behind out
}

// step moves every connection on a little.
func (e *echo) step() {
	if l := e.rig.Hosts[0].TryAccept(); l != nil {
		e.links = append(e.links, &echoLink{Link: l})
	}
	for i := 0; i < len(e.links); i++ {
		l := e.links[i]
		if l.out != "" {
			n := l.Try(l.out[:1+e.r.IntN(len(l.out))])
			l.out = l.out[n:]
			continue
		}
		if l.last {
			l.Close()
			e.links = append(e.links[:i], e.links[i+1:]...)
			i--
			continue
		}
		in := l.Received()
		switch {
		case !e.calm && in != "" && e.r.IntN(100) < 2:
			l.Close()
			e.links = append(e.links[:i], e.links[i+1:]...)
			i--
		case !e.calm && strings.Contains(in, "\r\n\r\n") && e.r.IntN(100) < 4:
			l.Head()
			l.last = true
			l.out = "HTTP/1.1 503 Busy\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
		case strings.Contains(in, "\r\n\r\n") && (strings.HasPrefix(in, "GET") || strings.HasSuffix(in, "0\r\n\r\n")):
			body := ""
			if get := strings.HasPrefix(in, "GET"); l.Head() != "" && !get {
				body = l.Chunked()
			}
			var b strings.Builder
			b.WriteString("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
			for len(body) > 0 {
				n := 1 + e.r.IntN(len(body))
				b.WriteString(strconv.FormatInt(int64(n), 16) + "\r\n" + body[:n] + "\r\n")
				body = body[n:]
			}
			b.WriteString("0\r\n\r\n")
			l.out = b.String()
		}
	}
}

// run sends requests through chaos filters to the echo, all at a time, and
// checks each response.
func run(t *testing.T, seed uint64, calm bool) {
	r := rand.New(rand.NewPCG(seed, 5))
	rig := streamtest.New(t, 1)
	rig.Conn.BufferLimit, rig.Cluster.BufferLimit = 1<<10, 1<<10
	rig.Manager.StreamIdle = 30 * time.Second
	rig.Route.Forward.Retry = &route.Retry{On: route.On5xx | route.OnReset, Retries: 2, BackoffBase: time.Millisecond, BackoffMax: 5 * time.Millisecond}
	var filters []stream.Filter
	add := byte(0)
	for range 1 + r.IntN(3) {
		f := &chaos{r: r, add: byte(r.IntN(26)), calm: calm}
		add += f.add
		filters = append(filters, f)
	}
	rig.Filters(filters...)
	up := &echo{r: r, rig: rig, calm: calm}

	type request struct {
		c        *streamtest.Client
		sent     string
		left     string
		canceled bool
	}
	var all []*request
	for range 1 + r.IntN(5) {
		q := &request{left: strings.Repeat("abcdefghijklmnopqrstuvwxyz", r.IntN(200))}
		if q.left == "" {
			q.c = rig.Get("/")
		} else {
			q.c = rig.Open("POST", "/")
		}
		all = append(all, q)
	}
	over := func(q *request) bool { return q.canceled || q.c.Ended || q.c.Reset != 0 }
	for range 200000 {
		open := false
		for _, q := range all {
			if over(q) {
				continue
			}
			open = true
			switch {
			case !calm && r.IntN(2000) == 0:
				q.canceled = true
				q.c.Stream.Reset(message.RemoteReset)
			case q.left != "" && q.c.Paused == 0 && r.IntN(3) == 0:
				n := 1 + r.IntN(len(q.left))
				p := q.left[:n]
				q.sent, q.left = q.sent+p, q.left[n:]
				if q.left == "" {
					q.c.End(p)
				} else {
					q.c.Send(p)
				}
			case q.c.Blocked && r.IntN(3) == 0:
				q.c.Unblock()
			case r.IntN(20) == 0:
				q.c.Blocked = true
			}
		}
		if !open {
			break
		}
		up.step()
		rig.Advance(time.Duration(r.IntN(3)) * time.Millisecond)
	}
	for i, q := range all {
		switch {
		case !over(q):
			t.Fatalf("request %d never ended: status %d, %d bytes to send, paused %d", i, q.c.Status, len(q.left), q.c.Paused)
		case q.canceled:
		case q.c.Status == 200 && q.c.Ended:
			want := []byte(q.sent)
			for i, b := range want {
				want[i] = shift(shift(b, add), add) // once on each way
			}
			if q.c.Body != string(want) || q.left != "" {
				t.Fatalf("request %d: %d bytes came back of %d, or other ones", i, len(q.c.Body), len(want))
			}
		case calm:
			t.Fatalf("request %d: %d %q, reset %v", i, q.c.Status, q.c.Body, q.c.Reset)
		case q.c.Status == 0 && q.c.Reset == 0:
			t.Fatalf("request %d ended without a reason", i)
		}
	}
	rig.Settle()
	if rig.Finished != len(all) {
		t.Errorf("%d of %d streams are over", rig.Finished, len(all))
	}
	if n := rig.Stat(stream.StatRqActive); n != 0 {
		t.Errorf("%d streams are counted as active", n)
	}
}

// TestAStreamUnderChaos: what was sent arrives once, in order, or the stream ended with a reason.
func TestAStreamUnderChaos(t *testing.T) {
	n := uint64(150)
	if testing.Short() {
		n = 20
	}
	for seed := range n {
		run(t, seed, seed%3 == 0)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzStream(f *testing.F) {
	f.Add(uint64(1), true)
	f.Add(uint64(2), false)
	f.Fuzz(func(t *testing.T, seed uint64, calm bool) { run(t, seed, calm) })
}

var _ chain.Work = (*pause)(nil)

func newTimer(f func()) *loop.Timer {
	t := new(loop.Timer)
	t.Init(f)
	return t
}
