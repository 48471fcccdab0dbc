package message

// Receiver takes the events of one message from a codec, in the order
// Head (Data)* (Trailers)?, or Reset at any point, after which nothing follows.
// `end` marks the last event; it is set on exactly one. All calls come on the
// connection's worker. What is passed in is valid during the call only.
type Receiver interface {
	// Head delivers the head. The codec owns h and reuses it after the
	// call for a later message; a receiver that keeps it copies it, or
	// takes it by exchange where the codec documents that.
	// Informational responses (1xx other than 101) come as Head with end
	// false, before the final one.
	Head(h *Head, end bool)
	Data(p []byte, end bool)
	// Trailers ends the message.
	Trailers(h *Head)
	// Reset says that the message, or the stream it came on, ended early.
	Reset(r Reason)
	// Drained says that the Sender of the same stream, after its Full
	// answered true, has room again.
	Drained()
}

// Sender is one stream of a connection as seen by whoever writes to it: the
// response side of a server stream, the request side of a client stream. All
// calls are made on the connection's worker; bytes leave at the end of the
// loop's turn. After end, Trailers or Reset nothing more may be sent; after
// Receiver.Reset was called, calls have no effect.
type Sender interface {
	// Head sends the head; a server may send 1xx heads before the final one.
	Head(h *Head, end bool)
	Data(p []byte, end bool)
	Trailers(h *Head)
	// Reset abandons the stream: RST_STREAM in HTTP/2; in HTTP/1 the connection is closed.
	Reset(r Reason)
	// Full says that more than the high mark is waiting to be sent; the
	// caller should pause its source until Receiver.Drained.
	Full() bool
	// Pause stops the delivery of Data to this stream's Receiver; Resume
	// starts it again. They nest: delivery goes on when every Pause had
	// its Resume.
	Pause()
	Resume()
}

// Reason says why a stream ended before its message was complete.
type Reason uint8

const (
	// RemoteReset: the peer reset this stream.
	RemoteReset Reason = iota + 1
	// Refused: the peer said that it did not process the request
	// (REFUSED_STREAM, or a GOAWAY below this stream); safe to retry.
	Refused
	// ConnectionClosed: the connection ended; a response of HTTP/1 that this cuts is a ProtocolError.
	ConnectionClosed
	// ConnectFailure: no connection could be made; the request was not sent.
	ConnectFailure
	// ConnectTimeout: as ConnectFailure, by time.
	ConnectTimeout
	// ProtocolError: the peer broke the protocol on this stream or connection.
	ProtocolError
	// LocalReset: this side gave up (timeout, shutdown, the other side went away).
	LocalReset
	// Overflow: a circuit breaker or a limit was reached.
	Overflow
	// TLSFailure: the handshake failed, or the peer's identity was not accepted.
	TLSFailure
	// HeaderTooLarge: the head has more bytes or fields than the peer takes, and was not sent; to a server, the
	// trailers have more than this side takes.
	HeaderTooLarge
)

var reasons = [...]string{
	RemoteReset:      "remote reset",
	Refused:          "refused by the peer",
	ConnectionClosed: "connection termination",
	ConnectFailure:   "connection failure",
	ConnectTimeout:   "connection timeout",
	ProtocolError:    "protocol error",
	LocalReset:       "local reset",
	Overflow:         "overflow",
	TLSFailure:       "TLS failure",
	HeaderTooLarge:   "head too large",
}

func (r Reason) String() string {
	if int(r) < len(reasons) && reasons[r] != "" {
		return reasons[r]
	}
	return "unknown reason"
}
