package exchange

import (
	"time"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/upstream"
)

// User is whose exchange it is. The events of a response come in the order
// Informational* Head Data* Trailers?, and Done is the last of all, unless the
// User cancels: then none follows. A User may cancel in any of them.
type User interface {
	// Ready says that a connection was found and the head is about to be
	// sent: the last moment to change it.
	Ready(x *Exchange)
	// Sent says that the whole request was given to the connection.
	Sent(x *Exchange)
	// Informational is a 1xx head other than 101.
	Informational(x *Exchange, h *message.Head)
	// Head is the final head; the User may take it by exchange.
	Head(x *Exchange, h *message.Head, end bool)
	Data(x *Exchange, p []byte, end bool)
	Trailers(x *Exchange, h *message.Head)
	// Done is the end of the exchange.
	Done(x *Exchange, o Outcome)
}

// phase of an exchange.
type phase uint8

const (
	idle    phase = iota // not started, or over
	waiting              // for a connection
	open                 // the request is on a connection, the response to come
)

// progress of a message.
type progress uint8

const (
	nothing progress = iota
	begun            // of a response, also an informational head
	headed           // the head is there: of a response, the final one
	whole
)

// Options say how a request is made.
type Options struct {
	Priority   int
	Downstream message.Version // for clusters that follow it
	Source     *upstream.Source
	// PerTry and PerTryIdle bound one try, from when the request is complete
	// and has a connection. 0 is none.
	PerTry, PerTryIdle time.Duration
}

// maxRefusals is how often a request that a host has refused unprocessed is
// sent to it again: it may be that other connections have room.
const maxRefusals = 3

// Exchange is one try. It is embedded in what makes it, and used again for the
// next one. Owned by its worker.
type Exchange struct {
	user   User
	worker *loop.Worker
	head   *message.Head
	body   *Body
	host   *upstream.Host
	o      Options

	waiter upstream.Waiter
	up     codec.Sender
	client *upstream.Client
	timer  loop.Timer // Total
	quiet  loop.Timer // Idle

	phase    phase
	request  progress
	response progress
	cursor   uint64 // of the Body: what is before it was sent
	paused   bool   // the User takes no more of the response
	fresh    bool   // this is the repetition on a new connection
	refusals uint8
	began    time.Time
	active   time.Time
}

// Init prepares an embedded Exchange.
func (x *Exchange) Init(w *loop.Worker, u User) {
	x.worker, x.user = w, u
	x.waiter.Requester = (*receiver)(x)
	x.timer.Init(x.total)
	x.quiet.Init(x.silent)
}

// Live says that the exchange is under way.
func (x *Exchange) Live() bool { return x.phase != idle }

// Responded says that any part of a response has come.
func (x *Exchange) Responded() bool { return x.response > nothing }

// Answered says that the whole response has come: Done follows within the event that brought its end.
func (x *Exchange) Answered() bool { return x.response == whole }

// Headed says that the request's head was sent.
func (x *Exchange) Headed() bool { return x.request >= headed }

// Client is the connection, nil before Ready.
func (x *Exchange) Client() *upstream.Client { return x.client }

// Began is when the exchange started.
func (x *Exchange) Began() time.Time { return x.began }

// Start sends h and b to the host. Both belong to the exchange until it is
// over. Where it fails at once, Done is called from within Start.
func (x *Exchange) Start(host *upstream.Host, h *message.Head, b *Body, o Options) {
	x.host, x.head, x.body, x.o = host, h, b, o
	x.fresh, x.refusals = false, 0
	x.began = x.worker.Now()
	x.acquire()
}

func (x *Exchange) acquire() {
	x.up, x.client = codec.Sender{}, nil
	x.phase, x.request, x.response = waiting, nothing, nothing
	x.paused = false
	x.waiter.Fresh, x.waiter.Priority = x.fresh, x.o.Priority
	x.body.attach(x)
	if r := x.host.PoolFor(x.worker, x.o.Downstream, x.o.Source, x.head.Get(message.Authority)).Acquire(&x.waiter); r != 0 {
		x.fail(r, "")
	}
}

// Cancel gives the exchange up; no event follows.
func (x *Exchange) Cancel() {
	if x.phase == idle {
		return
	}
	abandoned := x.client != nil && !(x.response == whole && x.request == whole)
	x.end()
	if abandoned {
		x.stats().Inc(upstream.StatRqTxReset)
		x.up.Reset(message.LocalReset)
	}
	x.waiter.Finish()
}

// end makes the exchange idle; the caller finishes the waiter when the
// connection has heard all it must.
func (x *Exchange) end() {
	x.phase = idle
	x.timer.Stop()
	x.quiet.Stop()
	x.body.detach(x)
}

// Pause stops the response, and Resume lets it go on; they do not nest.
func (x *Exchange) Pause() {
	if x.phase == open && !x.paused {
		x.paused = true
		x.up.Pause()
	}
}

// Resume undoes Pause.
func (x *Exchange) Resume() {
	if x.phase == open && x.paused {
		x.paused = false
		x.up.Resume()
	}
}

// sending says that content may be given to the connection.
func (x *Exchange) sending() bool { return x.phase == open && x.request == headed }

// pump sends what the Body has, if the connection takes it.
func (x *Exchange) pump() {
	b := x.body
	if !x.sending() || x.up.Full() {
		return
	}
	p := b.from(x.cursor)
	x.cursor += uint64(len(p))
	switch {
	case !b.ended:
		if len(p) > 0 {
			x.up.Data(p, false)
		}
	case b.tailed:
		if len(p) > 0 {
			x.up.Data(p, false)
		}
		if x.phase == open {
			x.sent()
			x.up.Trailers(&b.trailers)
		}
	default:
		x.sent()
		x.up.Data(p, true)
	}
}

// pass sends a piece that is not kept in the Body.
func (x *Exchange) pass(p []byte, end bool) {
	x.cursor += uint64(len(p))
	if end {
		x.sent()
	}
	x.up.Data(p, end)
}

// sent notes that the request is whole. It comes before the connection gets
// the end, which may bring the response.
func (x *Exchange) sent() {
	x.request = whole
	x.user.Sent(x)
}

// complete is the Body's word that the request is here as a whole: the
// timeouts of the try begin.
func (x *Exchange) complete() {
	if x.phase != open || x.response >= headed {
		return
	}
	if x.o.PerTry > 0 && !x.timer.Scheduled() {
		x.worker.Schedule(&x.timer, x.o.PerTry)
	}
	if x.o.PerTryIdle > 0 && !x.quiet.Scheduled() {
		x.active = x.worker.Now()
		x.worker.Schedule(&x.quiet, x.o.PerTryIdle)
	}
}

func (x *Exchange) total() { x.timedOut(Total, upstream.StatRqPerTryTimeout) }

func (x *Exchange) silent() {
	if left := x.o.PerTryIdle - x.worker.Now().Sub(x.active); left > 0 {
		x.worker.Schedule(&x.quiet, left)
		return
	}
	x.timedOut(Idle, upstream.StatRqPerTryIdleTimeout)
}

func (x *Exchange) timedOut(t Timeout, stat int) {
	x.stats().Inc(stat)
	x.host.Report(504)
	x.Cancel()
	x.user.Done(x, Outcome{Timeout: t})
}
