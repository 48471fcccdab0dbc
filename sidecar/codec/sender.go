package codec

import (
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
)

// Sender is the way to a codec for those who survive a panic of their own. One that
// came from within the codec has left it in the middle of something, perhaps of a
// frame: the connection ends, with all that is on it, and nothing more is sent on
// it until then. The panic goes on. It costs a call some two nanoseconds.
type Sender struct {
	message.Sender
	Conn   loop.Panicker
	broken bool
}

// Head is that of message.Sender.
func (s *Sender) Head(h *message.Head, end bool) {
	if s.broken {
		return
	}
	inside := true
	defer s.leave(&inside)
	s.Sender.Head(h, end)
	inside = false
}

// Data is that of message.Sender.
func (s *Sender) Data(p []byte, end bool) {
	if s.broken {
		return
	}
	inside := true
	defer s.leave(&inside)
	s.Sender.Data(p, end)
	inside = false
}

// Trailers is that of message.Sender.
func (s *Sender) Trailers(h *message.Head) {
	if s.broken {
		return
	}
	inside := true
	defer s.leave(&inside)
	s.Sender.Trailers(h)
	inside = false
}

// Reset is that of message.Sender.
func (s *Sender) Reset(why message.Reason) {
	if s.broken {
		return
	}
	inside := true
	defer s.leave(&inside)
	s.Sender.Reset(why)
	inside = false
}

// Resume is that of message.Sender.
func (s *Sender) Resume() {
	if s.broken {
		return
	}
	inside := true
	defer s.leave(&inside)
	s.Sender.Resume()
	inside = false
}

func (s *Sender) leave(inside *bool) {
	if *inside {
		s.broken = true
		s.Conn.Panicked("in the codec")
	}
}
