package http1

import (
	"strconv"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
)

// Owner has a ServerConn and takes its streams. (An interface and not a
// function per event: those would be four allocations of every connection.)
type Owner interface {
	// NewStream is called when a request head is complete, right before its
	// Head event; s, a *ServerStream, is the way back and is valid until the exchange is over.
	NewStream(s message.Sender, v message.Version) message.Receiver
	// StreamClosed is called when an exchange is over, request and response,
	// or the connection is: see End. The owner may go on feeding
	// bytes it kept, after the call that this one came from has returned.
	StreamClosed()
	// Resumed asks the owner to feed the bytes it kept again, likewise
	// later: a Resume followed a Pause, an upgrade was accepted, or the
	// Output has room for another response.
	Resumed()
	// SendEOF is called when a tunnel's sending side ended: the owner
	// shuts down writing once the Output is empty.
	SendEOF()
	// RefusalFields appends field lines, each with CRLF, to the head of a
	// response that Refuse writes: Date and the like, which are the owner's to say.
	RefusalFields(b []byte) []byte
}

// serverPhase is where the request side of an exchange stands.
type serverPhase uint8

const (
	serverHead     serverPhase = iota // waiting for, or in, a request head
	serverBody                        // in the content
	serverTrailers                    // in the trailers
	serverAsked                       // an upgrade or CONNECT waits for its answer; no byte is read
	serverTunnel                      // another protocol
	serverDone                        // the request is complete
	serverClosed                      // nothing more is read; input is discarded
)

// ServerConn is the server side of one connection: one exchange at a time. A
// pipelined request is not looked at before the response to the one before it
// was handed to the Output wholly and the Output has room; its bytes stay with the caller.
//
// A Head that a Receiver is given may be taken by exchange: *own, *h = *h, *own.
type ServerConn struct {
	// Scheme is :scheme of the requests, where it is not that of Options.
	Scheme string
	// Turn bounds what Feed does in a turn of the loop, which is one call.
	Turn message.Turn

	out    Output
	o      *Options
	limits limits
	owner  Owner

	r      message.Receiver // nil between exchanges, and when the stream was reset
	stream ServerStream
	reader *reader // borrowed while a head or trailers are read
	epoch  uint32  // number of exchanges finished

	phase    serverPhase
	body     body
	w        writer
	x        exchange
	paused   int32
	answered bool // the final response head was written
	sent     bool // the response is complete
	sentEOF  bool // of a tunnel
	wasFull  bool
	choked   bool // no request is begun: the Output is full
	feeding  bool
	draining bool
	aborted  bool
	told     bool // of what Refuse answers, a stream has heard
}

// NewServer returns the codec of an accepted connection.
func NewServer(out Output, o *Options, owner Owner) *ServerConn {
	if o == nil {
		o = new(Options)
	}
	c := &ServerConn{out: out, o: o, limits: o.limits(), owner: owner}
	c.stream.c = c
	return c
}

// Feed takes bytes from the peer and says how many it consumed. Those it did
// not consume must be the beginning of what the next Feed gets: they belong to
// a line that is not complete, or wait for Resume, for the response to be sent,
// for an upgrade to be answered, or for the next turn: see Rest. An error is an *Error: the caller may answer with
// Refuse, and closes. Feed must not be called from within a callback.
func (c *ServerConn) Feed(p []byte) (n int, err error) {
	if c.feeding {
		return 0, nil
	}
	c.feeding = true
	c.Turn.Begin()
	for {
		k, e := c.feed(p[n:])
		n += k
		if e != nil {
			c.feeding = false
			c.told = c.r != nil
			c.fail(e.reset())
			return n, e
		}
		if n == len(p) || k == 0 {
			c.feeding = false
			return n, nil
		}
	}
}

func (c *ServerConn) feed(p []byte) (n int, err *Error) {
	epoch := c.epoch
	for c.epoch == epoch {
		switch c.phase {
		case serverHead:
			if n == len(p) || c.Turn.Over() {
				return n, nil
			}
			if c.reader == nil {
				// A client that does not read its responses gets no more of them: what
				// the Output holds is bounded by its mark and one response, however
				// many requests are pipelined.
				if c.choked = c.out.Full(); c.choked {
					return n, nil
				}
				c.reader = newReader(request, c.limits, c.o.Underscores)
				c.reader.requestRules = requestRules{c.o.AllowCustomMethods, c.o.AllowHTTP10, c.o.ForbidAbsoluteURL, c.o.DefaultHost, c.scheme()}
			}
			k, done, err := c.reader.read(p[n:])
			n += k
			if err != nil || !done {
				return n, err
			}
			c.Turn.Spend(message.HeadCost)
			if err := c.begin(); err != nil {
				return n, err
			}
		case serverBody, serverTunnel:
			if n == len(p) || c.paused > 0 || c.Turn.Over() {
				return n, nil
			}
			c.Turn.Spend(message.PieceCost)
			k, data, last, err := c.body.next(p[n:], c.limits.piece)
			n += k
			if err != nil {
				return n, err
			}
			if last && c.body.kind == bodyChunked {
				c.phase = serverTrailers
				c.reader = newReader(trailers, c.limits, c.o.Underscores)
				continue
			}
			if last {
				c.received()
			}
			if len(data) > 0 || last {
				c.r.Data(data, last)
				c.settle(epoch)
			}
		case serverTrailers:
			if n == len(p) || c.paused > 0 {
				return n, nil
			}
			k, done, err := c.reader.read(p[n:])
			n += k
			if err != nil || !done {
				return n, err
			}
			d := c.reader
			c.reader = nil
			c.received()
			if d.head.Len() > 0 && c.o.EnableTrailers {
				c.r.Trailers(&d.head)
			} else {
				c.r.Data(nil, true)
			}
			d.free()
			c.settle(epoch)
		case serverClosed:
			return len(p), nil
		default:
			return n, nil
		}
	}
	return n, nil
}

func (c *ServerConn) scheme() string {
	switch {
	case c.Scheme != "":
		return c.Scheme
	case c.o.Scheme != "":
		return c.o.Scheme
	}
	return "http"
}

// begin starts the exchange whose request head is complete.
func (c *ServerConn) begin() *Error {
	d := c.reader
	kind, err := d.finishRequest()
	if err != nil {
		return err
	}
	c.reader = nil
	c.body.start(kind, d.length)
	c.x = exchange{
		head:    d.head.Is(message.Method, "HEAD"),
		connect: d.form == authorityForm,
		upgrade: kind == bodyTunnel && d.form != authorityForm,
		http10:  d.minor == 0,
		close:   !d.persistent(),
	}
	c.x.keepAlive10 = c.x.http10 && !c.x.close
	c.w = writer{}
	c.paused, c.sentEOF, c.wasFull = 0, false, false
	switch kind {
	case bodyNone:
		c.phase = serverDone
	case bodyTunnel:
		c.phase = serverAsked
	default:
		c.phase = serverBody
	}
	epoch := c.epoch
	version := message.HTTP11
	if c.x.http10 {
		version = message.HTTP10
	}
	switch r := c.owner.NewStream(&c.stream, version); {
	case c.epoch != epoch: // the connection was ended meanwhile
	case r == nil:
		c.abort()
	default:
		c.r = r
		r.Head(&d.head, kind == bodyNone)
		c.settle(epoch)
	}
	d.free()
	return nil
}

// received marks the request complete. It comes before the receiver's last
// event: a receiver that answers from within it must find the exchange complete.
func (c *ServerConn) received() { c.phase = serverDone }

// settle ends the exchange of that epoch if both its messages are complete.
// Every path that completes one of them comes here after its last event.
func (c *ServerConn) settle(epoch uint32) {
	if c.epoch != epoch || c.phase != serverDone || !c.sent {
		return
	}
	c.r = nil
	c.epoch++
	if c.x.close {
		c.phase = serverClosed
	} else {
		c.phase, c.answered, c.sent = serverHead, false, false
	}
	c.owner.StreamClosed()
}

// shut ends the connection for both directions and returns the stream that was open, or nil.
func (c *ServerConn) shut() (r message.Receiver) {
	r = c.r
	c.phase, c.r = serverClosed, nil
	c.epoch++
	if c.reader != nil {
		c.reader.free()
		c.reader = nil
	}
	return r
}

// abort ends the connection on behalf of the stream's owner.
func (c *ServerConn) abort() {
	if c.phase == serverClosed {
		return
	}
	c.aborted = !c.sent
	c.shut()
	c.owner.StreamClosed()
}

// fail ends the connection because of what came in, or did not; the caller
// knows of it. The stream, if any, hears it.
func (c *ServerConn) fail(why message.Reason) {
	if c.phase == serverClosed {
		return
	}
	// A response whose head left and whose end did not must not look complete.
	c.aborted = c.r != nil && c.answered && !c.sent
	if r := c.shut(); r != nil {
		r.Reset(why)
	}
}

// misuse ends a stream that was given something that cannot be sent.
func (c *ServerConn) misuse() {
	if c.answered {
		c.aborted = true
	} else {
		c.refuse(502)
	}
	c.shut().Reset(message.LocalReset)
	c.owner.StreamClosed()
}

// Refuse answers a request that was not taken, or is not here in time, with a bare
// response, and ends the connection: see End. It says whether there was one that no
// stream stands for, for the log: else a response was begun, or a stream was reset, which
// logs it with the status that it gets here. sent is the length of the content.
func (c *ServerConn) Refuse(k failure.Kind) (refused bool, status, sent int) {
	if !c.answered {
		refused, status = !c.told, failure.Of(k).Status
		sent = c.refuse(status)
	}
	c.shut()
	return refused, status, sent
}

func (c *ServerConn) refuse(status int) int {
	b := c.out.Buffer()
	text := reason(status)
	fields := c.owner.RefusalFields(nil)
	f := b.Tail(160 + len(text)*2 + len(fields))
	f = append(f, "HTTP/1.1 "...)
	f = strconv.AppendInt(f, int64(status), 10)
	f = append(f, ' ')
	f = append(f, text...)
	f = append(f, "\r\ncontent-length: "...)
	f = strconv.AppendInt(f, int64(len(text)), 10)
	f = append(f, "\r\ncontent-type: text/plain\r\n"...)
	f = append(f, fields...)
	f = append(f, "connection: close\r\n\r\n"...)
	b.SetTail(append(f, text...))
	c.answered, c.sent = true, true
	c.out.Flush()
	return len(text)
}

// EOF says that the peer will send nothing more; all bytes before it have been
// fed and consumed. Within an exchange it resets the stream, as a client that
// closes cannot be told from one that half-closes; a tunnel gets its end.
func (c *ServerConn) EOF() {
	if c.phase == serverTunnel {
		epoch := c.epoch
		c.received()
		c.r.Data(nil, true)
		c.tunnelDone(epoch)
		return
	}
	c.fail(message.ConnectionClosed)
}

// Closed says that the connection is gone.
func (c *ServerConn) Closed(r message.Reason) { c.fail(r) }

// Writable says that the Output has room again.
func (c *ServerConn) Writable() {
	if c.choked {
		c.choked = false
		c.owner.Resumed()
	}
	if c.wasFull && c.r != nil && !c.sent {
		c.wasFull = false
		c.r.Drained()
	}
}

// Drain makes the next response the last: it carries "connection: close". With
// last, a connection without an exchange ends.
func (c *ServerConn) Drain(last bool) {
	c.draining = true
	if last && c.r == nil {
		c.shut()
	}
}

// End says where the connection stands. Where it is over, the client gets to
// read what the Output has, for it may be sending still.
func (c *ServerConn) End() message.End {
	switch {
	case c.phase != serverClosed:
		return message.Open
	case c.aborted:
		return message.Abort
	}
	return message.Linger
}

// Rest says what the bytes wait for that Feed left. What is the owner's is a Resume,
// the end of the response, the answer to an upgrade, or room in
// the Output: it stops reading until Resumed or StreamClosed.
func (c *ServerConn) Rest() message.Rest {
	blocked := false
	switch c.phase {
	case serverHead:
		blocked = c.choked
	case serverDone, serverAsked:
		blocked = true
	case serverBody, serverTrailers, serverTunnel:
		blocked = c.paused > 0
	}
	switch {
	case blocked:
		return message.ForOwner
	case c.Turn.Over():
		return message.ForTurn
	}
	return message.ForBytes
}

// Head is 0, or tells apart the request heads that have begun and are not
// complete; rest is how many bytes the last Feed left.
func (c *ServerConn) Head(rest int) int64 {
	if c.phase == serverHead && !c.choked && (c.reader != nil || rest > 0) {
		return int64(c.epoch) + 1
	}
	return 0
}

// Sweep does nothing: an exchange has no time of its own here.
func (c *ServerConn) Sweep() int { return 0 }
