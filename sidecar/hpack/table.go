package hpack

import "sallyport/sidecar/message"

// entryOverhead is what an entry counts beside its bytes (RFC 7541 §4.1).
const entryOverhead = 32

// dynamic is the dynamic table (RFC 7541 §2.3.2): a queue of entries whose
// bytes lie in one arena, in the same order, so that neither adding nor
// evicting allocates once arena and queue have grown to the table's size.
type dynamic struct {
	arena   []byte
	entries []entry
	head    int    // the oldest entry
	size    uint32 // as §4.1 counts it
	max     uint32
	added   uint32 // entries ever added: entry k, counted from 1, is at index added-k
}

type entry struct {
	off               uint32
	nameLen, valueLen uint32
	known             message.Name
}

func (e *entry) size() uint32 { return e.nameLen + e.valueLen + entryOverhead }

func (t *dynamic) len() int { return len(t.entries) - t.head }

// at returns the i-th entry, 0 being the newest.
func (t *dynamic) at(i int) *entry { return &t.entries[len(t.entries)-1-i] }

func (t *dynamic) name(e *entry) []byte { return t.arena[e.off : e.off+e.nameLen] }
func (t *dynamic) value(e *entry) []byte {
	return t.arena[e.off+e.nameLen : e.off+e.nameLen+e.valueLen]
}

func (t *dynamic) resize(max uint32) {
	t.max = max
	t.evict(0)
}

// evict makes room for an entry of that size.
func (t *dynamic) evict(room uint32) {
	for t.head < len(t.entries) && t.size+room > t.max {
		t.size -= t.entries[t.head].size()
		t.head++
	}
	if t.head == len(t.entries) {
		t.entries, t.head, t.arena = t.entries[:0], 0, t.arena[:0]
	}
}

// add inserts an entry; one larger than the table empties it (§4.4). name and
// value may be bytes of the table itself.
func (t *dynamic) add(known message.Name, name, value []byte) {
	e := entry{nameLen: uint32(len(name)), valueLen: uint32(len(value)), known: known}
	t.added++
	if e.size() > t.max {
		t.evict(t.max + 1)
		return
	}
	if len(t.arena)+len(name)+len(value) > cap(t.arena) || t.head > 64 {
		// name or value may lie in what is about to move.
		name, value = append([]byte(nil), name...), append([]byte(nil), value...)
		t.evict(e.size())
		t.compact(len(name) + len(value))
	}
	e.off = uint32(len(t.arena))
	t.arena = append(append(t.arena, name...), value...)
	// Evicting may forget where name and value were, so it comes after
	// they were copied; that the arena holds both for a moment is no harm.
	t.size += e.size()
	t.entries = append(t.entries, e)
	for t.size > t.max {
		t.size -= t.entries[t.head].size()
		t.head++
	}
}

// compact moves what is alive to the front.
func (t *dynamic) compact(room int) {
	alive := t.entries[t.head:]
	from := uint32(len(t.arena))
	if len(alive) > 0 {
		from = alive[0].off
	}
	n := copy(t.arena, t.arena[from:])
	t.arena = t.arena[:n]
	if n+room > cap(t.arena) {
		t.arena = append(make([]byte, 0, 2*int(t.max)+room), t.arena...)
	}
	for i := range alive {
		alive[i].off -= from
	}
	t.entries = t.entries[:copy(t.entries, alive)]
	t.head = 0
}
