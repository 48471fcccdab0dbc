package listener

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net/netip"
	"net/url"
	"time"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/stream"
	"sallyport/sidecar/upstream"
)

// phase of an accepted connection.
type phase uint8

const (
	inspecting phase = iota // listener filters read the first bytes
	handshaking
	serving
	closed
)

// connection is one accepted connection, from its first byte to its end.
// Owned by its worker; it is the conn.Handler throughout and passes events on
// to what its filter chain says.
type connection struct {
	stream.Connection
	local *workerListener
	conn  *conn.Conn
	cfg   *Config
	chain *Chain
	index int // in local.open
	phase phase

	proxied    bool // the PROXY header was read
	rechecking bool // its requests are to be asked about
	leaving    bool // drains as soon as it is served
	ended      bool // the client ended its sending while it was inspected
	// redirected says that the client meant OriginalDst and knows nothing of this listener, ownDst that OriginalDst is
	// an address of this very listener: who goes on to it comes back here.
	redirected, ownDst bool

	line      requestLine // as far as inspection has read it
	transport string      // "tls" or "raw_buffer", as inspection found
	alpn      []string

	handler conn.Handler // http or tcp once serving
	timer   *loop.Timer  // of the listener filters; nil where there are none
	http    *httpServer
	tcp     *tcpSession
}

func (l *workerListener) accept(c *conn.Conn) {
	k := &connection{conn: c, transport: "raw_buffer"}
	k.Connection = stream.Connection{Worker: l.worker, ID: c.ID(), Remote: c.RemoteAddr(), Direct: c.RemoteAddr(), Local: c.LocalAddr()}
	if l.take(k) {
		c.Start(k)
	}
}

// take makes the connection one of this listener; false where it has too many.
func (l *workerListener) take(k *connection) bool {
	a := l.parent
	cfg := a.cfg.Load()
	if cfg.Connections > 0 && a.connections.Load() >= int64(cfg.Connections) {
		a.stats.At(l.worker.ID()).Inc(statOverflow)
		k.phase = closed
		k.conn.Reset()
		return false
	}
	a.connections.Add(1)
	st := a.stats.At(l.worker.ID())
	st.Inc(statTotal)
	st.Add(statActive, 1)
	k.conn.SetLimit(inspectLimit(cfg.BufferLimit))
	k.local, k.cfg, k.Listener = l, cfg, cfg.Name
	k.index = len(l.open)
	l.open = append(l.open, k)
	return true
}

// leave is the end of take.
func (l *workerListener) leave(k *connection) {
	st := l.parent.stats.At(l.worker.ID())
	st.Add(statActive, -1)
	st.Inc(statDestroy)
	l.parent.connections.Add(-1)
	l.remove(k)
}

// Connected is called at once by Start, and again when a TLS handshake is done.
func (k *connection) Connected() {
	switch k.phase {
	case inspecting:
		if k.cfg.OriginalDst && !k.restore() {
			return
		}
		if !k.cfg.inspects() {
			k.choose()
			return
		}
		if k.cfg.FilterTime > 0 {
			k.inspectFor(k.cfg.FilterTime)
		}
	case handshaking:
		k.Connection.TLS = k.conn.TLS()
		k.peer()
		k.serve()
	}
}

// restore finds out where the client meant to go, and hands the connection over
// to the listener of that address where there is one. false: it was refused.
//
// Who connects to this listener itself stays with it, as with Envoy, which finds
// the listener of an address before that of any address.
func (k *connection) restore() bool {
	dst, err := k.local.parent.server.origin(k.conn)
	if err != nil {
		if !k.cfg.Transparent {
			return true
		}
		dst = k.Local // TPROXY leaves the packet as it is
	}
	// Under TPROXY the two are always the same, and which port it is makes the difference.
	k.ownDst = sameAddr(dst, k.Local) && k.local.parent.listensAt(dst)
	k.redirected = !k.ownDst
	k.OriginalDst, k.Local = dst, dst
	k.conn.SetLocalAddr(dst)
	if !k.cfg.HandOff || k.ownDst {
		return true
	}
	if l := k.local.virtual.find(dst); l != nil && l != k.local {
		k.local.leave(k)
		return l.take(k)
	}
	return true
}

// sameAddr compares what the kernel calls one address in two ways: IPv4 within IPv6, and with the interface or without.
func sameAddr(a, b netip.AddrPort) bool {
	return a.Port() == b.Port() && a.Addr().Unmap().WithZone("") == b.Addr().Unmap().WithZone("")
}

// Data passes on to whoever reads now. While a filter inspects, nothing is
// consumed but a PROXY header.
func (k *connection) Data(p []byte) int {
	if k.phase == inspecting {
		n := k.inspect(p)
		if k.phase == serving && k.handler != nil {
			// What was looked at is plaintext, and its reader's.
			n += k.handler.Data(p[n:])
		}
		return n
	}
	if k.handler == nil {
		return len(p)
	}
	return k.handler.Data(p)
}

// choose finds the filter chain and starts its transport socket.
func (k *connection) choose() {
	k.chain = k.cfg.match(k)
	if k.chain == nil {
		k.local.count(statNoChain)
		k.conn.Close()
		return
	}
	if k.ended && k.chain.TLS != nil {
		k.conn.Close() // no handshake ends well without the client's second flight (RFC 8446 §2)
		return
	}
	k.Chain = k.chain.Name
	k.conn.SetLimit(k.cfg.BufferLimit)
	k.BufferLimit = k.cfg.BufferLimit
	if o := k.cfg.OriginalSrc; o != nil && k.Remote.IsValid() {
		from := netip.AddrPortFrom(k.Remote.Addr().Unmap(), 0)
		if o.BindPort {
			from = netip.AddrPortFrom(from.Addr(), k.Remote.Port())
		}
		k.Source = &upstream.Source{Addr: from, Mark: o.Mark}
	}
	k.phase = handshaking
	if k.chain.TLS == nil {
		k.serve()
		return
	}
	cfg, err := k.chain.TLS.ServerConfig()
	if err != nil {
		// No certificate, or an expired one: fail closed.
		k.local.count(statTLSFail)
		k.local.parent.server.limitedLog("TLS is not available; connection closed", "listener", k.cfg.Name, "chain", k.chain.Name, "error", err)
		k.conn.Close()
		return
	}
	k.conn.SetHandshakeTimeout(k.chain.Handshake)
	k.conn.StartTLSServer(cfg)
}

// serve begins the chain's last filter, if the ones before it allow the connection.
func (k *connection) serve() {
	k.phase = serving
	if !k.allowed() {
		return
	}
	if k.chain.HTTP != nil {
		if k.ownDst && !k.cfg.Transparent {
			// An ORIGINAL_DST cluster would lead each request here again, and again, until no file descriptor is left.
			// Under TPROXY it must have the address, to which it gives the application's port (upstream_port_override).
			k.OriginalDst = netip.AddrPort{}
		}
		k.http = newHTTPServer(k)
		k.handler = k.http
	} else {
		k.tcp = newTCPSession(k)
		k.handler = k.tcp
	}
	if k.handler.Connected(); k.leaving {
		k.drain()
	}
}

// allowed asks the network filters and closes the connection where one says no.
func (k *connection) allowed() bool {
	for _, f := range k.chain.Network {
		if ok, detail := f.Allow(&k.Connection); !ok {
			k.local.count(statDenied)
			k.local.parent.server.limitedLog("connection denied", "listener", k.cfg.Name, "remote", k.Remote, "peer", k.Principal(), "detail", detail)
			k.conn.Close()
			return false
		}
	}
	return true
}

// reconsider applies a new configuration of the listener to an open connection:
// it goes on under the new version of its filter chain, if there is one, and
// drains otherwise. A connection that a new policy forbids is closed. One that is
// still inspected gets its chain of the new ones, at once if they ask for nothing:
// its client may be silent.
func (k *connection) reconsider(cfg *Config) {
	defer k.Worker.Guard(k.conn) // one of many that the caller tells
	if k.phase == closed {
		return
	}
	k.cfg = cfg
	if k.phase == inspecting {
		if !cfg.inspects() {
			k.decide()
		}
		return
	}
	next := cfg.same(k.chain)
	if next == nil {
		if k.phase == handshaking {
			k.conn.Close() // what it would agree on is not to be agreed on any more
			return
		}
		k.drain()
		return
	}
	k.chain = next
	if k.phase == serving && k.allowed() && k.http != nil && next.HTTP.Rechecks() {
		k.local.recheck.add(k)
	}
}

// drain ends the connection when what is under way on it is done: the first request of one that is inspected or shakes hands, too.
func (k *connection) drain() {
	defer k.Worker.Guard(k.conn) // one of many, too
	switch {
	case k.http != nil:
		k.http.drain()
	case k.tcp != nil:
		// A TCP connection is under way as long as it is open; it ends by itself, or with the process at the end of --drain-time-s.
	default:
		// Its client came before, and has not said everything yet.
		k.leaving = true
		if k.phase == inspecting {
			k.inspectFor(leaveTime)
		}
	}
}

// leaveTime is how long a client that says nothing has when its listener goes: a round trip.
const leaveTime = 250 * time.Millisecond

// EOF passes on; a connection that ends between inspection and service, in a handshake, is closed.
func (k *connection) EOF() {
	switch {
	case k.phase == inspecting:
		k.cutOff()
	case k.handler == nil:
		k.conn.Close()
	default:
		k.handler.EOF()
	}
}

// Waiting passes on.
func (k *connection) Waiting() {
	if k.http != nil {
		k.http.waiting()
	}
}

// Drained passes on.
func (k *connection) Drained() {
	if k.handler != nil {
		k.handler.Drained()
	}
}

// Closed is the end, whatever its reason.
func (k *connection) Closed(err error) {
	if k.phase == closed {
		return
	}
	st := k.local.parent.stats.At(k.Worker.ID())
	if k.phase == handshaking && k.chain != nil && k.chain.TLS != nil {
		st.Inc(statTLSFail)
		if !errors.Is(err, conn.ErrSilent) { // a health check, every second
			k.local.parent.server.limitedLog("TLS handshake failed", "listener", k.cfg.Name, "remote", k.Remote, "error", err)
		}
	}
	k.phase = closed
	stop(k.timer)
	k.local.leave(k)
	if k.handler != nil {
		k.handler.Closed(err)
	}
}

// peer takes the client's certificate apart, once per connection.
func (k *connection) peer() {
	k.local.count(statHandshake)
	st := k.Connection.TLS
	if st == nil {
		return
	}
	if k.SNI == "" {
		k.SNI = st.ServerName
	}
	if len(st.PeerCertificates) == 0 {
		return
	}
	leaf := st.PeerCertificates[0]
	sum := sha256.Sum256(leaf.Raw)
	p := &stream.Peer{Cert: leaf, DNS: leaf.DNSNames, Subject: leaf.Subject.String(), Hash: hex.EncodeToString(sum[:])}
	for _, u := range leaf.URIs {
		p.URI = append(p.URI, u.String())
	}
	if named, ok := k.chain.TLS.(interface{ LocalURI() string }); ok {
		p.LocalURI = named.LocalURI()
	}
	if m := k.chain.HTTP; m != nil && (m.CertDetails.Cert || m.CertDetails.Chain) {
		p.PEM = encodeCerts(st.PeerCertificates[:1])
		p.ChainPEM = encodeCerts(st.PeerCertificates)
	}
	k.Peer = p
}

// encodeCerts is the URL-encoded PEM of x-forwarded-client-cert.
func encodeCerts(certs []*x509.Certificate) string {
	var b []byte
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return url.PathEscape(string(b))
}

// destination is where the client meant to go: the original destination, or the socket's own.
func (k *connection) destination() netip.AddrPort {
	if k.OriginalDst.IsValid() {
		return k.OriginalDst
	}
	return k.Local
}
