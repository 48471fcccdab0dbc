package exchange

import (
	"strconv"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/message"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/upstream"
)

// receiver is an Exchange as its pool and its connection see it.
type receiver Exchange

// Ready sends the request on the stream that the pool found.
func (r *receiver) Ready(up message.Sender, c *upstream.Client) {
	x := (*Exchange)(r)
	x.up, x.client, x.phase = codec.Sender{Sender: up, Conn: c.Conn()}, c, open
	x.user.Ready(x)
	if x.phase != open {
		return
	}
	b := x.body
	if b.Ended() {
		x.complete()
	}
	if b.HeadOnly {
		x.sent()
		x.up.Head(x.head, true)
		return
	}
	x.request = headed
	x.up.Head(x.head, false)
	if x.phase == open {
		b.settle()
	}
}

// Failed is the pool's word that no connection could be had.
func (r *receiver) Failed(why message.Reason, text string) { (*Exchange)(r).fail(why, text) }

// Head takes the response's head.
func (r *receiver) Head(h *message.Head, end bool) {
	x := (*Exchange)(r)
	if x.phase != open {
		return
	}
	x.response = max(x.response, begun)
	x.active = x.worker.Now()
	status := h.StatusCode()
	if status < 200 && status != 101 {
		x.user.Informational(x, h)
		return
	}
	x.response = headed
	x.timer.Stop()
	if end {
		x.response = whole
	}
	x.count(status)
	x.host.Report(x.outlierStatus(h, status, end))
	x.user.Head(x, h, end)
	if end {
		x.finish()
	}
}

// Data takes a piece of the response's body.
func (r *receiver) Data(p []byte, end bool) {
	x := (*Exchange)(r)
	if x.phase != open {
		return
	}
	x.active = x.worker.Now()
	if end {
		x.response = whole
	}
	x.user.Data(x, p, end)
	if end {
		x.finish()
	}
}

// Trailers takes the response's trailers.
func (r *receiver) Trailers(h *message.Head) {
	x := (*Exchange)(r)
	if x.phase != open {
		return
	}
	x.active = x.worker.Now()
	x.response = whole
	x.user.Trailers(x, h)
	x.finish()
}

// Drained is the connection's word that it takes content again.
func (r *receiver) Drained() {
	x := (*Exchange)(r)
	if x.phase == open {
		x.body.settle()
	}
}

// Reset is the codec's word that the response will not be completed.
func (r *receiver) Reset(why message.Reason) { (*Exchange)(r).fail(why, "") }

// finish ends an exchange whose response is complete. A host that answered
// before it had the whole request will not read the rest.
func (x *Exchange) finish() {
	if x.phase != open {
		return // the User has canceled
	}
	early := x.request != whole
	x.end()
	if early {
		x.up.Reset(message.LocalReset)
	}
	x.waiter.Finish()
	x.user.Done(x, Outcome{})
}

// fail ends an exchange without a complete response.
func (x *Exchange) fail(why message.Reason, text string) {
	if x.phase == idle {
		return
	}
	x.end()
	x.waiter.Finish()
	switch why {
	case message.RemoteReset, message.ConnectionClosed, message.ProtocolError, message.Refused:
		x.stats().Inc(upstream.StatRqRxReset)
	}
	if x.repeat(why) {
		return
	}
	switch why {
	case message.RemoteReset, message.ConnectionClosed, message.ProtocolError, message.Refused:
		x.host.Report(503)
	}
	x.user.Done(x, Outcome{Reason: why, Text: text})
}

// repeat sends the request again where the host has certainly not processed
// it, whatever the retry policy says: one that the host refused (RFC 9113
// §8.7), and, once and on a new connection, one that met the end of a kept
// connection, which the host closed for idleness while the request was on its
// way (RFC 9110 §9.2.2, RFC 9112 §9.3.1).
func (x *Exchange) repeat(why message.Reason) bool {
	if x.response > nothing || x.client == nil || !x.body.Whole() {
		return false
	}
	switch {
	case why == message.Refused && x.refusals < maxRefusals:
		x.refusals++
	case why == message.ConnectionClosed && x.client.Reused() && !x.fresh && idempotent(x.head):
		x.fresh = true
	default:
		return false
	}
	x.acquire()
	return true
}

// idempotent says that a request may be sent twice (RFC 9110 §9.2.2).
func idempotent(h *message.Head) bool {
	switch string(h.Get(message.Method)) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "QUERY":
		return true
	}
	return false
}

func (x *Exchange) stats() *metric.Block { return x.host.Cluster().Stats.At(x.worker.ID()) }

func (x *Exchange) count(status int) {
	st := x.stats()
	st.Inc(upstream.StatRqCompleted)
	st.Inc(upstream.StatRq1xx + min(max(status/100, 1), 5) - 1)
	st.Observe(upstream.StatRqTime, float64(x.worker.Now().Sub(x.began))/1e6)
}

// outlierStatus is the status that outlier detection counts: of an answer of gRPC
// without a message, the HTTP status that its code stands for, as Envoy has it. A
// code behind messages is the application's word about one call, and does not count.
func (x *Exchange) outlierStatus(h *message.Head, status int, end bool) int {
	if !end || status != 200 || !message.IsGRPC(x.head) {
		return status
	}
	if code, err := strconv.ParseUint(string(h.Get(message.GRPCStatus)), 10, 8); err == nil {
		return upstream.GRPCStatus(int(code))
	}
	return status
}
