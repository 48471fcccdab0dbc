package stream

import "sallyport/sidecar/message"

// Verdict is what a filter answers to an event.
type Verdict uint8

const (
	// Continue: the next filter sees the event.
	Continue Verdict = iota
	// Pause: nothing goes on until the filter calls Stream.Resume; body
	// bytes that arrive meanwhile are held back at the sender.
	Pause
	// Replied: the filter answered the request with Stream.Reply; the
	// request goes no further.
	Replied
)

// Filter is one compiled HTTP filter of a connection manager. It is immutable
// and shared by all workers; what it must remember of a request it keeps in
// the request's slot (Stream.Slot). It implements those of the interfaces
// below whose events it wants; the chain is sorted out once, when compiled.
// No method may block: what takes time runs on an ordinary goroutine, and
// comes back through Worker.Post and Stream.Resume.
type Filter interface {
	// Name is the filter's name in the configuration, by which routes override it.
	Name() string
}

// RequestHeadFilter sees the head of a request before it is routed on.
type RequestHeadFilter interface {
	Filter
	RequestHead(s *Stream, slot int, h *message.Head, end bool) Verdict
}

// RequestDataFilter sees the body of a request.
type RequestDataFilter interface {
	Filter
	RequestData(s *Stream, slot int, p []byte, end bool) Verdict
}

// ResponseHeadFilter sees the head of a response, in reverse order of the
// chain; also that of a local reply.
type ResponseHeadFilter interface {
	Filter
	ResponseHead(s *Stream, slot int, h *message.Head, end bool)
}

// DoneFilter is told when a stream is over, however it ended.
type DoneFilter interface {
	Filter
	Done(s *Stream, slot int)
}
