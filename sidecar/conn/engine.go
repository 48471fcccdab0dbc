package conn

import "sallyport/sidecar/loop"

const (
	// ReadSize is one read of a plain connection: a Data of this length says
	// that there is more where it came from.
	ReadSize = 64 << 10
	// maxRecord is the longest TLS record, header included (RFC 8446 §5.2, RFC 5246 §6.2.3).
	maxRecord = recordHeader + maxCiphertext
	maxPlain  = 16 << 10 // of one record

	// secureSize is one read of ciphertext: larger, so that what is decrypted of
	// it leaves in one piece, which wakes the other side once (a tenth of the CPU).
	secureSize = 256 << 10
)

// engine is what the connections of one worker share.
type engine struct {
	w     *loop.Worker
	ids   uint64
	first *Conn
	count int

	scratch []byte // what is read from a socket, valid until the next read
	plain   []byte // what is decrypted from it

	places     [2]places    // of handshakes: with clients, with upstream hosts
	lane       int          // whose step was taken last
	stepping   bool         // stepper is registered
	coroutines []*coroutine // without a handshake

	pipes []*pipe // empty ones
	accel *acceleration
	batch *batch // nil without
}

type engineKey struct{}

func engineOf(w *loop.Worker) *engine {
	return w.Local(engineKey{}, func() any {
		e := &engine{
			w:       w,
			ids:     uint64(w.ID()) << 48,
			scratch: make([]byte, secureSize+maxRecord),
			plain:   make([]byte, secureSize),
		}
		for side := range e.places {
			e.places[side].init(e)
		}
		w.OnStop(e.stop)
		return e
	}).(*engine)
}

// Count is the number of open connections of a worker.
func Count(w *loop.Worker) int { return engineOf(w).count }

func (e *engine) nextID() uint64 {
	e.ids++
	return e.ids
}

func (e *engine) link(c *Conn) {
	e.count++
	if c.next = e.first; c.next != nil {
		c.next.prev = c
	}
	e.first = c
}

// unlink may be called again for a connection that got its handler after it was closed.
func (e *engine) unlink(c *Conn) {
	if c.prev == nil && e.first != c {
		return
	}
	e.count--
	if c.prev == nil {
		e.first = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.next, c.prev = nil, nil
}

// stop closes what is open when the worker ends.
func (e *engine) stop() {
	for c := e.first; c != nil; c = c.next {
		c.close(ErrStopped)
	}
	for _, co := range e.coroutines {
		co.stop()
	}
	e.coroutines = nil
	for _, p := range e.pipes {
		p.close()
	}
	e.pipes = nil
	if e.batch != nil {
		e.batch.ring.Close()
	}
}
