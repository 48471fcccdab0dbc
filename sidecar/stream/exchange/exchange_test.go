package exchange_test

import (
	"testing"

	"sallyport/sidecar/message"
	"sallyport/sidecar/stream/exchange"
	"sallyport/sidecar/stream/streamtest"
	"sallyport/sidecar/upstream"
)

// broken is a codec that panics at content.
type broken struct{ message.Sender }

func (broken) Data([]byte, bool) { panic("in the codec") }

// user notes how its exchange ended.
type user struct{ outcomes []exchange.Outcome }

func (u *user) Ready(x *exchange.Exchange) {
	x.Wrap(func(s message.Sender) message.Sender { return broken{s} })
}
func (u *user) Sent(*exchange.Exchange)                         {}
func (u *user) Informational(*exchange.Exchange, *message.Head) {}
func (u *user) Head(*exchange.Exchange, *message.Head, bool)    {}
func (u *user) Data(*exchange.Exchange, []byte, bool)           {}
func (u *user) Trailers(*exchange.Exchange, *message.Head)      {}
func (u *user) Done(_ *exchange.Exchange, o exchange.Outcome)   { u.outcomes = append(u.outcomes, o) }
func (u *user) Room()                                           {}

// TestAPanicInTheCodecEndsItsConnection, whoever survives it: nobody knows what state it is in.
func TestAPanicInTheCodecEndsItsConnection(t *testing.T) {
	r := streamtest.New(t, 1)
	r.Publish()
	var x exchange.Exchange
	body := exchange.Body{Limit: 1 << 20}
	u := new(user)
	x.Init(r.Worker, u)
	body.Init(r.Worker.Pool(), u)
	host := r.Clusters.Lookup("backend").Host(&upstream.Pick{Worker: r.Worker.ID()})
	x.Start(host, streamtest.Head("POST", "/"), &body, exchange.Options{Downstream: message.HTTP11})
	l := r.Hosts[0].Accept()
	l.Head()
	func() {
		defer func() {
			if v := recover(); v != "in the codec" {
				t.Errorf("the panic went on as %v", v)
			}
		}()
		body.Write([]byte("content"), true)
	}()
	l.Ended()
	r.Settle()
	if len(u.outcomes) != 1 || u.outcomes[0].Reason == 0 || x.Live() {
		t.Errorf("it ended with %+v", u.outcomes)
	}
}
