package call

import (
	"time"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream/exchange"
	"sallyport/sidecar/upstream"
)

// DefaultTimeout bounds a call that says nothing, DefaultMaxBody its response.
const (
	DefaultTimeout = 5 * time.Second
	DefaultMaxBody = 1 << 20
)

// Request is what is asked. The zero value of a field is its default.
type Request struct {
	Method    string // GET
	Authority string // the cluster's name
	Path      string // "/"; with a query, if there is one
	Headers   []route.HeaderValue
	Body      []byte        // must not change until the call is over
	Timeout   time.Duration // DefaultTimeout; of everything
	MaxBody   int           // DefaultMaxBody
}

// Response is what came of it.
type Response struct {
	// Failure is None where there is a whole response; Text says more, for logs.
	Failure failure.Kind
	Text    string

	Status   int
	Head     message.Head
	Body     []byte
	Trailers message.Head
}

// Call is one request. It is a chain.Work. Owned by its worker.
type Call struct {
	Response Response

	worker  *loop.Worker
	cluster *upstream.Ref
	request *Request
	head    message.Head
	body    exchange.Body
	try     exchange.Exchange
	timer   loop.Timer
	done    func()
}

// New returns a call that is made on w by Start.
func New(w *loop.Worker, cluster *upstream.Ref, r *Request) *Call {
	c := &Call{worker: w, cluster: cluster, request: r}
	c.body.Init(w.Pool(), c)
	c.try.Init(w, (*user)(c))
	c.timer.Init(c.timeout)
	return c
}

// Start makes the call. done is called once it has a Response, perhaps at once.
func (c *Call) Start(done func()) {
	c.done = done
	r := c.request
	host, f := choose(c.worker, c.cluster)
	if f != failure.None {
		c.end(f, "")
		return
	}
	method := or(r.Method, "GET")
	c.head.AddNameString(message.Method, method)
	c.head.AddNameString(message.Scheme, scheme(host))
	c.head.AddNameString(message.Authority, or(r.Authority, c.cluster.Name))
	c.head.AddNameString(message.Path, or(r.Path, "/"))
	for _, h := range r.Headers {
		c.head.AddString(h.Name, h.Value)
	}
	if len(r.Body) > 0 || method != "GET" && method != "HEAD" {
		c.head.SetNameInt(message.ContentLength, int64(len(r.Body)))
	}
	c.body.HeadOnly = len(r.Body) == 0
	if !c.body.HeadOnly {
		c.body.Limit = len(r.Body)
		c.body.Keep() // it is here as a whole: what a host has not processed is sent again
		c.body.Write(r.Body, true)
	}
	d := r.Timeout
	if d <= 0 {
		d = DefaultTimeout
	}
	c.worker.Schedule(&c.timer, d)
	c.try.Start(host, &c.head, &c.body, exchange.Options{Downstream: message.HTTP11})
}

// choose picks a host of the cluster.
func choose(w *loop.Worker, ref *upstream.Ref) (*upstream.Host, failure.Kind) {
	c := ref.Cluster()
	if c == nil {
		return nil, failure.NoCluster
	}
	h := c.Host(&upstream.Pick{Worker: w.ID()})
	if h == nil {
		return nil, failure.NoHealthyUpstream
	}
	return h, failure.None
}

func scheme(h *upstream.Host) string {
	if h.Cluster().Config.TLS != nil {
		return "https"
	}
	return "http"
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// Cancel gives the call up; done is not called.
func (c *Call) Cancel() {
	c.done = nil
	c.release()
}

func (c *Call) release() {
	c.timer.Stop()
	c.try.Cancel()
	c.body.Clear()
}

func (c *Call) timeout() { c.end(failure.RouteTimeout, "") }

// end is the end of the call, however it came.
func (c *Call) end(f failure.Kind, text string) {
	done := c.done
	c.done = nil
	c.release()
	if done != nil {
		c.Response.Failure, c.Response.Text = f, text
		done()
	}
}

// Room is for who waits to write; the body is here as a whole.
func (c *Call) Room() {}

// user is a Call as the user of its exchange.
type user Call

func (u *user) Ready(*exchange.Exchange)                        {}
func (u *user) Sent(*exchange.Exchange)                         {}
func (u *user) Informational(*exchange.Exchange, *message.Head) {}

func (u *user) Head(_ *exchange.Exchange, h *message.Head, _ bool) {
	u.Response.Status = h.StatusCode()
	u.Response.Head.CopyFrom(h)
}

func (u *user) Data(_ *exchange.Exchange, p []byte, _ bool) {
	most := u.request.MaxBody
	if most <= 0 {
		most = DefaultMaxBody
	}
	if len(u.Response.Body)+len(p) > most {
		(*Call)(u).end(failure.ResponseTooLarge, "")
		return
	}
	u.Response.Body = append(u.Response.Body, p...)
}

func (u *user) Trailers(_ *exchange.Exchange, h *message.Head) { u.Response.Trailers.CopyFrom(h) }

func (u *user) Done(_ *exchange.Exchange, o exchange.Outcome) {
	(*Call)(u).end(o.Failure(), o.Text)
}
