package exchange

import (
	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
)

// Outcome is how an exchange ended. The zero value is a complete response.
type Outcome struct {
	Reason  message.Reason
	Timeout Timeout
	Text    string // of a failed connection, for logs
}

// Timeout is which of the timeouts of a try ended the exchange.
type Timeout uint8

const (
	// Total is per_try_timeout: no final head in time.
	Total Timeout = iota + 1
	// Idle is per_try_idle_timeout: nothing came for too long.
	Idle
)

// Complete says that the response came to its end.
func (o Outcome) Complete() bool { return o.Reason == 0 && o.Timeout == 0 }

var (
	timeouts = [...]failure.Kind{Total: failure.PerTryTimeout, Idle: failure.PerTryIdleTimeout}

	reasons = [...]failure.Kind{
		message.RemoteReset:      failure.RemoteReset,
		message.Refused:          failure.RefusedStream,
		message.ConnectionClosed: failure.ConnectionTermination,
		message.ConnectFailure:   failure.ConnectFailure,
		message.ConnectTimeout:   failure.ConnectTimeout,
		message.ProtocolError:    failure.UpstreamProtocol,
		message.LocalReset:       failure.LocalReset,
		message.Overflow:         failure.Overflow,
		message.TLSFailure:       failure.TLSFailure,
		message.HeaderTooLarge:   failure.HeaderTooLarge,
	}
)

// Failure is the outcome as a failure of the request, None of a complete response.
func (o Outcome) Failure() failure.Kind {
	if o.Timeout != 0 {
		return timeouts[o.Timeout]
	}
	return reasons[o.Reason]
}
