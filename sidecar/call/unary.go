package call

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/upstream"
)

// Unary is one message for another. It is a chain.Work. Owned by its worker.
type Unary struct {
	// Status is how the call ended; the reply counts where it is OK.
	Status Status

	worker  *loop.Worker
	cluster *upstream.Ref
	method  *Method
	message proto.Message
	reply   proto.Message
	replies int
	bad     error
	stream  *Stream
	done    func()
}

// NewUnary returns a call that is made on w by Start. The answer is put into reply.
func NewUnary(w *loop.Worker, cluster *upstream.Ref, m *Method, message, reply proto.Message) *Unary {
	return &Unary{worker: w, cluster: cluster, method: m, message: message, reply: reply}
}

// Start makes the call. done is called once it has a Status, perhaps at once.
func (u *Unary) Start(done func()) {
	u.done = done
	b, err := proto.Marshal(u.message)
	if err != nil {
		u.end(Status{Code: codes.Internal, Message: err.Error(), Failure: failure.LocalReset})
		return
	}
	s := Open(u.worker, u.cluster, u.method, (*unaryReceiver)(u))
	if u.done == nil {
		return // it failed at once
	}
	u.stream = s
	s.Send(b)
	s.CloseSend()
}

// Cancel gives the call up; done is not called.
func (u *Unary) Cancel() {
	u.done = nil
	if u.stream != nil {
		u.stream.Cancel()
	}
}

func (u *Unary) end(s Status) {
	if done := u.done; done != nil {
		u.done, u.Status = nil, s
		done()
	}
}

// unaryReceiver is a Unary as the receiver of its stream.
type unaryReceiver Unary

func (r *unaryReceiver) Message(b []byte) {
	if r.replies++; r.replies == 1 {
		r.bad = proto.Unmarshal(b, r.reply)
	}
}

func (r *unaryReceiver) Room() {}

// Closed makes sure that a good status has its one message.
func (r *unaryReceiver) Closed(s Status) {
	switch {
	case s.Code != codes.OK:
	case r.bad != nil:
		s = Status{Code: codes.Internal, Message: r.bad.Error(), Failure: failure.UpstreamProtocol}
	case r.replies != 1:
		s = Status{Code: codes.Internal, Message: "not exactly one message in the answer", Failure: failure.UpstreamProtocol}
	}
	(*Unary)(r).end(s)
}
