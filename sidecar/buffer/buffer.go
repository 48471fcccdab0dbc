// Package buffer gives connections memory when bytes arrive and takes it back
// when they are used up, so that an idle connection holds none. A Pool belongs
// to one worker and is used on it alone: no lock, no atomic.
package buffer

import (
	"unsafe"

	"sallyport/sidecar/invariants"
)

// Size classes of a Pool: 4 KiB doubling to 1 MiB. Larger buffers are
// allocated and left to the garbage collector.
const (
	minShift = 12
	classes  = 9
	// keepBytes bounds what each class keeps, so that a burst does not pin memory for good.
	keepBytes = 4 << 20
)

// Pool is a worker's free list of byte slices. The zero value is ready to use.
type Pool struct {
	// Owner is the worker that alone may use the pool; nil is not checked.
	Owner *invariants.Owner

	free [classes][][]byte
}

// class returns the smallest class that holds n bytes, or classes where none does.
func class(n int) int {
	c := 0
	for size := 1 << minShift; size < n; size <<= 1 {
		c++
		if c == classes {
			break
		}
	}
	return c
}

// Get returns an empty slice with room for at least n bytes.
func (p *Pool) Get(n int) []byte {
	p.Owner.Check()
	c := class(n)
	if c == classes {
		return make([]byte, 0, n)
	}
	if l := len(p.free[c]); l > 0 {
		b := p.free[c][l-1]
		p.free[c][l-1] = nil
		p.free[c] = p.free[c][:l-1]
		return b
	}
	return make([]byte, 0, 1<<(minShift+c))
}

// Put gives a slice that Get returned back.
func (p *Pool) Put(b []byte) {
	p.Owner.Check()
	c := class(cap(b))
	if c == classes || cap(b) != 1<<(minShift+c) || (len(p.free[c])+1)*cap(b) > keepBytes {
		return
	}
	if invariants.Enabled {
		for _, other := range p.free[c] {
			invariants.Check(unsafe.SliceData(other) != unsafe.SliceData(b), "memory is given back once")
		}
	}
	p.free[c] = append(p.free[c], b[:0])
}

// Buffer is a queue of bytes: appended at the end, consumed from the front.
// Its memory comes from a Pool with the first byte and returns with the last.
type Buffer struct {
	pool *Pool
	b    []byte
	off  int
}

// New returns an empty Buffer that takes its memory from p.
func New(p *Pool) *Buffer { return &Buffer{pool: p} }

// Init prepares an embedded Buffer.
func (b *Buffer) Init(p *Pool) { b.pool = p }

// Pool is where the Buffer's memory comes from.
func (b *Buffer) Pool() *Pool { return b.pool }

// Len is the number of bytes waiting.
func (b *Buffer) Len() int { return len(b.b) - b.off }

// Cap is the memory that the Buffer holds: what waits, and room for more.
func (b *Buffer) Cap() int { return cap(b.b) }

// Bytes is what waits, valid until the next change.
func (b *Buffer) Bytes() []byte { return b.b[b.off:] }

// Append copies p to the end.
func (b *Buffer) Append(p []byte) {
	b.grow(len(p))
	b.b = append(b.b, p...)
}

// AppendString copies s to the end.
func (b *Buffer) AppendString(s string) {
	b.grow(len(s))
	b.b = append(b.b, s...)
}

// Tail returns an empty slice behind what waits, for a caller that appends to
// it piece by piece and then calls SetTail. n is how much will probably be
// appended: more is right too, and costs a copy. The Buffer must not be changed
// in between.
func (b *Buffer) Tail(n int) []byte {
	b.grow(n)
	return b.b[len(b.b):]
}

// SetTail makes what was appended to Tail's slice part of the buffer, also where
// append has moved it. An empty tail gives memory back that is not needed.
func (b *Buffer) SetTail(tail []byte) {
	n := len(b.b)
	switch {
	case len(tail) == 0:
		if b.Len() == 0 {
			b.Release()
		}
	case n < cap(b.b) && &tail[0] == &b.b[:n+1][n]:
		b.b = b.b[:n+len(tail)]
	default:
		b.Append(tail)
	}
}

// Consume drops n bytes from the front.
func (b *Buffer) Consume(n int) {
	b.off += n
	if b.off == len(b.b) {
		b.Release()
	}
}

// Release drops everything and gives the memory back.
func (b *Buffer) Release() {
	if b.b != nil {
		b.pool.Put(b.b[:0])
		b.b = nil
	}
	b.off = 0
}

func (b *Buffer) grow(n int) {
	if cap(b.b)-len(b.b) >= n {
		return
	}
	waiting := b.b[b.off:]
	// Move down in place where that frees enough: at least half of the
	// memory must be free, or a slow reader would cost a copy per append.
	if b.b != nil && len(waiting)+n <= cap(b.b) && b.off >= cap(b.b)/2 {
		m := copy(b.b[:cap(b.b)], waiting)
		b.b, b.off = b.b[:m], 0
		return
	}
	size := len(waiting) + n
	if b.b != nil && size < 2*cap(b.b) {
		size = 2 * cap(b.b)
	}
	next := append(b.pool.Get(size), waiting...)
	if b.b != nil {
		b.pool.Put(b.b[:0])
	}
	b.b, b.off = next, 0
}
