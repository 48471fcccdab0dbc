// Package filtertest runs one filter in a real stream, for the tests of
// filters: a request head goes in, what the client and the route saw comes out.
package filtertest

import (
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/failure"
	"sallyport/sidecar/filter"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

// Compile compiles a filter's configuration; the test fails where that fails.
func Compile(t testing.TB, k *filter.Kind, m proto.Message) (stream.Filter, *metric.Registry) {
	t.Helper()
	c := Compiler()
	f := k.Compile(c, Any(t, m))
	if err := c.Err(); err != nil {
		t.Fatal(err)
	}
	return f, c.Metrics
}

// CompileRoute compiles an override.
func CompileRoute(t testing.TB, k *filter.Kind, m proto.Message) any {
	t.Helper()
	c := Compiler()
	o := k.CompileRoute(c, Any(t, m))
	if err := c.Err(); err != nil {
		t.Fatal(err)
	}
	return o
}

// CompileError returns the error that compiling a configuration gives.
func CompileError(t testing.TB, k *filter.Kind, m proto.Message) error {
	t.Helper()
	c := Compiler()
	a := Any(t, m)
	if k.CompileNetwork != nil {
		k.CompileNetwork(c, a)
	} else {
		k.Compile(c, a)
	}
	return c.Err()
}

// Compiler is a compiler as package config makes it.
func Compiler() *filter.Compiler {
	return &filter.Compiler{Report: fields.NewReport("listener", "test"), Path: "typed_config", FilterName: "f", StatPrefix: "http.test.",
		Metrics: metric.NewRegistry(1), Memory: filter.NewMemory()}
}

// Any packs m.
func Any(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Rig is a connection whose requests meet one filter and then a route that
// answers 200 "passed".
type Rig struct {
	Conn   *stream.Connection
	Worker *loop.Worker
	Route  *route.Route
	// Clock is the time that the worker goes by.
	Clock time.Time

	manager *stream.Manager
	factory *stream.Factory
	parking parking
}

// New returns a rig for the filter; override, if not nil, is the route's configuration for it.
func New(t testing.TB, f stream.Filter, override any) *Rig {
	t.Helper()
	r := &Rig{Clock: time.Unix(1_700_000_000, 0)}
	w, err := loop.NewWithClock(0, func() time.Time { return r.Clock })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	r.Worker = w
	r.Route = &route.Route{Direct: &route.Direct{Status: 200, Body: []byte("passed")}, TraceSampling: -1}
	r.manager = &stream.Manager{StatPrefix: "test", Stats: metric.NewRegistry(1).Set("http", "test", stream.Stats)}
	r.use(t, f, override)
	table, err := route.NewTable([]*route.VirtualHost{{Name: "v", Domains: []string{"*"},
		Entries: []route.Entry{{Matcher: route.NewPath(route.PathPrefix, "/", false), Route: r.Route}}}}, route.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.manager.Routes = route.NewHandle("r", table)
	peer := netip.MustParseAddrPort("127.0.0.1:4321")
	r.Conn = &stream.Connection{Worker: w, Remote: peer, Direct: peer, Local: netip.MustParseAddrPort("127.0.0.1:80")}
	r.factory = stream.NewFactory(w, nil)
	return r
}

// parkingID is the id of the filter that parks responses; 0 is that of the filter under test.
const parkingID = 1

// use puts a filter and an override in force.
func (r *Rig) use(t testing.TB, f stream.Filter, override any) {
	t.Helper()
	chain, err := stream.NewChain([]stream.Filter{f, &r.parking}, []route.FilterID{0, parkingID})
	if err != nil {
		t.Fatal(err)
	}
	m := *r.manager
	m.Filters = chain
	r.manager = &m
	r.Route.Overrides = nil
	if override != nil {
		r.Route.Overrides = []route.Override{{Config: override}}
	}
}

// parking is a filter that holds responses while it is on, so that a stream stays open.
type parking struct {
	on   bool
	held []stream.Context
}

func (p *parking) Name() string { return "parking" }

func (p *parking) ResponseHead(c stream.Context, _ *message.Head, _ bool) stream.Verdict {
	if !p.on {
		return stream.Continue
	}
	p.held = append(p.held, c)
	return stream.Hold
}

// Manager is the connection manager in force.
func (r *Rig) Manager() *stream.Manager { return r.manager }

// Panicked is of no account: the rig has no connection that could end.
func (r *Rig) Panicked(any) {}

// StreamDone is the end of a stream.
func (r *Rig) StreamDone(*stream.Stream) {}

// Result is what became of a request.
type Result struct {
	Status  int
	Body    string
	Head    message.Head // of the response
	Request message.Head // as the filters left it
	Details string
	Flags   failure.Flags
	// Metadata is what filters recorded, as "namespace key".
	Metadata map[string]any
}

// Passed says whether the request reached the route.
func (r *Result) Passed() bool { return r.Status == 200 && r.Body == "passed" }

// Header is a response header.
func (r *Result) Header(name string) string { return string(r.Head.Lookup(name)) }

// Get sends a GET request with header fields given as name, value, name, value.
func (r *Rig) Get(t testing.TB, path string, headers ...string) *Result {
	return r.Do(t, "GET", path, headers...)
}

// Do sends a request and waits for the answer, turning the worker's loop meanwhile.
func (r *Rig) Do(t testing.TB, method, path string, headers ...string) *Result {
	t.Helper()
	return r.Send(method, path, headers...).Wait(t)
}

// Extra is how many objects a request allocates more with the filter than
// without any, once everything is warm.
func Extra(t testing.TB, f stream.Filter, override any, method, path string, headers ...string) float64 {
	t.Helper()
	return New(t, f, override).allocations(t, method, path, headers) - New(t, &parking{}, nil).allocations(t, method, path, headers)
}

func (r *Rig) allocations(t testing.TB, method, path string, headers []string) float64 {
	t.Helper()
	template, h, down := Head(method, path, headers...), &message.Head{}, &counting{}
	return testing.AllocsPerRun(100, func() {
		h.CopyFrom(template)
		down.done = false
		r.factory.New(r, r.Conn, down, message.HTTP11).Head(h, true)
		if r.Worker.Step(0); !down.done {
			t.Fatal("no answer in one turn")
		}
	})
}

// counting is a client that keeps nothing.
type counting struct{ client }

func (c *counting) Head(_ *message.Head, end bool) { c.done = c.done || end }
func (c *counting) Data(_ []byte, end bool)        { c.done = c.done || end }

// Exchange is a request that is under way.
type Exchange struct {
	Stream *stream.Stream
	rig    *Rig
	down   *client
}

// Send sends a request.
func (r *Rig) Send(method, path string, headers ...string) *Exchange {
	r.Worker.Step(0) // takes the clock over
	down := &client{result: &Result{Metadata: map[string]any{}}}
	s := r.factory.New(r, r.Conn, down, message.HTTP11)
	down.stream = s
	s.Head(Head(method, path, headers...), true)
	return &Exchange{s, r, down}
}

// Reset is the client's word that it does not wait any more.
func (e *Exchange) Reset() { e.Stream.Reset(message.RemoteReset) }

// Done says whether the request was answered.
func (e *Exchange) Done() bool { return e.down.done }

// Wait turns the worker's loop until the request is answered.
func (e *Exchange) Wait(t testing.TB) *Result {
	t.Helper()
	r, down := e.rig, e.down
	for deadline := time.Now().Add(10 * time.Second); !down.done; {
		if time.Now().After(deadline) {
			t.Fatal("no answer in 10 s")
		}
		r.Worker.Step(time.Second)
	}
	r.Worker.Step(0) // the stream's memory goes back
	return down.result
}

// Recheck sends a request through the filter of the rig, puts another filter
// and override in force before the response goes out, and asks them about the
// request. The result passed where they let it go on.
func (r *Rig) Recheck(t testing.TB, f stream.Filter, override any, method, path string, headers ...string) *Result {
	t.Helper()
	r.parking.on = true
	e := r.Send(method, path, headers...)
	if len(r.parking.held) != 1 {
		t.Fatal("the request did not pass the first filter")
	}
	r.use(t, f, override)
	e.Stream.Recheck()
	r.parking.held[0].Resume()
	r.parking = parking{}
	return e.Wait(t)
}

// Head makes a request head.
func Head(method, path string, headers ...string) *message.Head {
	h := &message.Head{}
	h.AddNameString(message.Method, method)
	h.AddNameString(message.Path, path)
	h.AddNameString(message.Authority, "example.com")
	h.AddNameString(message.Scheme, "https")
	for i := 0; i+1 < len(headers); i += 2 {
		h.AddString(headers[i], headers[i+1])
	}
	return h
}

// client is the codec's side of a stream.
type client struct {
	stream *stream.Stream
	result *Result
	done   bool
}

func (c *client) Head(h *message.Head, end bool) {
	c.result.Status = h.StatusCode()
	c.result.Head.CopyFrom(h)
	c.end(end)
}

func (c *client) Data(p []byte, end bool) {
	c.result.Body += string(p)
	c.end(end)
}

func (c *client) Trailers(*message.Head) { c.end(true) }
func (c *client) Reset(message.Reason)   { c.end(true) }
func (c *client) Full() bool             { return false }
func (c *client) Pause()                 {}
func (c *client) Resume()                {}

func (c *client) end(end bool) {
	if !end {
		return
	}
	c.done = true
	s := c.stream
	c.result.Request.CopyFrom(&s.Request)
	c.result.Details, c.result.Flags = s.Details, s.Flags
	for _, m := range s.Metadata {
		c.result.Metadata[m.Namespace+" "+m.Key] = m.Value
	}
}
