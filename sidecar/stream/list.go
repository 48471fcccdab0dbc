package stream

// List is the streams of a connection that are under way. The zero value is
// empty. Owned by the connection's worker.
type List struct {
	first *Stream
	at    *Stream // the next that Recheck asks about
}

// Add puts a stream into the list; it is in one at most.
func (l *List) Add(s *Stream) {
	s.next, s.prev = l.first, nil
	if l.first != nil {
		l.first.prev = s
	}
	l.first = s
}

// Remove takes it out.
func (l *List) Remove(s *Stream) {
	if l.at == s {
		l.at = s.next
	}
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		l.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	}
	s.next, s.prev = nil, nil
}

// Recheck asks the filters that are in force now about each of them, and says
// how many there were. One that is not allowed any more ends, and leaves the
// list; so may others, to which it leaves its place in a connection to the upstream or to the client.
func (l *List) Recheck() (n int) {
	for l.at = l.first; l.at != nil; n++ {
		s := l.at
		l.at = s.next
		s.Recheck()
	}
	return n
}
