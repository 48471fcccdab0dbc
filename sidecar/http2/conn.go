package http2

import (
	"math"
	"time"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/hpack"
	"sallyport/sidecar/message"
)

// Preface is what a client sends first (RFC 9113 §3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Owner has a server's connection and takes its streams. It is called on the
// worker, from within calls of Conn and Stream.
type Owner interface {
	// NewStream is called when the head of a request is complete and right,
	// just before its Head event. s, a *Stream, is the way back.
	NewStream(s message.Sender, v message.Version) message.Receiver
	// StreamClosed is called when a stream has ended, after its last event.
	StreamClosed()
	// Refused is called for a request that no stream was made for, with the status of
	// the response, or 0 where it was reset.
	Refused(k failure.Kind, status int)
	// SweepIn asks for a call of Sweep in that time, or earlier than it was asked for before.
	SweepIn(d time.Duration)
}

// ClientOwner has a client's connection. It is called on the worker, from
// within calls of Conn and Stream.
type ClientOwner interface {
	// StreamClosed is called when a stream has ended, after its last
	// event, and when the peer allows more: there may be
	// room for another. It may open streams.
	StreamClosed()
	// PeerDrains is called when the server announced the connection's end.
	PeerDrains()
	// SweepIn asks for a call of Sweep in that time, or earlier than it was asked for before.
	SweepIn(d time.Duration)
}

// Conn is one side of a connection.
type Conn struct {
	// Turn bounds what Feed does in a turn of the loop, which is one call.
	Turn message.Turn

	out    Output
	o      Options
	server bool
	// One of the two, and the part of it that both have.
	owner       Owner
	clientOwner ClientOwner
	common      commonOwner

	dec     *hpack.Decoder
	enc     *hpack.Encoder
	head    message.Head // of what is being received
	scratch []byte       // what a head is encoded into

	streams idTable
	live    liveList
	active  int // streams that are open, those of a client without an identifier included
	// Streams that ended are used again, but not while a call is under way
	// that may still look at them: depth counts Feed, pump and the like on the stack.
	free, dead []*Stream
	depth      int
	visiting   []*Stream // memory of each
	next       uint32    // client: the identifier of the next stream
	seen       uint32    // the highest identifier that a stream of the peer (server), or of ours (client), had
	taken      uint32    // server: the highest identifier that was not refused for a GOAWAY

	// What the peer allows us.
	sendWindow  int64
	peerWindow  int64 // SETTINGS_INITIAL_WINDOW_SIZE
	peerFrame   int
	peerStreams uint32
	peerHeaders uint32 // SETTINGS_MAX_HEADER_LIST_SIZE
	peerConnect bool
	settings    bool // SETTINGS were received
	acked       bool // ours were acknowledged
	// Streams with something to send, in turn: those that can, and those
	// that wait for the connection's window alone.
	ready, starved sendList
	starvedAt      int64 // since when there are any of the latter
	full           int   // streams whose sender was told that they are full
	waiting        int   // bytes of all streams that wait for window or Output, heads included
	over           bool  // a sender was told that they are too many

	// What we allow the peer.
	recvWindow  int64
	recvUnacked int64 // consumed, and not given back yet
	held        int64 // content that is kept during pauses, and
	owed        int64 // how much of it gives no window back: what is above HoldLimit

	// Reading state.
	prefaceLeft int
	data        dataFrame
	block       headerBlock
	cutHead     bool  // a part of a HEADERS or CONTINUATION frame was left to the next Feed
	headSince   int64 // since when a head is open, 0 where none is

	// Streams that we reset, and those whose peer said its last, of late:
	// what still comes for the former was on its way, for the latter it is an error (§5.1).
	reset, ended memory
	spare        spareHeads

	limits     limits
	unanswered int    // client: streams that ended early without a response
	sweepAt    int64  // when Sweep is to be called, 0: not asked for
	trimAt     int64  // when memory of a burst is given back, 0: there is none
	unused     int    // streams of free that were not used since that was set
	written    uint64 // bytes that went into the Output
	goneAway   bool   // GOAWAY with our final word was sent
	graceful   bool   // GOAWAY with the highest identifier was sent
	peerGone   bool   // GOAWAY was received
	closed     bool   // nothing is read or written any more
}

// NewServer returns the codec of an accepted connection.
func NewServer(out Output, o *Options, owner Owner) *Conn {
	c := newConn(out, o.filled(true), owner)
	c.server, c.owner = true, owner
	c.prefaceLeft = len(Preface)
	c.headSince = max(1, out.NowMono())
	return c
}

// NewClient returns the codec of a dialed connection.
func NewClient(out Output, o *Options, owner ClientOwner) *Conn {
	c := newConn(out, o.filled(false), owner)
	c.clientOwner = owner
	c.next = 1
	return c
}

type commonOwner interface {
	StreamClosed()
	SweepIn(d time.Duration)
}

func newConn(out Output, o Options, owner commonOwner) *Conn {
	c := &Conn{
		out: out, o: o, common: owner,
		dec:        hpack.NewDecoder(o.HeaderTableSize, o.MaxHeaderBytes, o.MaxHeaderCount),
		enc:        hpack.NewEncoder(o.HeaderTableSize),
		sendWindow: defaultWindow, peerWindow: defaultWindow, recvWindow: defaultWindow,
		peerFrame: minMaxFrame, peerStreams: defaultStreams, peerHeaders: math.MaxUint32,
	}
	c.limits.init(out.NowMono(), &c.o)
	return c
}

// Start sends the preface and SETTINGS.
func (c *Conn) Start() {
	if !c.server {
		c.out.Buffer().AppendString(Preface)
		c.written += uint64(len(Preface))
	}
	var b [frameHeaderLen + 6*6]byte
	n := frameHeaderLen
	set := func(id int, v uint32) {
		b[n], b[n+1] = 0, byte(id)
		put32(b[n+2:], v)
		n += 6
	}
	set(settingTableSize, c.o.HeaderTableSize)
	set(settingInitialWindow, c.o.InitialStreamWindow)
	set(settingMaxFrame, c.o.MaxFrameSize)
	set(settingMaxHeaderList, uint32(c.o.MaxHeaderBytes))
	if c.server {
		set(settingMaxStreams, c.o.MaxConcurrentStreams)
		if c.o.AllowConnect {
			set(settingConnectProtocol, 1)
		}
	} else {
		set(settingEnablePush, 0)
	}
	putHeader(b[:], n-frameHeaderLen, frameSettings, 0, 0)
	c.write(b[:n])
	if more := int64(c.o.InitialConnWindow) - defaultWindow; more > 0 {
		c.recvWindow += more
		c.writeWindowUpdate(0, uint32(more))
	}
}

// Feed takes bytes from the peer and says how many it consumed; the rest, the
// beginning of a frame or what waits for the next turn (see Rest), must stand at the beginning of what the next Feed
// gets. An error ends the connection and all its streams: GOAWAY is in the Output, and the caller
// sends what is there, and closes. Feed is not called from
// within an event of the same connection.
func (c *Conn) Feed(p []byte) (int, error) {
	if c.closed {
		return len(p), nil
	}
	c.recycle()
	c.depth++
	c.cutHead = false
	c.Turn.Begin()
	n, err := c.feed(p)
	c.depth--
	if err != nil {
		c.die(err)
		c.Closed(message.ProtocolError)
		return n, err
	}
	if !c.headOpen() {
		c.headSince = 0
	} else if c.headSince == 0 {
		c.headSince = max(1, c.out.NowMono())
	}
	return n, nil
}

// Rest says what the bytes wait for that Feed left. The receivers of streams
// hold back theirs alone: it is never ForOwner.
func (c *Conn) Rest() message.Rest {
	if c.Turn.Over() {
		return message.ForTurn
	}
	return message.ForBytes
}

// headOpen says on a server that the client has begun something that it must complete, and that no stream stands for
// yet: its preface, SETTINGS included (RFC 9113 §3.4), or a header block (§4.3).
func (c *Conn) headOpen() bool {
	return c.server && !c.closed && (!c.settings || c.block.stream != 0 || c.cutHead)
}

// Head is 0 where nothing of that kind is open, and else tells apart what is: it is since when, by the Output's clock.
func (c *Conn) Head(int) int64 { return c.headSince }

func (c *Conn) feed(p []byte) (int, *ConnError) {
	n := 0
	if c.prefaceLeft > 0 {
		n = min(len(p), c.prefaceLeft)
		if from := len(Preface) - c.prefaceLeft; string(p[:n]) != Preface[from:from+n] {
			return n, connError(ProtocolError, "the client's preface is wrong")
		}
		c.prefaceLeft -= n
	}
	for !c.closed {
		if c.data.open {
			k := min(len(p)-n, int(c.data.left+c.data.pad))
			if k == 0 && c.data.left+c.data.pad > 0 {
				return n, nil
			}
			n += k
			if err := c.onData(p[n-k : n]); err != nil {
				return n, err
			}
			continue
		}
		if len(p)-n < frameHeaderLen || c.Turn.Over() {
			return n, nil
		}
		h := parseHeader(p[n:])
		if err := c.check(&h); err != nil {
			return n, err
		}
		c.Turn.Spend(message.PieceCost)
		if h.kind == frameData { // its payload is passed on as it comes
			need := frameHeaderLen
			if h.has(flagPadded) && h.length > 0 {
				need++
			}
			if len(p)-n < need {
				return n, nil
			}
			if err := c.beginData(&h, p[n+frameHeaderLen:n+need]); err != nil {
				return n, err
			}
			n += need
			continue
		}
		end := n + frameHeaderLen + int(h.length)
		if len(p) < end {
			c.cutHead = h.kind == frameHeaders || h.kind == frameContinuation
			return n, nil
		}
		if err := c.onFrame(&h, p[n+frameHeaderLen:end]); err != nil {
			return end, err
		}
		n = end
	}
	return len(p), nil
}

// check is what holds for a frame by itself, and by those before it.
func (c *Conn) check(h *header) *ConnError {
	if err := h.check(c.o.MaxFrameSize); err != nil {
		return err
	}
	switch {
	case !c.settings && (h.kind != frameSettings || h.has(flagAck)):
		return connError(ProtocolError, "the first frame is not SETTINGS") // §3.4
	case c.block.stream != 0 && (h.kind != frameContinuation || h.stream != c.block.stream):
		return connError(ProtocolError, "a header block is interrupted") // §6.10
	case int(h.kind) < len(rules) && rules[h.kind].openOnly && h.stream != 0 && c.idle(h.stream):
		return connError(ProtocolError, rules[h.kind].name+" on an idle stream") // §5.1
	}
	return nil
}

// idle says that the stream was not opened yet. Clients open odd streams;
// nobody opens even ones, since there is no push.
func (c *Conn) idle(id uint32) bool { return id%2 == 0 || id > c.seen }

func (c *Conn) onFrame(h *header, p []byte) *ConnError {
	switch h.kind {
	case frameHeaders:
		return c.onHeaders(h, p)
	case frameContinuation:
		return c.onContinuation(h, p)
	case framePriority:
		return c.onPriority(h, p)
	case frameReset:
		return c.onReset(h, p)
	case frameSettings:
		return c.onSettings(h, p)
	case framePushPromise:
		return connError(ProtocolError, "PUSH_PROMISE, which was not allowed") // §8.4
	case framePing:
		return c.onPing(h, p)
	case frameGoAway:
		return c.onGoAway(p)
	case frameWindowUpdate:
		return c.onWindowUpdate(h, p)
	default:
		return c.idleFrame() // unknown types are ignored (§5.5), but counted
	}
}

// die ends the connection with a GOAWAY.
func (c *Conn) die(err *ConnError) {
	if !c.closed {
		c.writeGoAway(c.taken, err.Code)
		c.closed = true
	}
}

// Drain announces the connection's end with GOAWAY. A server does it in two steps, so
// that requests on their way are not lost (RFC 9113 §6.8): Drain(false) still
// takes every stream that is opened, and Drain(true), a round trip later,
// none that is new. The owner closes when no stream is open after that: see End. A
// client opens no more streams from either on.
func (c *Conn) Drain(last bool) {
	switch {
	case c.closed || c.goneAway:
	case !last && c.server:
		if !c.graceful {
			c.graceful = true
			c.writeGoAway(maxStreamID, NoError)
		}
	default:
		c.goneAway = true
		c.writeGoAway(c.taken, NoError)
	}
}

// Draining says that the end was announced by either side, or, on a client,
// that all identifiers are used up: no more streams will come, respectively
// can be opened.
func (c *Conn) Draining() bool {
	return c.graceful || c.goneAway || c.peerGone || c.closed || c.next > maxStreamID
}

// End says where a server's connection stands: it is over with its last stream, once none that is new is taken.
func (c *Conn) End() message.End {
	if c.closed || c.goneAway && c.active == 0 {
		return message.Close
	}
	return message.Open
}

// Refuse takes no more requests, since one is not here in time, and no other can come before it is (RFC 9113 §6.10).
// Those that are get their responses. It says whether there is a request to be told of in the log; its client is told nothing.
func (c *Conn) Refuse(failure.Kind) (refused bool, status, sent int) {
	refused = !c.closed
	c.Drain(true)
	return refused, 0, 0
}

// EOF says that the peer sends nothing more.
func (c *Conn) EOF() { c.Closed(message.ConnectionClosed) }

// Closed says that the transport ended: every
// open stream ends, and nothing is written any more. Only a response that is
// here as a whole, and held back by a Pause, is still delivered by its Resume.
func (c *Conn) Closed(why message.Reason) {
	c.closed = true
	c.visit(func(s *Stream) {
		switch {
		case s.recvEnd && !c.server:
			s.dropOutput()
			s.sendEnd = true
			s.settle()
		case s.id == 0:
			s.end(message.Refused) // it was never sent
		default:
			s.end(why)
		}
	})
}

// Active is the number of open streams.
func (c *Conn) Active() int { return c.active }

// Capacity is how many more streams a client may open now.
func (c *Conn) Capacity() int {
	if c.Draining() {
		return 0
	}
	return int(max(0, int64(min(c.peerStreams, c.o.MaxConcurrentStreams))-int64(c.active)))
}

// Limit is how many concurrent streams the server said that it takes; false before it said so.
func (c *Conn) Limit() (n int, known bool) { return int(c.peerStreams), c.settings }

// StarvedSince is since when streams wait for the connection's window alone, by the Output's clock; 0 where none does.
// It starts anew when the peer gives window.
func (c *Conn) StarvedSince() int64 {
	if c.starved.first == nil {
		return 0
	}
	return c.starvedAt
}

// Open begins a request whose response goes to r, and returns its *Stream; nil where there is
// no capacity. The stream gets its identifier with its head.
func (c *Conn) Open(r message.Receiver) message.Sender {
	if c.Capacity() == 0 {
		return nil
	}
	c.recycle()
	s := c.newStream()
	s.r = r
	return s
}

// Writable says that the Output has room again.
func (c *Conn) Writable() {
	c.pump()
	if c.full == 0 {
		return
	}
	c.visit((*Stream).drained)
}

// visit calls f for every stream that is open, whatever f does to them.
func (c *Conn) visit(f func(*Stream)) {
	c.depth++
	all := c.visiting[:0]
	c.visiting = nil
	for s := c.live.first; s != nil; s = s.live.next {
		all = append(all, s)
	}
	for _, s := range all {
		if !s.gone {
			f(s)
		}
	}
	clear(all)
	c.visiting = all[:0]
	c.depth--
}
