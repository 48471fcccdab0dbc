package conn

import (
	"errors"
	"net/netip"
	"time"

	"sallyport/sidecar/loop"
)

const (
	// maxHandshakes bounds the handshakes of each side that have a place on one worker. A place is the stack of a
	// coroutine and what crypto/tls keeps, about 24 KiB while the peer is waited for: 48 MiB of a worker at most.
	// A handshake that has no place yet holds the peer's first flight: a TLS record or two.
	maxHandshakes = 2048
	// handshakePause is how long a peer may be silent before its place can go to somebody else: a slow round
	// trip. handshakeGoing is how long its flights count as progress: by sending a little now and then it
	// would keep the place for the whole of the handshake's timeout otherwise.
	handshakePause = 500 * time.Millisecond
	handshakeGoing = 3500 * time.Millisecond
	// keepCoroutines is how many stacks wait for the next handshake: what a
	// burst had grown would otherwise be grown again for each one.
	keepCoroutines = 8
)

// ErrHandshakeCrowded is how a connection ends whose handshake made no progress when another one needed its place.
var ErrHandshakeCrowded = errors.New("TLS handshake: no progress, and too many others are under way")

// places are the handshakes of one side on one worker: with clients, or with upstream hosts; neither side takes
// the other's. When all places are taken, a handshake that begins gets one from a peer that is silent, of the
// address that has the most places, the longest silent first. While every peer is exchanging it waits. Steps
// go round by address, so that a crowd from one address delays itself and not others. Owned by the worker.
type places struct {
	e     *engine
	limit int
	taken int

	byAddr  map[netip.Addr]*origin
	origins []*origin // those of byAddr
	rounds  [classes]round
	blocked bool       // first steps wait for a place
	retry   loop.Timer // looks for one again
}

// A step is the first of its handshake, which needs a place, or a later one. The two classes take turns: peers
// that send many small flights do not keep others from beginning.
const (
	firstStep = iota
	laterStep
	classes
)

// origin is an address that peers of handshakes have: their share of the places and of the steps is by address.
type origin struct {
	addr  netip.Addr
	index int // in places.origins
	count int // handshakes
	taken int // places
	idle  line
	steps [classes]line
	// Of the rounds, while steps of that class wait.
	next, prev [classes]*origin
}

// line is a list of handshakes, the longest waiting first. A handshake is in one line at most.
type line struct{ first, last *handshake }

func (l *line) push(h *handshake) {
	h.in, h.prev, h.next = l, l.last, nil
	if l.last != nil {
		l.last.next = h
	} else {
		l.first = h
	}
	l.last = h
}

// pushFront is push for a handshake that waits longer than all the others.
func (l *line) pushFront(h *handshake) {
	h.in, h.prev, h.next = l, nil, l.first
	if l.first != nil {
		l.first.prev = h
	} else {
		l.last = h
	}
	l.first = h
}

func (l *line) remove(h *handshake) {
	if h.prev != nil {
		h.prev.next = h.next
	} else {
		l.first = h.next
	}
	if h.next != nil {
		h.next.prev = h.prev
	} else {
		l.last = h.prev
	}
	h.in, h.prev, h.next = nil, nil, nil
}

// round is the circle of origins that have steps of a class; at is whose turn it is.
type round struct {
	class int
	at    *origin
}

func (r *round) add(o *origin) {
	if r.at == nil {
		o.next[r.class], o.prev[r.class] = o, o
		r.at = o
		return
	}
	// Behind all others.
	last := r.at.prev[r.class]
	o.next[r.class], o.prev[r.class] = r.at, last
	last.next[r.class], r.at.prev[r.class] = o, o
}

func (r *round) remove(o *origin) {
	next, prev := o.next[r.class], o.prev[r.class]
	o.next[r.class], o.prev[r.class] = nil, nil
	if next == o {
		r.at = nil
		return
	}
	next.prev[r.class], prev.next[r.class] = prev, next
	if r.at == o {
		r.at = next
	}
}

func (p *places) init(e *engine) {
	p.e, p.limit, p.byAddr = e, maxHandshakes, map[netip.Addr]*origin{}
	for class := range p.rounds {
		p.rounds[class].class = class
	}
	p.retry.Init(p.unblock)
}

// enter counts a handshake that begins.
func (p *places) enter(h *handshake, peer netip.Addr) {
	if peer = peer.Unmap().WithZone(""); peer.Is6() {
		// A network of IPv6 is what one customer has.
		prefix, _ := peer.Prefix(64)
		peer = prefix.Addr()
	}
	o := p.byAddr[peer]
	if o == nil {
		o = &origin{addr: peer, index: len(p.origins)}
		p.byAddr[peer] = o
		p.origins = append(p.origins, o)
	}
	o.count++
	h.origin, h.since = o, p.e.w.NowMono()
	h.began = h.since
}

// leave is the end of enter, and of the place where the handshake has one.
func (p *places) leave(h *handshake) {
	p.forget(h)
	o := h.origin
	if h.placed {
		h.placed = false
		p.taken--
		o.taken--
		p.unblock()
	}
	if o.count--; o.count == 0 {
		last := len(p.origins) - 1
		p.origins[last].index = o.index
		p.origins[o.index] = p.origins[last]
		p.origins[last] = nil
		p.origins = p.origins[:last]
		delete(p.byAddr, o.addr)
	}
}

// forget takes a handshake out of the line that it stands in.
func (p *places) forget(h *handshake) {
	if h.in == nil {
		return
	}
	h.in.remove(h)
	o := h.origin
	for class := range p.rounds {
		if o.steps[class].first == nil && o.next[class] != nil {
			p.rounds[class].remove(o)
		}
	}
}

// queue asks for a step.
func (p *places) queue(h *handshake) {
	o := h.origin
	class := firstStep
	if h.placed {
		class = laterStep
	}
	line := &o.steps[class]
	if h.in == line {
		return
	}
	p.forget(h)
	if line.push(h); o.next[class] == nil {
		p.rounds[class].add(o)
	}
	p.e.arm()
}

// rest has a handshake wait for its peer.
func (p *places) rest(h *handshake) {
	now := p.e.w.NowMono()
	if now-h.began >= int64(handshakeGoing) {
		h.origin.idle.pushFront(h)
		return
	}
	h.since = now
	h.origin.idle.push(h)
}

// waits says that a step of that class could be taken.
func (p *places) waits(class int) bool {
	return p.rounds[class].at != nil && (class == laterStep || !p.blocked)
}

// next is the handshake whose step of that class is to be taken, nil where there is none.
func (p *places) next(class int) *handshake {
	r := &p.rounds[class]
	o := r.at
	if class == firstStep && o != nil {
		o = p.room(o)
	}
	if o == nil {
		return nil
	}
	r.at = o.next[class]
	h := o.steps[class].first
	p.forget(h)
	if class == firstStep {
		h.placed = true
		p.taken++
		o.taken++
	}
	return h
}

// room sees to it that a place is free for the origin whose turn it is, or another one that waits, and returns which.
// Where none can be had now, nil, it is looked for again when a handshake ends, or when a peer may have become silent.
func (p *places) room(o *origin) *origin {
	if p.taken < p.limit {
		return o
	}
	victim, crowd := p.victims()
	if victim == nil && crowd != nil {
		if o == crowd {
			o = o.next[firstStep]
		}
		if o != crowd {
			victim = crowd.idle.first
		}
	}
	if victim == nil {
		p.blocked = true
		p.e.w.Schedule(&p.retry, handshakePause)
		return nil
	}
	victim.s.c.close(ErrHandshakeCrowded)
	return o
}

// victims looks for a handshake whose peer is silent, nil where all are exchanging, and for an address with more than
// half of the places: others get one from it at once, so that it cannot keep itself busy at their cost.
func (p *places) victims() (silent *handshake, crowd *origin) {
	before := p.e.w.NowMono() - int64(handshakePause)
	for _, o := range p.origins {
		h := o.idle.first
		if h == nil {
			continue
		}
		if o.taken > p.limit/2 {
			crowd = o
		}
		if h.since > before {
			continue
		}
		if silent == nil || o.taken > silent.origin.taken || o.taken == silent.origin.taken && h.since < silent.since {
			silent = h
		}
	}
	return silent, crowd
}

// unblock lets first steps be taken again.
func (p *places) unblock() {
	if p.blocked {
		p.blocked = false
		p.retry.Stop()
		if p.rounds[firstStep].at != nil {
			p.e.arm()
		}
	}
}

// arm has a step taken in the next turn. A step is the key operations of a flight, some hundred microseconds, so a
// turn of the loop takes one: what is ready on open connections never waits behind a crowd of new ones.
func (e *engine) arm() {
	if !e.stepping {
		e.stepping = true
		e.w.Again((*stepper)(e))
	}
}

type stepper engine

// Turn takes one step: of clients' handshakes and upstream ones, first and later steps in turn.
func (t *stepper) Turn() {
	e := (*engine)(t)
	e.stepping = false
	const lanes = len(e.places) * classes
	for range lanes {
		e.lane = (e.lane + 1) % lanes
		if h := e.places[e.lane/classes].next(e.lane % classes); h != nil {
			h.takeStep()
			break
		}
	}
	for i := range e.places {
		if p := &e.places[i]; p.waits(firstStep) || p.waits(laterStep) {
			e.arm()
			return
		}
	}
}
