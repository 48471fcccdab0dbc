package exchange

import (
	"sallyport/sidecar/buffer"
	"sallyport/sidecar/message"
)

// Body is the content of a request as far as it is here. Exchanges read it,
// each at its own cursor; what all have sent is dropped, unless it is kept for
// a repetition. Where nothing waits, a piece goes to the connection without
// being copied. Owned by its worker.
type Body struct {
	// Limit is how many bytes may wait or be kept.
	Limit int
	// HeadOnly says that the request ends with its head.
	HeadOnly bool

	content  buffer.Buffer
	trailers message.Head
	base     uint64 // of the content: how much was dropped
	size     uint64 // how much has come
	ended    bool
	tailed   bool // and ended with trailers
	kept     bool // what was sent is kept
	full     bool // the Writer was told to wait
	writer   Writer
	readers  []*Exchange
}

// Writer is who writes a Body.
type Writer interface {
	// Room says that the Body, after its Full answered true, takes content again.
	Room()
}

// Init prepares an embedded Body.
func (b *Body) Init(p *buffer.Pool, w Writer) {
	b.content.Init(p)
	b.writer = w
}

// Clear makes the body as Init did, keeping its memory.
func (b *Body) Clear() {
	b.content.Release()
	if b.tailed {
		b.trailers.Reset()
	}
	// One by one: to copy the memory that stays there and back took 50 ns of each request.
	b.Limit, b.HeadOnly, b.base, b.size = 0, false, 0, 0
	b.ended, b.tailed, b.kept, b.full = false, false, false, false
	b.readers = b.readers[:0]
}

// Keep has what is sent kept as well, so that the request can be made again
// from its beginning or not at all. It ends with Commit, and when more than the
// limit would be kept while a request is under way, which then cannot be
// repeated. While none is, before the first or between two, the Writer waits at
// the limit.
func (b *Body) Keep() { b.kept = !b.HeadOnly }

// Whole says that the request can be made from its beginning.
func (b *Body) Whole() bool { return b.base == 0 }

// Len is how many bytes are in memory.
func (b *Body) Len() int { return b.content.Len() }

// Ended says that the end of the request is here.
func (b *Body) Ended() bool { return b.ended || b.HeadOnly }

// Write appends content.
func (b *Body) Write(p []byte, end bool) {
	if b.ended {
		return
	}
	b.size += uint64(len(p))
	b.ended = end
	if end {
		b.complete()
	}
	if x := b.direct(); x != nil {
		b.base = b.size
		x.pass(p, end)
		return
	}
	b.content.Append(p)
	b.settle()
}

// direct is the one exchange that can take a piece without its being kept or
// having to wait, nil where there is none.
func (b *Body) direct() *Exchange {
	if len(b.readers) != 1 || b.kept || b.content.Len() > 0 {
		return nil
	}
	if x := b.readers[0]; x.sending() {
		return x
	}
	return nil
}

// End ends the content with trailers.
func (b *Body) End(t *message.Head) {
	if b.ended {
		return
	}
	b.ended = true
	if b.tailed = t.Len() > 0; b.tailed {
		b.trailers.CopyFrom(t)
	}
	b.complete()
	b.settle()
}

func (b *Body) complete() {
	for _, x := range b.readers {
		x.complete()
	}
}

// Full says that as much waits as may, or that a connection takes no more: the
// Writer waits until it is called.
func (b *Body) Full() bool {
	b.full = b.blocked()
	return b.full
}

func (b *Body) blocked() bool {
	waiting := uint64(b.content.Len())
	for i, x := range b.readers {
		if x.sending() && x.up.Full() {
			return true
		}
		if left := b.size - x.cursor; i == 0 || left > waiting {
			waiting = left
		}
	}
	return waiting > uint64(b.Limit)
}

// settle sends what can be sent and drops what is not needed any more.
func (b *Body) settle() {
	if b.kept && b.content.Len() > b.Limit {
		for _, x := range b.readers {
			b.kept = b.kept && x.phase != open
		}
	}
	for i := 0; i < len(b.readers); i++ {
		x := b.readers[i]
		if x.pump(); i < len(b.readers) && b.readers[i] != x {
			i-- // it ended
		}
	}
	b.consume()
	if b.full && !b.blocked() {
		b.full = false
		b.writer.Room()
	}
}

// consume drops what every exchange has sent.
func (b *Body) consume() {
	if b.kept || len(b.readers) == 0 {
		return
	}
	sent := b.readers[0].cursor
	for _, x := range b.readers[1:] {
		sent = min(sent, x.cursor)
	}
	if n := int(sent - b.base); n > 0 {
		b.content.Consume(n)
		b.base = sent
	}
}

// from is the content behind a cursor.
func (b *Body) from(cursor uint64) []byte { return b.content.Bytes()[cursor-b.base:] }

func (b *Body) attach(x *Exchange) {
	x.cursor = b.base
	b.readers = append(b.readers, x)
}

func (b *Body) detach(x *Exchange) {
	for i, o := range b.readers {
		if o == x {
			b.readers = append(b.readers[:i], b.readers[i+1:]...)
			return
		}
	}
}

// Commit says that the request will not be made again: nothing more is kept.
func (b *Body) Commit() {
	b.kept = false
	b.consume()
}
