package listener

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/cespare/xxhash/v2"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/failure"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/metric"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
	"sallyport/sidecar/upstream"
)

// Indexes into the statistics of a TCP proxy; the names are Envoy's.
const (
	tcpTotal = iota
	tcpNoRoute
	tcpIdle
	tcpMaxDuration
	tcpRx
	tcpTx
	tcpCount
)

// tcpDescs are the metrics of a TCP proxy.
var tcpDescs = [tcpCount]metric.Desc{
	tcpTotal:       {Name: "downstream_cx_total"},
	tcpNoRoute:     {Name: "downstream_cx_no_route"},
	tcpIdle:        {Name: "idle_timeout"},
	tcpMaxDuration: {Name: "max_downstream_connection_duration"},
	tcpRx:          {Name: "downstream_cx_rx_bytes_total"},
	tcpTx:          {Name: "downstream_cx_tx_bytes_total"},
}

// TCPStats is the layout of a TCP proxy's statistics.
var TCPStats = metric.NewLayout(tcpDescs[:]...)

// tcpSession is a connection under the TCP proxy: bytes of either side go to
// the other, each side's end of sending is passed on, and a side that takes
// nothing stops the other one's reading. When both sides have ended their sending
// each connection closes by itself, once what waits for it is gone; the session
// lasts as long as the client's. Owned by the connection's worker.
type tcpSession struct {
	k        *connection
	proxy    *TCPProxy
	stats    *metric.Block
	cluster  *upstream.Cluster
	up       *upstream.RawClient // nil before the first attempt and after the last Closed
	upReady  bool
	upPaused bool // the client reads too slowly
	kPaused  bool // the upstream does, or is not there yet
	kEOF     bool // the client ended its sending
	upEOF    bool
	ended    bool
	attempts uint32
	active   time.Time
	sent     uint64 // to both sides, when idleTimeout looked last
	touch    func() // notes the activity of a spliced burst; nil until there is one
	idle     loop.Timer
	life     loop.Timer
	record   *stream.Stream // for the access log
}

func newTCPSession(k *connection) *tcpSession {
	t := &tcpSession{k: k, proxy: k.chain.TCP, stats: k.chain.TCP.Stats.At(k.Worker.ID())}
	t.idle.Init(t.idleTimeout)
	t.life.Init(t.lifeTimeout)
	return t
}

// Connected chooses a cluster and a host, and connects to it; nothing is read
// from the client until then.
func (t *tcpSession) Connected() {
	t.stats.Inc(tcpTotal)
	w := t.k.Worker
	t.active = w.Now()
	if t.proxy.Idle > 0 {
		w.Schedule(&t.idle, t.proxy.Idle)
	}
	if t.proxy.MaxDuration > 0 {
		w.Schedule(&t.life, t.proxy.MaxDuration)
	}
	t.kPaused = true
	t.k.conn.PauseRead()
	if wc := t.choose(); wc != nil {
		t.cluster = wc.Cluster.Ref.(*upstream.Ref).Cluster()
	}
	if len(t.proxy.AccessLogs) > 0 || len(t.k.cfg.AccessLogs) > 0 {
		t.record = stream.Record(&t.k.Connection, t.active)
	}
	t.dial()
}

func (t *tcpSession) choose() *route.WeightedCluster {
	if len(t.proxy.Clusters) == 1 {
		return &t.proxy.Clusters[0]
	}
	at := rand.Uint32N(max(t.proxy.TotalWeight, 1))
	for i := range t.proxy.Clusters {
		if c := &t.proxy.Clusters[i]; at < c.Weight {
			return c
		} else {
			at -= c.Weight
		}
	}
	return nil
}

func (t *tcpSession) dial() {
	if t.cluster == nil {
		t.stats.Inc(tcpNoRoute)
		t.finish(failure.NoCluster, "")
		return
	}
	t.attempts++
	pick := upstream.Pick{Worker: t.k.Worker.ID(), Original: t.k.OriginalDst}
	if t.proxy.HashSource {
		var b [46]byte
		pick.Hash, pick.HasHash = xxhash.Sum64(t.k.Remote.Addr().AppendTo(b[:0])), true
	}
	host := t.cluster.Host(&pick)
	if host == nil {
		t.finish(failure.NoHealthyUpstream, "")
		return
	}
	if t.toItself(host.Address()) {
		t.k.local.parent.server.limitedLog("connection to the listener that accepted it was not made", "listener", t.k.cfg.Name, "cluster", t.cluster.Config.Name, "address", host.Address())
		t.finish(failure.NoHealthyUpstream, "")
		return
	}
	if t.record != nil {
		t.record.Cluster, t.record.Host = t.cluster.Config.Name, host
		t.record.Attempts = t.attempts
	}
	t.up = host.DialTCP(t.k.Worker, (*tcpUpstream)(t), t.k.Source)
	if t.up == nil {
		t.finish(failure.Overflow, "")
	}
}

// toItself says that the connection would come back to the listener that it came
// from, and go round until no file descriptor is left: an ORIGINAL_DST cluster
// leads there who connected to the listener itself. Under TPROXY, with a listener
// on any address, it may have been another host's address with the same port, so
// that is asked.
func (t *tcpSession) toItself(to netip.AddrPort) bool {
	return t.k.ownDst && t.cluster.Config.Discovery == upstream.OriginalDst && sameAddr(to, t.k.OriginalDst) && conn.IsOwn(to.Addr())
}

// finish ends the session, in order or with a failure: both sides are closed,
// the log is written once. text says more of a failed connection.
func (t *tcpSession) finish(k failure.Kind, text string) {
	if t.ended {
		return
	}
	t.ended = true
	t.idle.Stop()
	t.life.Stop()
	if t.record != nil {
		r := t.record
		r.Flags |= failure.Of(k).Flags
		r.UpstreamFailure = text
		r.Received, r.Sent = t.k.conn.BytesRead(), t.k.conn.BytesWritten()
		r.Duration = t.k.Worker.Now().Sub(r.Start)
		for _, l := range t.proxy.AccessLogs {
			l.Log(r)
		}
		for _, l := range t.k.cfg.AccessLogs {
			l.Log(r)
		}
	}
	orderly := k == failure.None
	t.partUpstream(orderly && t.kEOF)
	t.k.conn.CloseAfterSlowFlush(t.patience(orderly && t.upEOF))
}

const (
	// endTime is how long a side may take nothing of what waits for it when
	// the session ends for a bad reason, or before the other side has said all.
	endTime = time.Second
	// endTimeWithoutIdle stands for the idle timeout where there is none: the
	// session is over, so that nothing else could end the waiting.
	endTimeWithoutIdle = time.Hour
)

// patience is how long a side may pause before what waits for it is dropped, and
// the connection reset. What is whole may be worth waiting for.
func (t *tcpSession) patience(whole bool) time.Duration {
	switch {
	case !whole:
		return endTime
	case t.proxy.Idle > 0:
		return t.proxy.Idle
	}
	return endTimeWithoutIdle
}

// partUpstream lets the upstream have what the client sent before it went. Where
// nothing waits no byte of an answer for nobody is read any more.
func (t *tcpSession) partUpstream(whole bool) {
	switch {
	case t.up == nil:
	case t.up.Conn.Unsent() > 0:
		t.up.Conn.CloseAfterSlowFlush(t.patience(whole))
	default:
		t.up.Conn.Close()
	}
}

// Data passes the client's bytes on.
func (t *tcpSession) Data(p []byte) int {
	if t.ended {
		return len(p)
	}
	if !t.upReady {
		return 0
	}
	t.active = t.k.Worker.Now()
	if t.pass(t.k.conn, t.up.Conn, p); t.up.Conn.Full() && !t.kPaused {
		t.kPaused = true
		t.k.conn.PauseRead()
	}
	return len(p)
}

// bulk is so much that it is sent at once, without being gathered: only what
// was decrypted is ever as long.
const bulk = 2 * conn.ReadSize

// pass sends p to the other side. A read that was filled says that more is
// coming: where both sides are plain the burst then passes within the kernel.
func (t *tcpSession) pass(from, to *conn.Conn, p []byte) {
	switch {
	case len(p) > bulk:
		to.WriteThrough(p)
		return
	case len(p) < conn.ReadSize || !from.CanSplice(to):
		to.Write(p)
		return
	}
	to.WriteThrough(p)
	if !from.CanSplice(to) {
		return // it did not take all of it
	}
	if t.touch == nil {
		t.touch = func() { t.active = t.k.Worker.Now() }
	}
	from.SpliceTo(to, t.touch)
}

// EOF passes the client's end of sending on.
func (t *tcpSession) EOF() {
	t.kEOF = true
	if t.upReady && !t.ended {
		t.up.Conn.CloseWrite()
	}
}

// Drained lets the upstream be read again.
func (t *tcpSession) Drained() {
	if t.upPaused && !t.ended && t.up != nil {
		t.upPaused = false
		t.up.Conn.ResumeRead()
	}
}

// Closed is the end of the client's connection.
func (t *tcpSession) Closed(error) {
	t.stats.Add(tcpRx, int64(t.k.conn.BytesRead()))
	t.stats.Add(tcpTx, int64(t.k.conn.BytesWritten()))
	t.finish(failure.None, "")
}

// idleTimeout ends a session in which nothing is received and nothing sent: what
// waits for a slow reader is on its way as long as some of it leaves.
func (t *tcpSession) idleTimeout() {
	defer t.k.Worker.Guard(t.k.conn)
	left := t.proxy.Idle - t.k.Worker.Now().Sub(t.active)
	sent := t.k.conn.BytesWritten()
	if t.up != nil {
		sent += t.up.Conn.BytesWritten()
	}
	if sent != t.sent && left <= 0 {
		left = t.proxy.Idle // when it left is not known
	}
	t.sent = sent
	if left > 0 {
		t.k.Worker.Schedule(&t.idle, max(left, time.Millisecond))
		return
	}
	t.stats.Inc(tcpIdle)
	t.finish(failure.IdleTimeout, "")
}

func (t *tcpSession) lifeTimeout() {
	defer t.k.Worker.Guard(t.k.conn)
	t.stats.Inc(tcpMaxDuration)
	t.finish(failure.MaxDuration, "")
}

// tcpUpstream is the session as the handler of the upstream connection.
type tcpUpstream tcpSession

// Connected lets the client be read.
func (u *tcpUpstream) Connected() {
	t := (*tcpSession)(u)
	if t.ended {
		return
	}
	t.upReady = true
	if t.record != nil {
		t.record.UpstreamLocal = t.up.Conn.LocalAddr()
	}
	if t.kPaused {
		t.kPaused = false
		t.k.conn.ResumeRead()
	}
	if t.kEOF {
		t.up.Conn.CloseWrite()
	}
}

// Data passes the upstream's bytes on.
func (u *tcpUpstream) Data(p []byte) int {
	t := (*tcpSession)(u)
	if t.ended {
		return len(p)
	}
	t.active = t.k.Worker.Now()
	if t.pass(t.up.Conn, t.k.conn, p); t.k.conn.Full() && !t.upPaused {
		t.upPaused = true
		t.up.Conn.PauseRead()
	}
	return len(p)
}

// EOF passes the upstream's end of sending on.
func (u *tcpUpstream) EOF() {
	t := (*tcpSession)(u)
	if t.ended {
		return
	}
	t.upEOF = true
	t.k.conn.CloseWrite()
}

// Drained lets the client be read again.
func (u *tcpUpstream) Drained() {
	t := (*tcpSession)(u)
	if t.kPaused && t.upReady && !t.ended {
		t.kPaused = false
		t.k.conn.ResumeRead()
	}
}

// Closed is the end of the upstream connection, or of the attempt to make one.
func (u *tcpUpstream) Closed(error) {
	t := (*tcpSession)(u)
	if t.ended {
		return
	}
	text := t.up.Text
	t.up = nil
	if t.upReady {
		if !t.kEOF || !t.upEOF { // else the client's connection ends by itself, when it has got what waits
			t.finish(failure.None, "")
		}
		return
	}
	if t.attempts < max(t.proxy.Attempts, 1) {
		t.dial()
		return
	}
	t.finish(failure.ConnectFailure, text)
}
