// Package conn owns sockets: it accepts and dials TCP and Unix connections,
// reads and writes them without blocking, and puts TLS between the socket and
// whoever speaks a protocol on it (a codec, the TCP proxy, a listener filter).
//
// A Conn belongs to one loop.Worker for its whole life, and everything in this
// package is called on that worker's goroutine, except where a comment says
// otherwise. A TLS handshake runs there too, on a coroutine, at most one of its
// flights in a turn of the loop.
//
// An idle connection holds no buffer: input is read into the worker's scratch
// memory, and what a handler does not consume, or the socket does not take,
// waits in memory of the worker's pool.
package conn

import (
	"crypto/tls"
	"errors"
	"math"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/sidecar/buffer"
	"sallyport/sidecar/invariants"
	"sallyport/sidecar/loop"
)

// Handler is what a connection is for. All calls come on the worker, from the
// loop, never from inside a call that the handler makes, with one exception:
// Start calls Connected. Any method of the Conn may be called in any of them:
// after Close, Reset or CloseAfterFlush only Closed follows.
type Handler interface {
	// Connected says that a dialed connection is established; where TLS was
	// started, that the handshake is done. StartTLSClient within Connected
	// therefore leads to a second Connected. On accepted connections Start
	// calls it at once, or it comes after the handshake.
	Connected()
	// Data presents what has arrived and returns how much of it was
	// consumed. The rest is kept and presented again when more has arrived,
	// after ResumeRead, or at once to the handler that a Start within Data
	// has put in place. p is valid during the call only. A handler that
	// consumes nothing of more than the limit loses the connection: see SetInputLimit.
	Data(p []byte) int
	// EOF says that the peer closed its writing half. Writing is still
	// possible; when both halves are closed the connection closes itself.
	EOF()
	// Drained says that, after Full answered true, what waits has fallen
	// to the low mark.
	Drained()
	// Closed is the last call and comes exactly once: at the end of the
	// turn in which the connection closed for whatever reason. err is nil
	// after Close and Reset, and where both sides ended in good order.
	Closed(err error)
}

// Waiter is a Handler that watches output that the socket does not take.
type Waiter interface {
	// Waiting says, at the end of a turn that wrote, that some of it is Unsent.
	Waiting()
}

// What a Conn can be closed with, besides errors of the system and of TLS.
var (
	ErrConnectTimeout   = errors.New("connection not established within the connect timeout")
	ErrHandshakeTimeout = errors.New("TLS handshake not done within its timeout")
	ErrReadLimit        = errors.New("more unconsumed input than the connection's buffer limit")
	ErrStopped          = errors.New("the worker has stopped")
)

const (
	// DefaultLimit is Envoy's per_connection_buffer_limit_bytes.
	DefaultLimit = 1 << 20
	// DefaultConnectTimeout is Envoy's connect_timeout.
	DefaultConnectTimeout = 5 * time.Second
	// DefaultHandshakeTimeout bounds a TLS handshake with a client.
	DefaultHandshakeTimeout = 15 * time.Second

	readsPerTurn = 4       // of one connection, each up to ReadSize
	lingerBytes  = 4 << 20 // what CloseAfterFlush reads and drops at most
	lingerTime   = time.Second
	// What CloseAfterAnswer reads and drops at most, and for how long.
	answerBytes = 512 << 20
	answerTime  = 30 * time.Second
)

// Conn is a connection. Owned by its worker.
type Conn struct {
	w      *loop.Worker
	e      *engine
	once   invariants.Once // from newConn to Closed
	h      Handler
	fd     int // -1 when closed
	token  loop.Token
	id     uint64
	next   *Conn // of the engine's list
	prev   *Conn
	remote netip.AddrPort
	local  netip.AddrPort
	path   string // of a Unix socket that was dialed

	out  buffer.Buffer // what the handler wrote and the socket, or TLS, did not take yet
	kept buffer.Buffer // what the handler was given and did not consume
	sec  *secure       // nil while plain

	high, low     int32
	keep          int32 // unconsumed input, where that is more than high
	paused        int32
	lingered      int32
	lingerEnd     int64 // of CloseAfterAnswer: when dropping input ends, in the worker's time; 0: not by that
	read, written uint64
	err           error // what Closed will get
	werr          error // why output is dropped; input may still be worth reading
	timer         loop.Timer
	patience      time.Duration // how long the handshake may take, later the lingering
	pipes         *splices      // nil until the connection is spliced

	connecting bool // the TCP handshake is under way
	open       bool // the handler's bytes flow, as opposed to connecting or handshaking
	closed     bool
	readable   bool // the socket may have more: edge-triggered, so remembered here
	hup        bool // a short read is not the last one: EOF or an error is behind it
	writable   bool
	eofPending bool // EOF was read, the handler does not know yet
	eof        bool // the handler knows
	fresh      bool // kept must be presented though nothing arrived
	yielded    bool // nothing is presented before the next turn
	pumping    bool
	wantShut   bool // shut down the writing half when all is sent
	shut       bool
	lingering  bool // CloseAfterFlush: input is dropped
	brief      bool // patience ends with what waits
	wasFull    bool
	flushing   bool // TurnEnd is registered
	turning    bool // Turn is registered
	noSplice   bool
	endOnReset bool
	spared     bool   // TCP, perhaps: see Accelerator
	held       bool   // must not be sent to until the peer has read
	slot       uint16 // in the Accelerator
	fetched    uint8  // 1 + where in the batch its input of this turn is, 0: nowhere
}

func newConn(w *loop.Worker) *Conn {
	e := engineOf(w)
	c := &Conn{w: w, e: e, fd: -1, id: e.nextID(), high: DefaultLimit, low: DefaultLimit / 2}
	c.out.Init(w.Pool())
	c.kept.Init(w.Pool())
	c.timer.Init(c.timeout)
	c.once.Begin("connection")
	e.link(c)
	return c
}

// ID is unique among the connections of all workers.
func (c *Conn) ID() uint64 { return c.id }

// Worker is the connection's owner.
func (c *Conn) Worker() *loop.Worker { return c.w }

// NowMono is the worker's clock in nanoseconds, read once per turn: for the codecs, which have none of their own.
func (c *Conn) NowMono() int64 { return c.w.NowMono() }

// FD is the socket, -1 when closed; for socket options.
func (c *Conn) FD() int { return c.fd }

// RemoteAddr is the peer's address; the zero AddrPort for a Unix socket.
func (c *Conn) RemoteAddr() netip.AddrPort { return c.remote }

// SetRemoteAddr replaces the peer's address by the one that a proxy in front has told.
func (c *Conn) SetRemoteAddr(a netip.AddrPort) { c.remote = a }

// LocalAddr is the connection's own address; the zero AddrPort for a Unix socket.
func (c *Conn) LocalAddr() netip.AddrPort { return c.local }

// SetLocalAddr replaces it by the one that the client meant (PROXY protocol, original destination).
func (c *Conn) SetLocalAddr(a netip.AddrPort) { c.local = a }

// OriginalDst is where the connection was going before netfilter redirected it here.
func (c *Conn) OriginalDst() (netip.AddrPort, error) { return OriginalDst(c.fd) }

// BytesRead counts what was received, BytesWritten what was sent, by the handler's measure: without TLS.
func (c *Conn) BytesRead() uint64    { return c.read }
func (c *Conn) BytesWritten() uint64 { return c.written }

// TLS is the state of the handshake, nil where the connection is plain or the handshake is not done.
func (c *Conn) TLS() *tls.ConnectionState {
	if c.sec == nil {
		return nil
	}
	return c.sec.state
}

// Closing says that only Closed is still to come.
func (c *Conn) Closing() bool { return c.closed || c.lingering }

// SetLimit sets the high mark, and half of it as the low one: above it Full
// is true, and unconsumed input closes the connection, unless SetInputLimit
// allows more. A read is not much larger either. 0 is DefaultLimit.
func (c *Conn) SetLimit(n int) {
	if n <= 0 {
		n = DefaultLimit
	}
	c.SetMarks(n, n/2)
}

// SetMarks sets the high and low marks of the output apart. A mark beyond 2 GiB is 2 GiB.
func (c *Conn) SetMarks(high, low int) {
	c.w.Owned()
	high = min(high, math.MaxInt32)
	c.high, c.low = int32(high), int32(min(low, high))
}

// SetInputLimit says how much input the handler may leave unconsumed: it is what
// the handler's protocol needs to have at once, and may be more than the limit of
// the output. Without it, or where it is less, that is the limit of both.
func (c *Conn) SetInputLimit(n int) { c.keep = int32(min(n, math.MaxInt32)) }

// EndOnReset is for a server: its connection ends as soon as the client has reset it, or takes no output any more, whatever
// input waits. Nobody takes the answers to that. Otherwise input is read to its end first: a peer that was dialed may have
// answered before it went.
func (c *Conn) EndOnReset() { c.endOnReset = true }

// SetHandshakeTimeout is for the next StartTLSServer; 0 is DefaultHandshakeTimeout. A connection that was dialed has
// DialOptions.ConnectTimeout instead.
func (c *Conn) SetHandshakeTimeout(d time.Duration) { c.patience = d }

// Handler is the current one, nil before Start.
func (c *Conn) Handler() Handler { return c.h }

// Start gives an accepted connection its handler, or any connection another
// one. Connected is called at once, unless a handshake is under way. What was
// presented to the handler before and not consumed is presented to this one, and
// EOF comes to it after that though the other had it already.
func (c *Conn) Start(h Handler) {
	c.w.Owned()
	if c.closed {
		// Nobody else will tell it.
		if c.h == nil {
			c.h = h
			c.w.AtTurnEnd((*finisher)(c))
		}
		return
	}
	c.replace(h)
	if c.open {
		h.Connected()
	}
	c.again()
}

// SetHandler is Start without the call of Connected.
func (c *Conn) SetHandler(h Handler) {
	c.w.Owned()
	c.replace(h)
	c.again()
}

func (c *Conn) replace(h Handler) {
	c.h = h
	c.fresh = true
	if c.eof && c.open {
		c.eof, c.eofPending = false, true
	}
}

// Buffer takes output; Flush must follow.
func (c *Conn) Buffer() *buffer.Buffer {
	c.w.Owned()
	return &c.out
}

// Flush has what is in the Buffer sent at the end of this turn.
func (c *Conn) Flush() {
	c.w.Owned()
	if !c.flushing {
		c.flushing = true
		c.w.AtTurnEnd((*flusher)(c))
	}
}

// Write appends p to the output of this turn.
func (c *Conn) Write(p []byte) {
	c.w.Owned()
	if c.closed || c.wantShut || c.werr != nil {
		return
	}
	c.out.Append(p)
	c.Flush()
}

// Full says that more than the high mark waits to be sent; Drained will follow.
func (c *Conn) Full() bool {
	c.w.Owned()
	if c.pending() <= int(c.high) || c.closed || c.werr != nil {
		return false
	}
	c.wasFull = true
	return true
}

// Unsent is how much was written and not given to the kernel yet.
func (c *Conn) Unsent() int { return c.pending() }

func (c *Conn) pending() int {
	n := c.out.Len()
	if c.sec != nil {
		n += c.sec.out.Len()
	}
	if p := c.splices().from; p != nil {
		n += p.n
	}
	return n
}

// PauseRead stops reading, and with it Data, so that TCP pushes back on the
// peer. Pauses nest. A peer that goes away with nothing left to read is
// noticed all the same: EOF or Closed then come during a pause.
func (c *Conn) PauseRead() {
	c.w.Owned()
	c.paused++
}

// ResumeRead ends one PauseRead; after the last, what was kept is presented
// and reading goes on, in the next turn.
func (c *Conn) ResumeRead() {
	c.w.Owned()
	if c.paused == 0 {
		return
	}
	if c.paused--; c.paused == 0 {
		c.fresh = true
		c.again()
	}
}

// Yield ends what a handler does for this connection in this turn of the loop.
// What it did not consume is presented again in the next turn, before anything
// else is read. It is called from within Data.
func (c *Conn) Yield() {
	if !c.yielded {
		c.yielded, c.fresh = true, true
		c.w.Later((*yielder)(c))
	}
}

// CloseWrite closes the writing half when what waits is sent: close_notify where there is TLS, then FIN.
func (c *Conn) CloseWrite() {
	c.w.Owned()
	if !c.closed && !c.wantShut {
		c.wantShut = true
		c.Flush()
	}
}

// Close closes at once. What was written in this turn is lost; see CloseAfterFlush.
func (c *Conn) Close() {
	c.w.Owned()
	if c.closed {
		return
	}
	if c.sec != nil && c.open && c.writable && c.pending() == 0 && !c.shut {
		c.sec.notify()
	}
	c.close(nil)
}

// Reset closes at once with a TCP RST, so that the peer cannot take the end for a good one.
func (c *Conn) Reset() {
	c.w.Owned()
	if c.closed {
		return
	}
	c.abort()
	c.close(nil)
}

// abort has the socket closed with RST.
func (c *Conn) abort() {
	if c.fd >= 0 && !c.peerIsUnix() {
		// RST is what a zero linger time means.
		_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
}

func (c *Conn) peerIsUnix() bool { return !c.local.IsValid() && !c.remote.IsValid() }

// CloseAfterFlush sends what waits, closes the writing half, and reads and
// drops what the peer still sends until it closes too: closing a socket with
// unread input makes the kernel send RST, which would destroy the last response
// on its way. The connection is closed in any case when nothing was sent for
// the timeout (0 is one second), when the peer does not close within it after
// that, or when it sends too much; with RST if something still waits, since the
// peer must not take what it has got for all there was.
func (c *Conn) CloseAfterFlush(timeout time.Duration) {
	c.w.Owned()
	if c.closed || c.lingering {
		return
	}
	if !c.open {
		c.close(nil)
		return
	}
	c.linger(nil, timeout)
}

// CloseAfterAnswer is CloseAfterFlush for a server that answered before it has read
// everything. Many clients write a whole upload before they read: as long as one
// goes on sending, it is read, for 30 seconds and 512 MiB at most.
func (c *Conn) CloseAfterAnswer(timeout time.Duration) {
	c.lingerEnd = c.w.NowMono() + int64(answerTime)
	c.CloseAfterFlush(timeout)
}

// CloseAfterSlowFlush is CloseAfterFlush for a peer that may pause: patience is
// for what waits alone; the peer has a second to close when all is sent.
func (c *Conn) CloseAfterSlowFlush(patience time.Duration) {
	c.brief = true
	c.CloseAfterFlush(patience)
}

func (c *Conn) linger(err error, timeout time.Duration) {
	if timeout <= 0 {
		timeout = lingerTime
	}
	c.lingering, c.wantShut, c.err, c.patience = true, true, err, timeout
	c.waitOn()
	c.unspliceInput()
	c.Flush()
	c.again()
}

// waitOn starts the time anew for a peer that did its part so far.
func (c *Conn) waitOn() { c.w.Schedule(&c.timer, c.lingerTime()) }

// lingerTime is how long the peer may do nothing.
func (c *Conn) lingerTime() time.Duration {
	if c.brief && c.pending() == 0 {
		return lingerTime
	}
	return c.patience
}

// heard takes note of n bytes that are dropped, which keep the time of
// CloseAfterAnswer running. They take none from a peer that is still being sent to.
func (c *Conn) heard(n int) {
	most := int32(lingerBytes)
	if c.lingerEnd != 0 {
		most = answerBytes
	}
	if c.lingered += int32(n); c.lingered > most {
		c.giveUp()
		return
	}
	if c.lingerEnd == 0 {
		return
	}
	left, d := time.Duration(c.lingerEnd-c.w.NowMono()), c.lingerTime()
	if left >= d || c.pending() == 0 {
		c.w.Schedule(&c.timer, max(min(d, left), 0))
	}
}

// close closes the socket and has Closed called at the end of the turn, when
// nothing of this connection is on the stack or in the hands of its handler.
func (c *Conn) close(err error) {
	if c.closed {
		return
	}
	c.closed = true
	if err != nil {
		c.err = err
	}
	// First, so that Closed is called whatever becomes of the rest.
	c.w.AtTurnEnd((*finisher)(c))
	c.timer.Stop()
	if c.fd >= 0 {
		c.w.Forget(c.token)
		unix.Close(c.fd)
		c.fd = -1
	}
	if c.sec != nil {
		c.sec.abort()
	}
	c.unspliceInput()
	c.unspliceOutput()
}

// finisher is a Conn at the end of the turn in which it closed.
type finisher Conn

// TurnEnd gives back what the connection holds and tells the handler.
func (f *finisher) TurnEnd() {
	c := (*Conn)(f)
	c.out.Release()
	c.kept.Release()
	if c.sec != nil {
		c.sec.release()
	}
	c.e.unlink(c)
	if h := c.h; h != nil {
		c.h = closedHandler{}
		c.once.Finish("connection")
		h.Closed(c.err)
	}
}

// closedHandler stands where the handler was: a connection that is closed calls nobody.
type closedHandler struct{}

func (closedHandler) Connected()        {}
func (closedHandler) Data(p []byte) int { return len(p) }
func (closedHandler) EOF()              {}
func (closedHandler) Drained()          {}
func (closedHandler) Closed(error)      {}

// timeout is the one timer of a connection, whose phases come one after another.
func (c *Conn) timeout() {
	defer c.w.Guard(c)
	switch {
	case c.lingering:
		c.giveUp()
	case c.connecting, c.sec != nil && c.sec.hs != nil && c.sec.hs.client:
		c.close(ErrConnectTimeout)
	default:
		c.close(ErrHandshakeTimeout)
	}
}

// giveUp ends the lingering for a peer that does not do its part. Whether what
// waits is lost decides how.
func (c *Conn) giveUp() {
	if c.pending() > 0 {
		c.abort()
	}
	c.close(c.err)
}

// established starts the flow of the handler's bytes.
func (c *Conn) established() {
	c.timer.Stop()
	c.open = true
	c.fresh = true
	if c.pending() > 0 || c.wantShut {
		c.Flush()
	}
	if c.h != nil {
		c.h.Connected()
	}
}
