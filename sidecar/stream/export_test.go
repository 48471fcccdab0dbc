package stream

// Kept is how much of the request's body is in memory.
func (s *Stream) Kept() int { return s.body.Len() }
