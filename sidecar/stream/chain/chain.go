package chain

import (
	"fmt"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
)

// Direction is that of a message through the chain.
type Direction uint8

const (
	// Request goes from the client through the filters in configured order.
	Request Direction = iota
	// Response goes to the client through the filters in reverse order.
	Response
)

// Verdict is what a filter answers to an event. It is about the message, not
// only about the event: while a filter holds, its verdict at a later event
// says whether it goes on holding.
type Verdict uint8

const (
	// Continue passes the event to the next filter, and before it whatever
	// this filter has held so far.
	Continue Verdict = iota
	// Hold keeps the message at this filter: nothing of it reaches the next
	// one until a later Continue or Context.Resume. Above the buffer limit the
	// sender is paused, so a filter that holds must wait for something other
	// than the rest of the message.
	Hold
	// Collect is Hold by a filter that waits for the rest of the message. Its
	// sender cannot be paused, so a message above the buffer limit is answered
	// 413 (a request) or 500 (a response).
	Collect
	// Answered says that the filter has answered with a local reply: the
	// event goes no further.
	Answered
)

// Stream is what a run needs of the stream that it belongs to. All methods
// are called on the stream's worker.
type Stream interface {
	// Worker owns the stream.
	Worker() *loop.Worker
	// MessageHead is the head of that direction.
	MessageHead(d Direction) *message.Head
	// Override is what the stream's route says of a filter.
	Override(id route.FilterID) (cfg any, disabled bool)

	// PassHead, PassData and PassTrailers take what has passed every filter:
	// of a request the router, of a response the codec of the client.
	PassHead(d Direction, end bool)
	PassData(d Direction, p []byte, end bool)
	PassTrailers(d Direction, h *message.Head)

	// HoldLimit is how many bytes the filters may keep of that direction.
	HoldLimit(d Direction) int
	// Throttle pauses the sender of that direction, or lets it go on.
	Throttle(d Direction, on bool)
	// Overflow answers a message of which a filter collects too much.
	Overflow(d Direction)
	// Panicked ends the stream after a panic in one of its filters.
	Panicked(v any)
}

// Filter is one compiled HTTP filter. It is immutable and shared by all
// workers; what it must remember of a stream it keeps in the stream's slot
// (Context.Slot). It implements those of the interfaces below whose events it
// wants. No method may block: see Context.Await.
type Filter interface {
	// Name is the filter's name in the configuration.
	Name() string
}

// The events. A body that comes in pieces is several Data events; `end` marks
// the last event of a message, and is set on exactly one. A filter that
// changes the length of a body removes or corrects content-length at the head.
type (
	// RequestHead sees the head of a request.
	RequestHead[S Stream] interface {
		RequestHead(c Context[S], h *message.Head, end bool) Verdict
	}
	// RequestData sees a piece of a request's body and returns what takes its
	// place: p, other bytes that stay valid until the call that the event came
	// from has returned, or nothing. It must not write to p.
	RequestData[S Stream] interface {
		RequestData(c Context[S], p []byte, end bool) ([]byte, Verdict)
	}
	// RequestTrailers sees the trailers, which end a request.
	RequestTrailers[S Stream] interface {
		RequestTrailers(c Context[S], h *message.Head) Verdict
	}
	// ResponseHead sees the final head of a response, a local reply's too: a
	// filter may see one whose request it never saw. Informational heads
	// (1xx) pass the filters by.
	ResponseHead[S Stream] interface {
		ResponseHead(c Context[S], h *message.Head, end bool) Verdict
	}
	// ResponseData is RequestData for a response.
	ResponseData[S Stream] interface {
		ResponseData(c Context[S], p []byte, end bool) ([]byte, Verdict)
	}
	// ResponseTrailers is RequestTrailers for a response.
	ResponseTrailers[S Stream] interface {
		ResponseTrailers(c Context[S], h *message.Head) Verdict
	}
	// Done is told once that a stream is over, however it ended, if the filter
	// saw any event of it. It may look at the stream, and nothing else.
	Done[S Stream] interface {
		Done(c Context[S])
	}
	// Recheck is asked, when the configuration has changed, whether a request
	// that the filter of the same name let pass may go on. h is the head as it
	// had passed the filters; the Context's Override is that of the new route.
	Recheck[S Stream] interface {
		Recheck(c Context[S], h *message.Head) (ok bool, details string)
	}
)

// MaxFilters bounds a chain: a run remembers filters as bits of a word.
const MaxFilters = 64

// link is a filter that wants an event: its place in the order of the event's
// direction, and the method to call.
type link[F any] struct {
	pos, at uint8
	call    F
}

type (
	headCall[S Stream]     func(Context[S], *message.Head, bool) Verdict
	dataCall[S Stream]     func(Context[S], []byte, bool) ([]byte, Verdict)
	trailersCall[S Stream] func(Context[S], *message.Head) Verdict
)

// Chain is the filters of a connection manager, in configured order.
type Chain[S Stream] struct {
	filters  []Filter
	ids      []route.FilterID
	heads    [2][]link[headCall[S]]
	data     [2][]link[dataCall[S]]
	trailers [2][]link[trailersCall[S]]
	done     []link[Done[S]]
	recheck  []link[Recheck[S]]
}

// Compile sorts out who wants which event. ids are those by which routes
// override the filters, one for each.
func Compile[S Stream](filters []Filter, ids []route.FilterID) (*Chain[S], error) {
	if len(filters) > MaxFilters {
		return nil, fmt.Errorf("%d filters are configured; at most %d are possible", len(filters), MaxFilters)
	}
	c := &Chain[S]{filters: filters, ids: ids}
	n := len(filters)
	for i, f := range filters {
		at := uint8(i)
		if f, ok := f.(RequestHead[S]); ok {
			c.heads[Request] = append(c.heads[Request], link[headCall[S]]{at, at, f.RequestHead})
		}
		if f, ok := f.(RequestData[S]); ok {
			c.data[Request] = append(c.data[Request], link[dataCall[S]]{at, at, f.RequestData})
		}
		if f, ok := f.(RequestTrailers[S]); ok {
			c.trailers[Request] = append(c.trailers[Request], link[trailersCall[S]]{at, at, f.RequestTrailers})
		}
		if f, ok := f.(Done[S]); ok {
			c.done = append(c.done, link[Done[S]]{at, at, f})
		}
		if f, ok := f.(Recheck[S]); ok {
			c.recheck = append(c.recheck, link[Recheck[S]]{at, at, f})
		}
	}
	for i := n - 1; i >= 0; i-- {
		at, pos := uint8(i), uint8(n-1-i)
		if f, ok := filters[i].(ResponseHead[S]); ok {
			c.heads[Response] = append(c.heads[Response], link[headCall[S]]{pos, at, f.ResponseHead})
		}
		if f, ok := filters[i].(ResponseData[S]); ok {
			c.data[Response] = append(c.data[Response], link[dataCall[S]]{pos, at, f.ResponseData})
		}
		if f, ok := filters[i].(ResponseTrailers[S]); ok {
			c.trailers[Response] = append(c.trailers[Response], link[trailersCall[S]]{pos, at, f.ResponseTrailers})
		}
	}
	return c, nil
}

// Rechecks says whether a filter of the chain can be asked again about a
// request that it let pass.
func (c *Chain[S]) Rechecks() bool { return len(c.recheck) > 0 }

// position is a filter's place in the order of a direction.
func (c *Chain[S]) position(d Direction, at uint8) uint8 {
	if d == Request {
		return at
	}
	return uint8(len(c.filters)) - 1 - at
}

// from returns the links at pos and behind it. Lists are short, and it is only
// called with pos > 0 when a filter that held goes on.
func from[F any](list []link[F], pos uint8) []link[F] {
	for len(list) > 0 && list[0].pos < pos {
		list = list[1:]
	}
	return list
}
