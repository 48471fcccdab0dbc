package upstream

import (
	"errors"
	"time"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/conn"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
	"sallyport/sidecar/metric"
)

// Client is one connection to a host that speaks HTTP. Owned by its worker.
type Client struct {
	pool     *Pool
	priority int
	conn     *conn.Conn
	proto    *codec.Protocol
	codec    codec.Client // nil until connected

	started   time.Time
	connected bool
	secured   bool  // TLS handshake was begun
	failure   error // why TLS could not begin
	retired   bool  // takes no new streams; closes when the last one ends
	closed    bool
	idle      bool   // stands in the pool's list of idle connections
	held      bool   // reading is paused until the codec goes on
	served    uint32 // streams so far
	idleSince time.Time
	idleTimer loop.Timer
	sweep     *loop.Timer // what the codec ends by time; made when it is first needed
}

// Conn is the connection, for addresses in logs.
func (c *Client) Conn() *conn.Conn { return c.conn }

// Host is whose connection it is.
func (c *Client) Host() *Host { return c.pool.host }

// Version is the version of HTTP that is spoken.
func (c *Client) Version() message.Version { return c.proto.Version }

// Reused says whether an earlier request was made on the connection: a reset
// before any byte of a response may then be the peer's idle timeout.
func (c *Client) Reused() bool { return c.served > 1 }

func (c *Cluster) dialOptions() conn.DialOptions {
	return conn.DialOptions{ConnectTimeout: c.Config.ConnectTimeout, Source: c.Config.Source, KeepAlive: c.Config.KeepAlive, Limit: c.Config.BufferLimit}
}

func (c *Client) dial() {
	p := c.pool
	c.started = p.worker.Now()
	p.cluster.breakers[c.priority].connections.Add(1)
	p.stats.Inc(StatCxTotal)
	p.stats.Add(StatCxActive, 1)
	p.host.connects.Add(1)
	c.conn = conn.Dial(p.worker, p.host.where.Load().Address, p.source.options(p.host), c)
}

// errNoSecret closes a connection whose TLS could not begin.
var errNoSecret = errors.New("TLS configuration is not available")

// Connected is called when TCP is up and, after StartTLSClient, again when TLS is.
func (c *Client) Connected() {
	p := c.pool
	if t := p.cluster.Config.TLS; t != nil && !c.secured {
		c.secured = true
		cfg, err := t.ClientConfig(p.serverName())
		if err != nil {
			c.failure = errors.Join(errNoSecret, err)
			c.conn.Close()
			return
		}
		c.conn.StartTLSClient(cfg)
		return
	}
	c.connected = true
	p.dialing--
	p.stats.Observe(StatCxConnectMS, float64(p.worker.Now().Sub(c.started))/1e6)
	id := codec.ID(p.proto)
	if c.secured {
		p.stats.Inc(StatTLSHandshake)
	}
	if p.proto == ALPN {
		id = codec.HTTP1
		if c.secured {
			if n, ok := codec.Negotiated(c.conn.TLS().NegotiatedProtocol); ok {
				id = n
			}
		}
	}
	cfg := p.cluster.Config
	c.conn.SetInputLimit(cfg.InputLimit())
	p.stats.Inc(statCxProtocol[id])
	c.proto = &codec.Protocols[id]
	c.codec = c.proto.NewClient(c.conn, &cfg.Options, cfg.BufferLimit, (*clientOwner)(c))
	if c.proto.Multiplexed {
		p.shared = append(p.shared, c)
	}
	if o := cfg.Outlier; o != nil && o.SplitLocal {
		p.host.ReportLocal(0) // as Envoy: with a split, reaching the host is a success of its own
	}
	p.serve(c)
	if !c.closed && c.active() == 0 {
		c.rest()
	}
}

// statCxProtocol is where connections are counted by protocol.
var statCxProtocol = [codec.N]int{codec.HTTP1: StatCxHTTP1, codec.HTTP2: StatCxHTTP2}

// active is the number of streams under way.
func (c *Client) active() int {
	if c.codec == nil {
		return 0
	}
	return c.codec.Active()
}

// usable says whether new streams may be put on the connection.
func (c *Client) usable() bool {
	return c.connected && !c.retired && !c.closed && !c.codec.Draining()
}

// room says whether one more stream fits now. Before the host's SETTINGS are here, as many as it took on connections
// before, and one where there was none: it might refuse others, and they wait for a round trip at most.
func (c *Client) room() bool {
	if c.codec.Capacity() == 0 {
		return false
	}
	_, known := c.codec.Limit()
	return known || c.codec.Active() < c.pool.first()
}

// starvation is how long streams may wait for the connection's window alone before others go to another connection.
const starvation = int64(100 * time.Millisecond)

// starved says that the host gives no window for the connection: it reads none of the uploads there, or holds too much
// of some that nobody reads.
func (c *Client) starved() bool {
	at := c.codec.StarvedSince()
	return at != 0 && c.pool.worker.NowMono()-at > starvation
}

// clientOwner is a Client as its codec sees it.
type clientOwner Client

func (o *clientOwner) StreamClosed() { (*Client)(o).streamClosed() }
func (o *clientOwner) PeerDrains()   { (*Client)(o).retire() }
func (o *clientOwner) SendEOF()      { o.conn.CloseWrite() }

// Resumed reads on after a stream's Resume.
func (o *clientOwner) Resumed() {
	if o.held && !o.closed {
		o.held = false
		o.conn.ResumeRead()
	}
}

// SweepIn sets the timer that the codec does not have.
func (o *clientOwner) SweepIn(d time.Duration) {
	if o.sweep == nil {
		o.sweep = new(loop.Timer)
		o.sweep.Init(func() {
			defer o.pool.worker.Guard(o.conn)
			o.codec.Sweep()
		})
	}
	o.pool.worker.Schedule(o.sweep, d)
}

// attach opens a stream for the waiter.
func (c *Client) attach(w *Waiter) {
	c.served++
	s := c.codec.Open(w.Requester)
	if s == nil {
		// room() was asked just before; only a connection that broke meanwhile gets here.
		w.Requester.Failed(message.ConnectionClosed, "the connection takes no more streams")
		return
	}
	if limit := c.pool.cluster.Config.MaxRequests; limit > 0 && c.served >= limit && !c.retired {
		c.pool.stats.Inc(StatCxMaxRequests)
		c.retired = true
		c.pool.shared = remove(c.pool.shared, c)
	}
	w.Requester.Ready(s, c)
}

// streamClosed is called by the codec when an exchange ended.
func (c *Client) streamClosed() {
	if c.closed {
		return
	}
	if c.proto.Multiplexed {
		c.pool.learn(c.codec.Limit())
	}
	if c.codec.Worn() && !c.retired {
		c.retire()
		return
	}
	if c.retired || c.codec.Draining() {
		if c.active() == 0 {
			c.conn.CloseAfterFlush(time.Second)
		}
		c.pool.grow()
		return
	}
	c.pool.serve(c)
	if !c.closed && c.active() == 0 {
		c.rest()
	}
}

// rest makes the connection wait for the next request, for the idle timeout at most.
// A request that was over at once has brought the connection here before.
func (c *Client) rest() {
	p := c.pool
	if p.host.gone() {
		c.retire()
		return
	}
	if !c.proto.Multiplexed && !c.idle {
		c.idle = true
		p.idle = append(p.idle, c)
	}
	// The timer is not moved for each request: it looks at idleSince when
	// it fires, and sleeps for the rest.
	c.idleSince = p.worker.Now()
	if d := p.idleTimeout(); d > 0 && !c.idleTimer.Scheduled() {
		p.worker.Schedule(&c.idleTimer, d)
	}
}

func (c *Client) idleFor() {
	defer c.pool.worker.Guard(c.conn)
	if c.closed {
		return
	}
	w, d := c.pool.worker, c.pool.idleTimeout()
	if c.active() > 0 {
		w.Schedule(&c.idleTimer, d)
		return
	}
	if left := d - w.Now().Sub(c.idleSince); left > 0 {
		w.Schedule(&c.idleTimer, left)
		return
	}
	c.pool.stats.Inc(StatCxIdleTimeout)
	c.retire()
}

// retire takes no more streams, and closes when the last one has ended.
func (c *Client) retire() {
	if c.closed {
		return
	}
	c.retired = true
	c.pool.idle, c.idle = remove(c.pool.idle, c), false
	c.pool.shared = remove(c.pool.shared, c)
	if c.connected && c.active() == 0 {
		c.codec.Drain(true)
		c.conn.CloseAfterFlush(time.Second)
	}
	c.pool.grow()
}

// Data feeds the codec.
func (c *Client) Data(p []byte) int {
	if c.closed || c.codec == nil {
		return len(p)
	}
	n, err := c.codec.Feed(p)
	if c.closed {
		return n
	}
	if err != nil {
		c.pool.stats.Inc(StatCxProtocolError)
		c.closeCodec(message.ProtocolError)
		c.conn.CloseAfterFlush(time.Second)
		return len(p)
	}
	if n < len(p) {
		switch c.codec.Rest() {
		case message.ForTurn:
			c.conn.Yield()
		case message.ForOwner:
			if !c.held {
				c.held = true
				c.conn.PauseRead()
			}
		}
	}
	return n
}

// EOF ends the connection: a server that half-closes answers no more requests.
func (c *Client) EOF() {
	if c.codec != nil {
		c.codec.EOF()
	}
	if !c.closed {
		c.closeCodec(message.ConnectionClosed)
		c.conn.CloseAfterFlush(time.Second)
	}
}

// Drained lets the codec send what waits.
func (c *Client) Drained() {
	if c.codec != nil {
		c.codec.Writable()
	}
}

// closeCodec ends every stream on the connection.
func (c *Client) closeCodec(r message.Reason) {
	if c.retired = true; c.codec != nil {
		c.codec.Closed(r)
	}
}

// Closed is the end of the connection, for whatever reason.
func (c *Client) Closed(err error) {
	if c.closed {
		return
	}
	c.closed = true
	c.idleTimer.Stop()
	if c.sweep != nil {
		c.sweep.Stop()
	}
	p := c.pool
	p.forget(c)
	p.cluster.breakers[c.priority].connections.Add(-1)
	p.stats.Add(StatCxActive, -1)
	p.stats.Inc(StatCxDestroy)
	p.stats.Add(StatCxRxBytes, int64(c.conn.BytesRead()))
	p.stats.Add(StatCxTxBytes, int64(c.conn.BytesWritten()))
	stopped := errors.Is(err, conn.ErrStopped)
	if c.connected {
		c.closeCodec(message.ConnectionClosed)
		if stopped {
			p.fail(message.ConnectionClosed, err.Error())
		} else {
			p.grow() // someone may wait for a place on this very connection
		}
		return
	}
	p.dialing--
	if stopped {
		p.fail(message.ConnectionClosed, err.Error())
		return
	}
	r, text := connectFailure(err, c.secured, c.failure)
	countFailure(p.stats, r)
	p.host.connectFails.Add(1)
	p.host.ReportLocal(r)
	p.fail(r, text)
}

// connectFailure says, in the words of logs, why a connection did not come up.
func connectFailure(err error, secured bool, failure error) (message.Reason, string) {
	switch {
	case failure != nil:
		return message.TLSFailure, failure.Error()
	case errors.Is(err, conn.ErrConnectTimeout):
		return message.ConnectTimeout, "connection timeout"
	case secured:
		text := "TLS handshake failed"
		if err != nil {
			text += ": " + err.Error()
		}
		return message.TLSFailure, text
	case err != nil:
		return message.ConnectFailure, err.Error()
	}
	return message.ConnectFailure, "connection closed"
}

func countFailure(st *metric.Block, r message.Reason) {
	st.Inc(StatCxConnectFail)
	switch r {
	case message.ConnectTimeout:
		st.Inc(StatCxConnectTimeout)
	case message.TLSFailure:
		st.Inc(StatTLSFail)
	}
}

// RawClient is a connection of the TCP proxy: it does the cluster's part (TLS,
// counting) and passes everything else to the proxy.
type RawClient struct {
	Conn    *conn.Conn
	host    *Host
	stats   *metric.Block
	next    conn.Handler
	started time.Time
	secured bool
	up      bool
	closed  bool
	failure error
	// Reason and Text say why the connection did not come up, when the
	// proxy's Closed is called before its Connected.
	Reason message.Reason
	Text   string
}

// Connected starts TLS where the cluster has it, and tells the proxy when all is up.
func (r *RawClient) Connected() {
	if t := r.host.cluster.Config.TLS; t != nil && !r.secured {
		r.secured = true
		cfg, err := t.ClientConfig(r.host.hostname)
		if err != nil {
			r.failure = errors.Join(errNoSecret, err)
			r.Conn.Close()
			return
		}
		r.Conn.StartTLSClient(cfg)
		return
	}
	r.up = true
	r.host.ReportLocal(0)
	r.stats.Observe(StatCxConnectMS, float64(r.Conn.Worker().Now().Sub(r.started))/1e6)
	r.next.Connected()
}

// Data passes on.
func (r *RawClient) Data(p []byte) int { return r.next.Data(p) }

// EOF passes on.
func (r *RawClient) EOF() { r.next.EOF() }

// Drained passes on.
func (r *RawClient) Drained() { r.next.Drained() }

// Closed counts and passes on.
func (r *RawClient) Closed(err error) {
	if r.closed {
		return
	}
	r.closed = true
	delete(r.host.raw[r.Conn.Worker().ID()], r)
	r.host.cluster.breakers[0].connections.Add(-1)
	r.host.active.Add(-1)
	r.stats.Add(StatCxActive, -1)
	r.stats.Inc(StatCxDestroy)
	r.stats.Add(StatCxRxBytes, int64(r.Conn.BytesRead()))
	r.stats.Add(StatCxTxBytes, int64(r.Conn.BytesWritten()))
	if !r.up {
		r.Reason, r.Text = connectFailure(err, r.secured, r.failure)
		countFailure(r.stats, r.Reason)
		r.host.connectFails.Add(1)
		r.host.ReportLocal(r.Reason)
	}
	r.next.Closed(err)
}
