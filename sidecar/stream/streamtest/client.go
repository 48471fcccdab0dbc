package streamtest

import (
	"strings"

	"sallyport/sidecar/message"
	"sallyport/sidecar/stream"
)

// Client is the codec's side of one stream: what the client sends goes in by
// its methods, what it gets is written down.
type Client struct {
	Stream *stream.Stream
	// Status is that of the final head, 0 before; Infos are those before it.
	Status   int
	Infos    []int
	Head     message.Head
	Body     string
	Trailers message.Head
	// Ended says that the response came to its end, Reset that it was cut off, and why.
	Ended bool
	Reset message.Reason
	// Dropped says that the stream gave the exchange up, after the response's end too: the codec ends the connection, or
	// over HTTP/2 the request.
	Dropped bool
	// Blocked makes the client one that takes nothing: the codec says Full.
	Blocked bool
	// Breaks makes the codec panic in that call: Head, Data, Trailers or Reset.
	Breaks string
	// Paused is how many Pauses had no Resume.
	Paused int

	rig *Rig
}

// sender is the Client as the stream's way back.
type sender struct{ c *Client }

func (s sender) breaks(call string) {
	if s.c.Breaks == call {
		panic("in " + call)
	}
}

func (s sender) Head(h *message.Head, end bool) {
	s.breaks("Head")
	c, status := s.c, h.StatusCode()
	if status < 200 && status != 101 {
		c.Infos = append(c.Infos, status)
		return
	}
	if c.Status != 0 {
		c.rig.T.Errorf("a second final head, %d after %d", status, c.Status)
	}
	c.Status = status
	c.Head.CopyFrom(h)
	s.end(end)
}

func (s sender) Data(p []byte, end bool) {
	s.breaks("Data")
	if c := s.c; c.Status == 0 || c.Ended || c.Reset != 0 {
		c.rig.T.Errorf("data %q before the head or after the end", p)
	}
	s.c.Body += string(p)
	s.end(end)
}

func (s sender) Trailers(h *message.Head) {
	s.breaks("Trailers")
	s.c.Trailers.CopyFrom(h)
	s.end(true)
}

func (s sender) Reset(r message.Reason) {
	s.c.Dropped = true
	s.breaks("Reset")
	if s.c.Reset == 0 && !s.c.Ended {
		s.c.Reset = r
	}
}

func (s sender) Full() bool { return s.c.Blocked }
func (s sender) Pause()     { s.c.Paused++ }
func (s sender) Resume()    { s.c.Paused-- }

func (s sender) end(end bool) {
	if end && s.c.Ended {
		s.c.rig.T.Error("a second end")
	}
	s.c.Ended = s.c.Ended || end
}

// Open begins a request of which more is to come.
func (r *Rig) Open(method, path string, fields ...string) *Client {
	r.T.Helper()
	return r.Begin(message.HTTP11, Head(method, path, fields...), false)
}

// Get sends a request without a body.
func (r *Rig) Get(path string, fields ...string) *Client {
	r.T.Helper()
	return r.Begin(message.HTTP11, Head("GET", path, fields...), true)
}

// Begin begins a request.
func (r *Rig) Begin(p message.Version, h *message.Head, end bool) *Client {
	r.T.Helper()
	if !r.ready {
		r.Publish()
	}
	r.Worker.Step(0) // takes the clock over
	c := &Client{rig: r}
	c.Stream = r.Factory.New(&owner{r}, r.Conn, sender{c}, p)
	c.Stream.Head(h, end)
	return c
}

// Send sends a piece of the request's body.
func (c *Client) Send(p string) { c.Stream.Data([]byte(p), false) }

// End ends the request, with p before the end.
func (c *Client) End(p string) { c.Stream.Data([]byte(p), true) }

// EndWith ends the request with trailers.
func (c *Client) EndWith(fields ...string) { c.Stream.Trailers(fieldsOf(fields)) }

func fieldsOf(fields []string) *message.Head {
	h := &message.Head{}
	for i := 0; i+1 < len(fields); i += 2 {
		h.AddString(fields[i], fields[i+1])
	}
	return h
}

// Unblock has the client take bytes again.
func (c *Client) Unblock() {
	c.Blocked = false
	c.Stream.Drained()
}

// Done waits for the end of the response.
func (c *Client) Done() *Client {
	c.rig.T.Helper()
	c.rig.Until("the response is complete", func() bool { return c.Ended || c.Reset != 0 })
	return c
}

// Header is a field of the response, all its values joined.
func (c *Client) Header(name string) string {
	v, _ := c.Head.Joined(name)
	return string(v)
}

// Want says what the response must be.
func (c *Client) Want(status int, body string) *Client {
	c.rig.T.Helper()
	if c.Done(); c.Status != status || c.Body != body || c.Reset != 0 {
		c.rig.T.Fatalf("got %d %q (reset %v), want %d %q", c.Status, c.Body, c.Reset, status, body)
	}
	return c
}

// Logs is an access log that keeps a copy of what is known of each stream.
type Logs struct{ All []Line }

// Line is what is kept of a stream.
type Line struct {
	Status   int
	Flags    string
	Details  string
	Attempts uint32
	Failure  string
	Cluster  string
	Received uint64
	Sent     uint64
}

// Log implements stream.AccessLog.
func (l *Logs) Log(s *stream.Stream) {
	l.All = append(l.All, Line{s.Status, string(s.Flags.Append(nil)), s.Details, s.Attempts, s.UpstreamFailure, s.Cluster, s.Received, s.Sent})
}

// String is the lines of the log.
func (l *Logs) String() string {
	var b strings.Builder
	for _, e := range l.All {
		b.WriteString(e.Details + " " + e.Flags + "\n")
	}
	return b.String()
}
