// Package codec is what the rest of the proxy knows of the versions of HTTP: one
// interface for each side of a connection, and one table with an entry for each
// protocol. A further protocol is a package with the two sides, an entry in the
// table, and its options. Package listener makes servers, package upstream
// clients; package stream sees neither, but message.Sender and message.Version.
package codec

import (
	"time"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/http1"
	"sallyport/sidecar/http2"
	"sallyport/sidecar/message"
)

// Output is where a codec writes; conn.Conn implements it.
type Output interface {
	http1.Output
	http2.Output
}

// conn is what both sides do with their connection.
type conn interface {
	// Feed takes bytes from the peer and says how many it consumed; those it did
	// not are the beginning of what the next Feed gets, and Rest says what they wait for.
	// A call is one turn of the loop, and what it does in it is bounded. An error
	// ends the connection; on a server Refuse may answer before. Feed is
	// not called from within what it calls.
	Feed(p []byte) (n int, err error)
	Rest() message.Rest
	// Drain announces the connection's end. A server still takes what comes after
	// Drain(false), and nothing that is new after Drain(true), which follows a round trip later; a client only has the latter.
	Drain(last bool)
	// Sweep ends what has had its time, when the owner's SweepIn asked for it, and
	// says how many streams were ended for a client that does not take their response.
	Sweep() (stalled int)
	// Writable says that the Output has room again after it was Full.
	Writable()
	// EOF says that the peer sends nothing more; all bytes before it have been fed.
	EOF()
	// Closed says that the connection is gone, and ends all streams.
	Closed(why message.Reason)
}

// Server is the side of a connection that takes requests.
type Server interface {
	conn
	// Head is 0, or tells apart the request heads that have begun and are not
	// complete, and for which no stream was made; rest is how many bytes the last Feed left.
	Head(rest int) int64
	// Refuse answers a request that was not taken, or is not here in time, where
	// the protocol can, and takes no more. It says whether there is a request to be
	// logged that no stream was made for, the status of the response, 0 for none, and the length of its content.
	Refuse(k failure.Kind) (refused bool, status, sent int)
	// End says whether the owner is to close, and how.
	End() message.End
}

// Client is the side of a connection that makes requests.
type Client interface {
	conn
	// Open begins a request whose response goes to r; nil: there is no Capacity.
	Open(r message.Receiver) message.Sender
	// Capacity is how many more streams may be opened now, Active how many are open.
	Capacity() int
	Active() int
	// Limit is how many streams the server takes at a time; false before it said so.
	Limit() (n int, known bool)
	// Draining says that no stream can be opened any more.
	Draining() bool
	// Worn says that the owner better opens no more streams: they might be ended for what others did.
	Worn() bool
	// StarvedSince is since when requests wait for the server to take content of
	// any stream, by the Output's clock; 0: none does.
	StarvedSince() int64
}

// ServerOwner has a Server and takes its streams. It is called on the worker,
// from within calls of the Server and its Senders.
type ServerOwner interface {
	// NewStream is called when a request head is complete, right before its
	// Head event; s is the way back.
	NewStream(s message.Sender, v message.Version) message.Receiver
	// StreamClosed is called when a stream is over, after its last event: the
	// owner looks at End and feeds the bytes it kept again, after the call that this one came from has returned.
	StreamClosed()
	// Resumed asks for those bytes alone.
	Resumed()
	// SendEOF is called when a tunnel that has the connection to itself sends nothing more.
	SendEOF()
	// Refused is called for a request that the codec answered or reset by itself, with the response's status, 0 for a reset.
	Refused(k failure.Kind, status int)
	// RefusalFields appends field lines, each with CRLF, to the head of a response that Refuse writes.
	RefusalFields(b []byte) []byte
	// SweepIn asks for a call of Sweep in that time, or earlier than it was asked for before.
	SweepIn(d time.Duration)
}

// ClientOwner has a Client. It is called on the worker, from within calls of the
// Client and its Senders.
type ClientOwner interface {
	// StreamClosed is called when a stream is over, after its last event, and
	// when the server takes more at a time than before. It may open streams.
	StreamClosed()
	// PeerDrains is called when the server announced the connection's end.
	PeerDrains()
	// Resumed asks the owner to feed the bytes it kept again, after the call that this one came from has returned.
	Resumed()
	// SendEOF is called when a tunnel that has the connection to itself sends nothing more.
	SendEOF()
	// SweepIn asks for a call of Sweep in that time, or earlier than it was asked for before.
	SweepIn(d time.Duration)
}

// Refusal is an error of a Server's Feed that says what its client is told.
type Refusal interface {
	error
	Failure() failure.Kind
}
