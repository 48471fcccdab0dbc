package http2

import (
	"sallyport/sidecar/buffer"
	"sallyport/sidecar/hpack"
	"sallyport/sidecar/message"
)

// preface is what a client sends first (RFC 9113 §3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Acceptor takes the requests of a server's connection.
type Acceptor interface {
	// NewStream is called when the head of a request is complete and right,
	// just before its Head event. s is the way back.
	NewStream(s *Stream) message.Receiver
}

// Conn is one side of a connection. Hooks are set before Start.
type Conn struct {
	// OnStreamClosed is called when a stream has ended: on a client, there may be room for another.
	OnStreamClosed func()
	// OnGoAway is called when the peer announced the connection's end.
	OnGoAway func()
	// OnPingAck is called with the eight bytes of an answered Ping.
	OnPingAck func(data uint64)

	out      Output
	o        Options
	server   bool
	acceptor Acceptor

	dec  *hpack.Decoder
	enc  *hpack.Encoder
	head message.Head // of what is being received

	streams map[uint32]*Stream
	free    []*Stream
	dead    []*Stream // free once no call is under way that may look at them
	active  int
	next    uint32 // client: the next identifier
	last    uint32 // the highest identifier that the peer used (server), or that we did (client)
	opened  uint64

	// What the peer allows us.
	sendWindow    int64
	peerWindow    int64 // SETTINGS_INITIAL_WINDOW_SIZE
	peerFrame     int
	peerStreams   uint32
	peerConnect   bool
	peerSettings  bool    // SETTINGS were received
	recvWindow    int64   // what the peer may still send
	recvUnacked   int64   // consumed and not given back
	full          int     // streams whose sender was told that they are full
	first, lastIn *Stream // streams with bytes that wait to be sent, in turn

	// Reading state.
	prefaceLeft int
	data        dataFrame
	block       []byte // of HEADERS and CONTINUATION frames
	blockOn     uint32 // stream whose header block is not complete
	blockEnd    bool   // END_STREAM
	blockFrames int
	scratch     []byte

	control, empty, priority, resets, sinceProgress int
	goneAway                                        bool // GOAWAY with our final word was sent
	graceful                                        bool // GOAWAY with the highest identifier was sent
	peerGone                                        bool // GOAWAY was received
	closed                                          bool
	wasReset, wasClosed                             ring // streams that we reset, and that ended, a short time ago
	depth                                           int  // calls of Feed and pump on the stack: streams are not reused
}

// dataFrame is a DATA frame whose payload is passed on as it comes.
type dataFrame struct {
	on        bool
	left, pad uint32
	end       bool
	stream    uint32
}

// NewServer returns the codec of an accepted connection.
func NewServer(out Output, o *Options, a Acceptor) *Conn {
	c := newConn(out, o)
	c.server, c.acceptor = true, a
	c.prefaceLeft = len(preface)
	return c
}

// NewClient returns the codec of a dialed connection.
func NewClient(out Output, o *Options) *Conn {
	c := newConn(out, o)
	c.next = 1
	// Before the peer's SETTINGS no limit is known; a hundred is what they
	// should at least allow (RFC 9113 §6.5.2).
	c.peerStreams = 100
	return c
}

func newConn(out Output, o *Options) *Conn {
	f := o.filled()
	return &Conn{out: out, o: f, streams: map[uint32]*Stream{}, sendWindow: defaultWindow, peerWindow: defaultWindow, peerFrame: minMaxFrame,
		peerStreams: 1<<31 - 1, recvWindow: defaultWindow,
		dec: hpack.NewDecoder(f.HeaderTableSize, f.MaxHeaderBytes, f.MaxHeaderCount), enc: hpack.NewEncoder(f.HeaderTableSize)}
}

// Start sends the preface and SETTINGS.
func (c *Conn) Start() {
	b := c.out.Buffer()
	if !c.server {
		b.AppendString(preface)
	}
	s := c.scratch[:0]
	set := func(id uint16, v uint32) { s = append32(append(s, byte(id>>8), byte(id)), v) }
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
	f := appendHeader(make([]byte, 0, frameHeaderLen+len(s)), len(s), frameSettings, 0, 0)
	b.Append(append(f, s...))
	if more := int64(c.o.InitialConnWindow) - defaultWindow; more > 0 {
		c.recvWindow += more
		c.windowUpdate(0, uint32(more))
	}
	c.out.Flush()
}

// Feed takes bytes from the peer and says how many it consumed; the rest, the
// beginning of a frame, must stand at the beginning of what the next Feed gets. An
// error ends the connection: GOAWAY is in the Output, and the caller sends it and closes.
func (c *Conn) Feed(p []byte) (int, error) {
	if c.closed {
		return len(p), nil
	}
	if c.out.Buffer().Len() == 0 {
		c.control = 0 // the peer reads our answers
	}
	c.depth++
	n, err := c.feed(p)
	c.depth--
	if err != nil {
		return n, c.die(err)
	}
	return n, nil
}

func (c *Conn) feed(p []byte) (int, *ConnError) {
	n := 0
	for c.prefaceLeft > 0 && n < len(p) {
		if p[n] != preface[len(preface)-c.prefaceLeft] {
			return n, &ConnError{ProtocolError, "the client's preface is wrong"}
		}
		n++
		c.prefaceLeft--
	}
	for !c.closed {
		if c.data.on {
			k := min(len(p)-n, int(c.data.left+c.data.pad))
			if k == 0 && c.data.left+c.data.pad > 0 {
				return n, nil
			}
			if err := c.dataPiece(p[n : n+k]); err != nil {
				return n + k, err
			}
			n += k
			continue
		}
		if len(p)-n < frameHeaderLen {
			return n, nil
		}
		h := parseHeader(p[n:])
		if err := c.order(&h); err != nil {
			return n, err
		}
		if h.kind == frameData {
			need := frameHeaderLen
			if h.flags&flagPadded != 0 {
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
		if len(p)-n < frameHeaderLen+int(h.length) {
			return n, nil
		}
		payload := p[n+frameHeaderLen : n+frameHeaderLen+int(h.length)]
		n += frameHeaderLen + int(h.length)
		if err := c.frame(&h, payload); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// order checks what holds for a frame by itself and by the one before it.
func (c *Conn) order(h *header) *ConnError {
	if !c.peerSettings && (h.kind != frameSettings || h.flags&flagAck != 0) {
		return &ConnError{ProtocolError, "the first frame is not SETTINGS"} // RFC 9113 §3.4
	}
	if err := h.check(c.o.MaxFrameSize); err != nil {
		return err
	}
	if c.blockOn != 0 && (h.kind != frameContinuation || h.stream != c.blockOn) {
		return &ConnError{ProtocolError, "a header block is interrupted"} // §6.10
	}
	return nil
}

func (c *Conn) frame(h *header, p []byte) *ConnError {
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
		return &ConnError{ProtocolError, "PUSH_PROMISE, which was not allowed"} // §8.4
	case framePing:
		return c.onPing(h, p)
	case frameGoAway:
		c.onGoAway(p)
	case frameWindowUpdate:
		return c.onWindowUpdate(h, p)
	default:
		return c.flood(false) // unknown types are ignored (§5.5), but counted
	}
	return nil
}

// maxIdleFrames bounds frames that move no request on, however slowly they come.
const maxIdleFrames = 100_000

// flood counts a frame that moves no request on; those that make us answer are
// limited to what may wait while the peer does not read (CVE-2019-9512, 9515).
func (c *Conn) flood(answered bool) *ConnError {
	if answered {
		c.control++
	}
	if c.sinceProgress++; c.control > c.o.MaxControlFrames || c.sinceProgress > maxIdleFrames {
		return &ConnError{EnhanceYourCalm, "too many control frames"}
	}
	return nil
}

// progress is what makes control frames forgivable.
func (c *Conn) progress() { c.sinceProgress, c.empty = 0, 0 }

// idle says that no frame of the stream may come yet (§5.1).
func (c *Conn) idle(id uint32) bool {
	// Clients open odd streams; nobody opens even ones, since there is no push.
	return id%2 == 0 || id > c.last
}

// beginData takes a DATA frame's header; pad is its padding length, where it has one.
func (c *Conn) beginData(h *header, pad []byte) *ConnError {
	length := h.length
	c.data = dataFrame{on: true, stream: h.stream, end: h.flags&flagEndStream != 0, left: length}
	if len(pad) > 0 {
		if length == 0 || uint32(pad[0]) >= length {
			return &ConnError{ProtocolError, "DATA padding is not shorter than the frame"} // §6.1
		}
		c.data.left, c.data.pad = length-1-uint32(pad[0]), uint32(pad[0])
	} else if h.flags&flagPadded != 0 {
		return &ConnError{FrameSizeError, "DATA without its padding length"}
	}
	if c.idle(h.stream) {
		return &ConnError{ProtocolError, "DATA on an idle stream"}
	}
	// Flow control counts the whole payload, padding included (§6.9.1).
	c.recvWindow -= int64(length)
	if c.recvWindow < 0 {
		return &ConnError{FlowControlError, "more DATA than the connection's window"}
	}
	if length == 0 && !c.data.end {
		if c.empty++; c.empty > c.o.MaxEmptyFrames {
			return &ConnError{EnhanceYourCalm, "too many empty DATA frames"}
		}
	} else if length > 0 {
		c.progress()
	}
	s := c.streams[h.stream]
	if s == nil || s.recvEnd {
		if s == nil && c.resetRecently(h.stream) {
			c.consumed(int64(length)) // on its way when we reset the stream (§5.1)
			return nil
		}
		if s == nil {
			return &ConnError{StreamClosed, "DATA on a closed stream"}
		}
		c.consumed(int64(length))
		return c.streamError(s, StreamClosed)
	}
	s.recvWindow -= int64(length)
	if s.recvWindow < 0 {
		c.consumed(int64(length))
		return c.streamError(s, FlowControlError)
	}
	overhead := int64(length) - int64(c.data.left)
	c.consumed(overhead)
	s.consumed(overhead)
	return nil
}

// dataPiece passes on what came of a DATA frame's payload.
func (c *Conn) dataPiece(p []byte) *ConnError {
	d := &c.data
	payload := p[:min(len(p), int(d.left))]
	d.left -= uint32(len(payload))
	d.pad -= uint32(len(p) - len(payload))
	done := d.left == 0
	if done && d.pad == 0 {
		d.on = false
	}
	s := c.streams[d.stream]
	if s == nil || s.recvEnd || len(payload) == 0 && !(done && d.end) {
		return nil
	}
	c.consumed(int64(len(payload)))
	s.received += int64(len(payload))
	end := done && d.end
	if s.length >= 0 && (s.received > s.length || end && s.received != s.length) {
		// §8.1.1: the content is not as long as content-length said.
		return c.streamError(s, ProtocolError)
	}
	if end {
		s.recvEnd = true
	}
	if len(payload) > 0 || end {
		s.r.Data(payload, end)
	}
	if !s.gone {
		s.consumed(int64(len(payload)))
		s.settle()
	}
	return nil
}

// consumed gives window of the connection back, half of it at a time.
func (c *Conn) consumed(n int64) {
	c.recvUnacked += n
	if c.recvUnacked >= int64(c.o.InitialConnWindow)/2 && !c.closed {
		c.windowUpdate(0, uint32(c.recvUnacked))
		c.recvWindow += c.recvUnacked
		c.recvUnacked = 0
	}
}

func (c *Conn) windowUpdate(stream, n uint32) {
	var b [frameHeaderLen + 4]byte
	c.out.Buffer().Append(append32(appendHeader(b[:0], 4, frameWindowUpdate, 0, stream), n))
	c.out.Flush()
}

func (c *Conn) onPriority(h *header, p []byte) *ConnError {
	// Priorities are deprecated and ignored (§5.3.2), but not their mistakes.
	if len(p) != 5 {
		if s := c.streams[h.stream]; s != nil {
			return c.streamError(s, FrameSizeError)
		}
		c.sendReset(h.stream, FrameSizeError)
		return c.flood(true)
	}
	if be32(p)&^(1<<31) == h.stream {
		if s := c.streams[h.stream]; s != nil {
			return c.streamError(s, ProtocolError)
		}
		return &ConnError{ProtocolError, "a stream depends on itself"}
	}
	if c.priority++; c.priority > c.o.MaxPriorityFrames*(1+int(min(c.opened, 1<<20))) {
		return &ConnError{EnhanceYourCalm, "too many PRIORITY frames"}
	}
	return nil
}

func (c *Conn) onReset(h *header, p []byte) *ConnError {
	if c.idle(h.stream) {
		return &ConnError{ProtocolError, "RST_STREAM on an idle stream"}
	}
	s := c.streams[h.stream]
	if s == nil {
		return c.flood(false)
	}
	code := ErrCode(be32(p))
	why := message.RemoteReset
	if code == RefusedStream && !c.server {
		why = message.Refused
	}
	// A client that lets its requests begin and takes them back makes us
	// work for nothing (CVE-2023-44487).
	if err := c.countReset(); err != nil {
		return err
	}
	if code == NoError && !c.server && s.recvEnd {
		// The server answered early and does not want the rest of the request (§8.1).
		s.sendEnd = true
		s.settle()
		return nil
	}
	s.end(why)
	return nil
}

// countReset counts streams that ended early by the peer's doing; more than
// the limit, and more than half of all streams, is an attack.
func (c *Conn) countReset() *ConnError {
	if c.resets++; c.resets > c.o.MaxResets && uint64(c.resets)*2 > c.opened {
		return &ConnError{EnhanceYourCalm, "too many streams are reset"}
	}
	return nil
}

func (c *Conn) onSettings(h *header, p []byte) *ConnError {
	if h.flags&flagAck != 0 {
		if len(p) > 0 {
			return &ConnError{FrameSizeError, "SETTINGS acknowledgment with a payload"}
		}
		return c.flood(false)
	}
	for ; len(p) >= 6; p = p[6:] {
		id, v := uint16(p[0])<<8|uint16(p[1]), be32(p[2:])
		switch id {
		case settingTableSize:
			c.enc.SetTableSize(v)
		case settingEnablePush:
			if v > 1 || v == 1 && !c.server {
				return &ConnError{ProtocolError, "SETTINGS_ENABLE_PUSH is wrong"}
			}
		case settingMaxStreams:
			c.peerStreams = v
		case settingInitialWindow:
			if v > maxWindow {
				return &ConnError{FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1"}
			}
			// §6.9.2: the change applies to all open streams; their windows may become negative.
			delta := int64(v) - c.peerWindow
			c.peerWindow = int64(v)
			for _, s := range c.streams {
				if s.sendWindow += delta; s.sendWindow > maxWindow {
					return &ConnError{FlowControlError, "a window above 2^31-1"}
				}
				s.queue()
			}
		case settingMaxFrame:
			if v < minMaxFrame || v > noLimit {
				return &ConnError{ProtocolError, "SETTINGS_MAX_FRAME_SIZE is out of bounds"}
			}
			c.peerFrame = int(v)
		case settingConnectProtocol:
			if v > 1 || v == 0 && c.peerConnect {
				return &ConnError{ProtocolError, "SETTINGS_ENABLE_CONNECT_PROTOCOL is wrong"}
			}
			c.peerConnect = v == 1
		}
	}
	c.peerSettings = true
	var b [frameHeaderLen]byte
	c.out.Buffer().Append(appendHeader(b[:0], 0, frameSettings, flagAck, 0))
	c.out.Flush()
	c.pump()
	if c.OnStreamClosed != nil && !c.server {
		c.OnStreamClosed() // there may be room for more streams now
	}
	return c.flood(true)
}

func (c *Conn) onPing(h *header, p []byte) *ConnError {
	if h.flags&flagAck != 0 {
		if c.OnPingAck != nil {
			c.OnPingAck(uint64(be32(p))<<32 | uint64(be32(p[4:])))
		}
		return c.flood(false)
	}
	var b [frameHeaderLen + 8]byte
	c.out.Buffer().Append(append(appendHeader(b[:0], 8, framePing, flagAck, 0), p...))
	c.out.Flush()
	return c.flood(true)
}

// Ping asks for a sign of life; OnPingAck gets the data back.
func (c *Conn) Ping(data uint64) {
	if c.closed {
		return
	}
	var b [frameHeaderLen + 8]byte
	f := appendHeader(b[:0], 8, framePing, 0, 0)
	c.out.Buffer().Append(append32(append32(f, uint32(data>>32)), uint32(data)))
	c.out.Flush()
}

func (c *Conn) onGoAway(p []byte) {
	last := be32(p) &^ (1 << 31)
	c.peerGone = true
	if !c.server {
		// §6.8: what is above was not and will not be processed.
		for id, s := range c.streams {
			if id > last {
				s.end(message.Refused)
			}
		}
	}
	if c.OnGoAway != nil {
		c.OnGoAway()
	}
}

func (c *Conn) onWindowUpdate(h *header, p []byte) *ConnError {
	n := int64(be32(p) &^ (1 << 31))
	if h.stream == 0 {
		if n == 0 {
			return &ConnError{ProtocolError, "WINDOW_UPDATE of 0"}
		}
		if c.sendWindow += n; c.sendWindow > maxWindow {
			return &ConnError{FlowControlError, "the connection's window is above 2^31-1"}
		}
		c.pump()
		return c.flood(false)
	}
	if c.idle(h.stream) {
		return &ConnError{ProtocolError, "WINDOW_UPDATE on an idle stream"}
	}
	s := c.streams[h.stream]
	if s == nil {
		return c.flood(false)
	}
	if n == 0 {
		return c.streamError(s, ProtocolError)
	}
	if s.sendWindow += n; s.sendWindow > maxWindow {
		return c.streamError(s, FlowControlError)
	}
	s.queue()
	c.pump()
	return c.flood(false)
}

// streamError resets a stream for what the peer did (§5.4.2). Many of them
// are an attack (MadeYouReset), and then it is the connection's error.
func (c *Conn) streamError(s *Stream, code ErrCode) *ConnError {
	c.sendReset(s.id, code)
	s.end(message.ProtocolError)
	return c.countReset()
}

func (c *Conn) sendReset(id uint32, code ErrCode) {
	var b [frameHeaderLen + 4]byte
	c.out.Buffer().Append(append32(appendHeader(b[:0], 4, frameReset, 0, id), uint32(code)))
	c.out.Flush()
	c.wasReset.add(id)
}

// resetRecently says whether frames of the stream may still be on their way.
func (c *Conn) resetRecently(id uint32) bool { return c.wasReset.has(id) }

// ring remembers the last stream identifiers that were added.
type ring struct {
	ids [64]uint32
	at  int
}

func (r *ring) add(id uint32) {
	r.ids[r.at%len(r.ids)] = id
	r.at++
}

func (r *ring) has(id uint32) bool {
	for _, o := range r.ids {
		if o == id {
			return true
		}
	}
	return false
}

// die writes GOAWAY for a connection error.
func (c *Conn) die(err *ConnError) error {
	if !c.closed {
		c.goAway(c.last, err.Code)
		c.closed = true
	}
	return err
}

func (c *Conn) goAway(last uint32, code ErrCode) {
	if !c.server {
		last = 0 // a client names the last stream that the server opened: none
	}
	var b [frameHeaderLen + 8]byte
	f := appendHeader(b[:0], 8, frameGoAway, 0, 0)
	c.out.Buffer().Append(append32(append32(f, last), uint32(code)))
	c.out.Flush()
}

// GoAway announces the connection's end. A server does it in two steps, so
// that requests on their way are not lost (§6.8): first graceful, which
// promises to take every stream that is opened, and a round trip later not, which names the last one taken.
func (c *Conn) GoAway(graceful bool) {
	switch {
	case c.closed || c.goneAway:
	case graceful && c.server:
		if !c.graceful {
			c.graceful = true
			c.goAway(1<<31-1, NoError)
		}
	default:
		c.graceful, c.goneAway = true, true
		c.goAway(c.last, NoError)
	}
}

// Draining says that the end was announced by either side: on a client, no stream can be opened.
func (c *Conn) Draining() bool { return c.graceful || c.peerGone || c.closed }

// Closed says that the transport ended: every open stream ends.
func (c *Conn) Closed(why message.Reason) {
	c.closed = true
	for _, s := range c.streams {
		if s.recvEnd && !c.server && s.sendEnd {
			continue
		}
		s.end(why)
	}
	for id := range c.streams {
		delete(c.streams, id)
	}
	c.active = 0
}

// ActiveStreams is the number of open streams.
func (c *Conn) ActiveStreams() int { return c.active }

// Capacity is how many more streams a client may open now.
func (c *Conn) Capacity() int {
	if c.Draining() || c.next >= 1<<31-1 {
		return 0
	}
	return int(max(0, int64(c.peerStreams)-int64(c.active)))
}

// OpenStream begins a request whose response goes to r; false where there is no capacity.
func (c *Conn) OpenStream(r message.Receiver) (*Stream, bool) {
	if c.Capacity() == 0 {
		return nil, false
	}
	s := c.newStream()
	s.r = r
	c.active++
	return s, true
}

// Writable says that the Output has room again.
func (c *Conn) Writable() { c.pump() }

// pump sends what waits, a frame of each stream in turn, as far as the
// connection's window and the Output allow.
func (c *Conn) pump() {
	c.depth++
	defer func() { c.depth-- }()
	for c.first != nil && c.sendWindow > 0 && !c.closed && !c.out.Full() {
		s := c.first
		c.dequeue(s)
		s.sendFrame()
		if s.gone {
			continue
		}
		s.queue()
		s.drained()
	}
	if c.full == 0 || c.closed || c.out.Full() {
		return
	}
	// Streams that waited for the Output alone.
	for _, s := range c.streams {
		s.drained()
	}
}

func (c *Conn) dequeue(s *Stream) {
	if !s.queued {
		return
	}
	if s.prev != nil {
		s.prev.following = s.following
	} else {
		c.first = s.following
	}
	if s.following != nil {
		s.following.prev = s.prev
	} else {
		c.lastIn = s.prev
	}
	s.prev, s.following, s.queued = nil, nil, false
}

// pool is the worker's memory, as the Output has it.
func (c *Conn) pool() *buffer.Pool { return c.out.Buffer().Pool() }
