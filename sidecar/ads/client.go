// Package ads is the xDS client: it speaks the aggregated discovery service to
// a control plane, in its state-of-the-world and its delta form, acknowledges
// or refuses what comes, asks for what is needed, and connects again, for ever.
// It knows the protocol and nothing of the resources: those go to a Sink.
//
// One goroutine (Run) owns everything; another receives for it. Subscribe and
// Status may be called from anywhere.
package ads

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/panics"
)

// Type URLs of the resources.
const (
	ClusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	SecretType   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// Types in the order in which they are asked for: what is referred to is
// wanted before what refers to it goes into force, and a server that answers
// in order sends it so ("make before break", xDS protocol, eventual consistency).
var Types = []string{ClusterType, EndpointType, ListenerType, RouteType, SecretType}

// Resource is one resource as it came.
type Resource struct {
	Name    string // "" in a state-of-the-world response that does not wrap it: it is in the body
	Version string
	Body    *anypb.Any
}

// Response is what a control plane sent.
type Response struct {
	Type    string
	Version string
	// Full: Resources are all that there are (state of the world). For
	// clusters and listeners, what is not among them is gone.
	Full      bool
	Resources []Resource
	Removed   []string // delta
}

// Refused is a resource of a Response that cannot be used. What was in force
// under its name stays so.
type Refused struct {
	Name string
	Err  error
}

// Sink takes what comes. It is called on the client's goroutine, one call at a time.
type Sink interface {
	// Apply takes a response: what is good of it is used, also if
	// something else is refused.
	Apply(Response) []Refused
	// Versions are those of the resources of a type that are in force, by
	// name; a new delta stream starts from them.
	Versions(typeURL string) map[string]string
	// Expire takes a resource away whose time to live is over.
	Expire(typeURL, name string)
}

// Options of a Client. Conn, Node and Sink are required.
type Options struct {
	Conn     grpc.ClientConnInterface
	Node     *corev3.Node
	Sink     Sink
	Delta    bool
	Metadata metadata.MD // initial_metadata of each stream
	// Wildcard types are asked for from the start, without names.
	Wildcard []string
	Log      *slog.Logger
	// BackoffBase and BackoffMax bound the wait between streams; 0.5 s and 30 s.
	BackoffBase, BackoffMax time.Duration
}

// Status of the connection to the control plane.
type Status struct {
	Connected bool
	Since     time.Time // of Connected, or of its contrary
	// Error is why the last stream ended.
	Error string
	// Updates and Rejected count responses since the start.
	Updates, Rejected uint64
	Control           string // the identifier that the control plane gave
}

// Client is an ADS client. Make it with New, then call Run once.
type Client struct {
	o    Options
	wake chan struct{}

	mu     sync.Mutex
	want   map[string][]string // by type, sorted; a type without entry is not asked for
	status Status

	// Owned by Run.
	ttl     leases
	refused refusals
}

// New returns a client that does nothing until Run.
func New(o Options) *Client {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.BackoffBase <= 0 {
		o.BackoffBase = 500 * time.Millisecond
	}
	if o.BackoffMax <= 0 {
		o.BackoffMax = 30 * time.Second
	}
	c := &Client{o: o, wake: make(chan struct{}, 1), want: map[string][]string{}}
	for _, t := range o.Wildcard {
		c.want[t] = []string{}
	}
	c.status.Since = time.Now()
	return c
}

// Subscribe says which resources of a type are wanted, in place of those
// wanted before. Safe for concurrent use, also from within Sink.Apply.
func (c *Client) Subscribe(typeURL string, names []string) {
	if slices.Contains(c.o.Wildcard, typeURL) {
		return
	}
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	c.mu.Lock()
	old, known := c.want[typeURL]
	if !known && len(names) == 0 || known && slices.Equal(old, names) {
		c.mu.Unlock()
		return
	}
	c.want[typeURL] = names
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// wanted returns the names of a type; ok says that it is asked for at all.
func (c *Client) wanted(typeURL string) (names []string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	names, ok = c.want[typeURL]
	return names, ok
}

// Status says how the connection is.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *Client) update(f func(*Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.status)
}

// Run talks to the control plane until ctx ends. What is in force stays so
// while there is no connection.
func (c *Client) Run(ctx context.Context) {
	wait := c.o.BackoffBase
	for ctx.Err() == nil {
		heard, err := c.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if heard {
			wait = c.o.BackoffBase
		}
		c.update(func(s *Status) {
			if s.Connected || s.Error == "" {
				s.Since = time.Now()
			}
			s.Connected, s.Error = false, err.Error()
		})
		// Full jitter: many proxies that lost the same control plane do not come back at once.
		pause := time.Duration(rand.Int64N(int64(wait))) + time.Millisecond
		c.o.Log.Warn("the control plane is away; the last configuration stays in force", "error", err, "again_in", pause)
		if !c.pause(ctx, pause) {
			return
		}
		wait = min(wait*2, c.o.BackoffMax)
	}
}

// pause waits, and goes on with the leases meanwhile.
func (c *Client) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			return true
		case <-c.ttl.due():
			c.expire()
		}
	}
}

// stream is one stream, of either form.
type stream interface {
	// start sends the first request of every type that is wanted.
	start() error
	// subscribe sends what changed in what is wanted.
	subscribe() error
	// receive blocks for the next message; handle uses it. They are on different goroutines.
	receive() (any, error)
	handle(any) error
}

// session is the life of one stream. heard says that a response came.
func (c *Client) session(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(ctx, c.o.Metadata))
	defer cancel()
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(c.o.Conn)
	limits := []grpc.CallOption{grpc.MaxCallRecvMsgSize(maxMessage), grpc.WaitForReady(false)}
	var s stream
	if c.o.Delta {
		g, err := client.DeltaAggregatedResources(ctx, limits...)
		if err != nil {
			return false, plain(err)
		}
		s = newDelta(c, g)
	} else {
		g, err := client.StreamAggregatedResources(ctx, limits...)
		if err != nil {
			return false, plain(err)
		}
		s = newWorld(c, g)
	}
	c.refused.drop() // what another stream was to be told
	if err := s.start(); err != nil {
		return false, c.cause(s, err)
	}
	incoming := make(chan any)
	ended := make(chan error, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				ended <- panics.Error(c.o.Log, "receiving from the control plane", r)
			}
		}()
		for {
			m, err := s.receive()
			if err != nil {
				ended <- plain(err)
				return
			}
			select {
			case incoming <- m: // nobody takes it while the last is applied: that is the back-pressure
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	}()
	for {
		select {
		case err := <-ended:
			return heard, err
		case m := <-incoming:
			if !heard {
				heard = true
				c.update(func(s *Status) { s.Connected, s.Since, s.Error = true, time.Now(), "" })
			}
			if p := panics.Guard(c.o.Log, "taking a response of the control plane", func() { err = s.handle(m) }); p != nil {
				err = p
			}
		case <-c.wake:
			err = s.subscribe()
		case <-c.refused.ready():
			err = c.answerHeld()
		case <-c.ttl.due():
			c.expire()
		}
		if err != nil {
			if errors.Is(err, io.EOF) { // Send says no more than that; the reason is with Recv
				return heard, <-ended
			}
			return heard, plain(err)
		}
	}
}

// cause finds why the first request could not be sent.
func (c *Client) cause(s stream, err error) error {
	if errors.Is(err, io.EOF) {
		if _, err := s.receive(); err != nil {
			return plain(err)
		}
	}
	return plain(err)
}

// maxMessage bounds a response: 64 MiB are tens of thousands of clusters.
const maxMessage = 64 << 20

// plain is err on one line, without gRPC's decoration around an end without error.
func plain(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the control plane closed the stream")
	}
	text := err.Error() // of the server, perhaps
	return errors.New(strings.Join(strings.Fields(text[:min(len(text), maxDetail)]), " "))
}

// apply gives a response to the sink and counts. bad is what was refused before.
func (c *Client) apply(r Response, bad []Refused) []Refused {
	refused := append(slices.Clip(bad), c.o.Sink.Apply(r)...)
	c.update(func(s *Status) {
		s.Updates++
		if len(refused) > 0 {
			s.Rejected++
		}
	})
	if len(refused) > 0 {
		c.o.Log.Error("configuration refused; what was in force for it stays so", "type", r.Type, "version", r.Version,
			"error", c.detail(r.Type, refused).GetMessage())
	}
	return refused
}

// maxDetail bounds the text of a NACK; servers put it into logs and headers.
const maxDetail = 4096

// detail is what a NACK says; nil for an ACK.
func (c *Client) detail(typeURL string, refused []Refused) *status.Status {
	if len(refused) == 0 {
		return nil
	}
	var b strings.Builder
	b.WriteString(strings.TrimPrefix(typeURL, "type.googleapis.com/"))
	for _, r := range refused {
		line := strings.ReplaceAll(r.Err.Error(), "\n", "; ")
		if b.Len()+len(line) > maxDetail {
			fmt.Fprintf(&b, "; and more: %d resources in all", len(refused))
			break
		}
		b.WriteString("; ")
		b.WriteString(line)
	}
	text := b.String()
	if len(text) > maxDetail+100 {
		text = text[:maxDetail]
	}
	return &status.Status{Code: int32(codes.InvalidArgument), Message: strings.ToValidUTF8(text, "?")}
}

func (c *Client) control(id *corev3.ControlPlane) {
	if name := id.GetIdentifier(); name != "" {
		c.update(func(s *Status) { s.Control = name[:min(len(name), maxDetail)] })
	}
}

// expire takes away what was not renewed in time.
func (c *Client) expire() {
	for _, k := range c.ttl.over(time.Now()) {
		c.o.Log.Warn("a resource was not renewed within its time to live", "type", k.typeURL, "name", k.name)
		c.o.Sink.Expire(k.typeURL, k.name)
	}
}
