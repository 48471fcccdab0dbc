package http2

// idTable finds streams by identifier: open addressing with linear probing.
// Identifiers that follow each other, as those of clients do, never collide;
// those of a hostile one cost at most as many steps as it has streams.
type idTable struct {
	slots     []*Stream // a power of two, at most half full
	n         int
	displaced int // that are not in their home slot; 0 as long as streams end in about the order in which they came
}

func (t *idTable) home(id uint32) int { return int(id>>1) & (len(t.slots) - 1) }

func (t *idTable) get(id uint32) *Stream {
	if t.n == 0 {
		return nil
	}
	for i := t.home(id); ; i = (i + 1) & (len(t.slots) - 1) {
		if s := t.slots[i]; s == nil || s.id == id {
			return s
		}
	}
}

func (t *idTable) put(s *Stream) {
	if 2*(t.n+1) > len(t.slots) {
		old := t.slots
		t.slots = make([]*Stream, max(16, 2*len(old)))
		t.displaced = 0
		for _, o := range old {
			if o != nil {
				t.place(o)
			}
		}
	}
	t.place(s)
	t.n++
}

// place puts a stream into the first free slot from its home on.
func (t *idTable) place(s *Stream) {
	home := t.home(s.id)
	i := home
	for t.slots[i] != nil {
		i = (i + 1) & (len(t.slots) - 1)
	}
	t.slots[i] = s
	if i != home {
		t.displaced++
	}
}

func (t *idTable) remove(id uint32) {
	mask := len(t.slots) - 1
	i := t.home(id)
	for t.slots[i] == nil || t.slots[i].id != id {
		if t.slots[i] == nil {
			return
		}
		i = (i + 1) & mask
	}
	t.n--
	if i != t.home(id) {
		t.displaced--
	}
	// Close the hole: what probing past it found must still be found. Nothing was where nothing is displaced, and
	// the run of live streams need not be walked through.
	for j := (i + 1) & mask; t.displaced > 0 && t.slots[j] != nil; j = (j + 1) & mask {
		if home := t.home(t.slots[j].id); (j-home)&mask >= (j-i)&mask {
			if i == home {
				t.displaced--
			}
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = nil
}

// links are a stream's neighbors in a list.
type links struct{ prev, next *Stream }

// liveList holds every open stream.
type liveList struct{ first *Stream }

func (l *liveList) add(s *Stream) {
	s.live = links{next: l.first}
	if l.first != nil {
		l.first.live.prev = s
	}
	l.first = s
}

func (l *liveList) remove(s *Stream) {
	if s.live.prev != nil {
		s.live.prev.live.next = s.live.next
	} else {
		l.first = s.live.next
	}
	if s.live.next != nil {
		s.live.next.live.prev = s.live.prev
	}
	s.live = links{}
}

// sendList is a queue of streams that have something to send; a stream is in one at most.
type sendList struct{ first, last *Stream }

func (l *sendList) push(s *Stream) {
	s.turnIn = l
	s.turn = links{prev: l.last}
	if l.last != nil {
		l.last.turn.next = s
	} else {
		l.first = s
	}
	l.last = s
}

func (l *sendList) remove(s *Stream) {
	if s.turn.prev != nil {
		s.turn.prev.turn.next = s.turn.next
	} else {
		l.first = s.turn.next
	}
	if s.turn.next != nil {
		s.turn.next.turn.prev = s.turn.prev
	} else {
		l.last = s.turn.prev
	}
	s.turn, s.turnIn = links{}, nil
}

// memorySpan is for how many streams back a memory knows of each whether it was added.
const memorySpan = 4096

// memory is a set of identifiers of streams, exact for the last memorySpan streams before the highest that was added:
// a proxy that resets streams of many users at once must not take what was on its way for an error.
type memory struct {
	bits [memorySpan / 64]uint64
	top  uint32 // the highest that was added
}

func (m *memory) add(id uint32) {
	if id > m.top {
		if id != m.top+2 {
			m.forget(id)
		}
		m.top = id
	} else if m.older(id) {
		return
	}
	m.bits[id>>1%memorySpan/64] |= 1 << (id >> 1 % 64)
}

// forget clears the places of the streams between top and id, which others had before; id gets its own anew.
func (m *memory) forget(id uint32) {
	if id-m.top >= 2*memorySpan {
		m.bits = [memorySpan / 64]uint64{}
		return
	}
	for n := m.top>>1 + 1; n < id>>1; n++ {
		m.bits[n%memorySpan/64] &^= 1 << (n % 64)
	}
}

func (m *memory) has(id uint32) bool {
	return id <= m.top && !m.older(id) && m.bits[id>>1%memorySpan/64]&(1<<(id>>1%64)) != 0
}

// older says that the stream is from before what is remembered.
func (m *memory) older(id uint32) bool { return id <= m.top && m.top-id >= 2*memorySpan }
