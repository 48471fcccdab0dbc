package http2

// idTable finds streams by identifier: open addressing with linear probing.
// Identifiers that follow each other, as those of clients do, never collide;
// those of a hostile one cost at most as many steps as it has streams.
type idTable struct {
	slots []*Stream // a power of two, at most half full
	n     int
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
		for _, o := range old {
			if o != nil {
				t.slots[t.hole(o.id)] = o
			}
		}
	}
	t.slots[t.hole(s.id)] = s
	t.n++
}

func (t *idTable) hole(id uint32) int {
	i := t.home(id)
	for t.slots[i] != nil {
		i = (i + 1) & (len(t.slots) - 1)
	}
	return i
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
	// Close the hole: what probing past it found must still be found.
	for j := (i + 1) & mask; t.slots[j] != nil; j = (j + 1) & mask {
		if (j-t.home(t.slots[j].id))&mask >= (j-i)&mask {
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
	s.waiting = l
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
	s.turn, s.waiting = links{}, nil
}

// memory remembers the last identifiers that were added.
type memory struct {
	ids [128]uint32
	at  uint8
}

func (m *memory) add(id uint32) {
	m.ids[m.at%uint8(len(m.ids))] = id
	m.at++
}

func (m *memory) has(id uint32) bool {
	for _, o := range m.ids {
		if o == id {
			return true
		}
	}
	return false
}
