package hpack

import "sallyport/sidecar/message"

// table is the dynamic table (RFC 7541 §2.3.2): a ring of entries, newest
// first by age, whose bytes lie in one arena that is used as a ring too.
//
// An entry's bytes are never split. The arena grows to at most twice the
// table's size, and that is always enough: with s the bytes of a new entry, at
// most max-s bytes are alive. Where they do not wrap and s does not fit behind
// them, they begin after max; where they wrap, the hole at the end that an
// entry of at most max bytes left is made up for by the other max.
type table struct {
	entries []entry // a power of two
	added   uint32  // entries ever added, modulo 2^32: the newest is at added-1
	n       uint32  // alive
	arena   []byte
	tail    uint32 // where the newest entry's bytes end
	size    uint32 // as §4.1 counts it
	max     uint32
}

// entry takes at least one byte of the arena, so that the offsets of oldest
// and newest say whether what is alive wraps.
type entry struct {
	off      uint32
	nameLen  uint32
	valueLen uint32
	known    message.Name
	class    class
}

func (e *entry) bytes() uint32 { return max(1, e.nameLen+e.valueLen) }
func (e *entry) size() uint32  { return e.nameLen + e.valueLen + entryOverhead }

// at returns the entry of that age, 0 being the newest; age < n.
func (t *table) at(age uint32) *entry { return &t.entries[(t.added-1-age)&uint32(len(t.entries)-1)] }

func (t *table) name(e *entry) []byte { return t.arena[e.off : e.off+e.nameLen] }

func (t *table) value(e *entry) []byte {
	return t.arena[e.off+e.nameLen : e.off+e.nameLen+e.valueLen]
}

// resize is §4.3.
func (t *table) resize(max uint32) {
	t.max = max
	for t.size > t.max {
		t.evict()
	}
}

func (t *table) evict() {
	t.size -= t.at(t.n - 1).size()
	t.n--
}

// add inserts an entry and evicts others for it; one larger than the table
// empties it (§4.4). name may be bytes of the table, even of an entry that is
// evicted here; value may not.
func (t *table) add(known message.Name, c class, name, value []byte) {
	e := entry{nameLen: uint32(len(name)), valueLen: uint32(len(value)), known: known, class: c}
	for t.n > 0 && t.size+e.size() > t.max {
		t.evict()
	}
	if e.size() > t.max {
		return
	}
	if int(t.n) == len(t.entries) {
		t.growEntries()
	}
	e.off = t.place(e.bytes())
	// Name first: where it is moved onto itself, copy is a move, and the
	// value would overwrite what is left of it.
	copy(t.arena[e.off:], name)
	copy(t.arena[e.off+e.nameLen:], value)
	t.tail = e.off + e.bytes()
	t.size += e.size()
	t.added++
	t.n++
	*t.at(0) = e
}

// place finds room for need bytes.
func (t *table) place(need uint32) uint32 {
	if t.n == 0 {
		t.tail = 0
		if need <= uint32(len(t.arena)) {
			return 0
		}
	} else {
		oldest, end := t.at(t.n-1).off, uint32(len(t.arena))
		switch wraps := t.at(0).off < oldest; {
		case wraps && oldest-t.tail >= need, !wraps && end-t.tail >= need:
			return t.tail
		case !wraps && oldest >= need:
			return 0
		}
	}
	t.growArena(need)
	return t.tail
}

// growArena moves what is alive to the front of a larger arena. The old one
// stays as it is, for names that are views of it.
func (t *table) growArena(need uint32) {
	alive := t.size - t.n*(entryOverhead-1) // at most
	next := make([]byte, max(256, alive+need, min(2*uint32(len(t.arena)), 2*t.max)))
	t.tail = 0
	for age := t.n; age > 0; age-- {
		e := t.at(age - 1)
		copy(next[t.tail:], t.arena[e.off:e.off+e.bytes()])
		e.off = t.tail
		t.tail += e.bytes()
	}
	t.arena = next
}

func (t *table) growEntries() {
	next := make([]entry, max(16, 2*len(t.entries)))
	for i := t.added - t.n; i != t.added; i++ {
		next[i&uint32(len(next)-1)] = t.entries[i&uint32(len(t.entries)-1)]
	}
	t.entries = next
}
