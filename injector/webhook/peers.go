package webhook

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// newTime is for how long a new connection is not idle: a handshake is a matter of milliseconds.
const newTime = time.Second

// peers is a listener whose connections are shared among the addresses that connect: one gets a part of them, and where
// there are no more, who has most gives up one that is not in the middle of a request. An API server has one or two that
// last, as HTTP/2 carries all of its reviews on one, so it is the last to lose any, and comes again if it does. Only when
// it begins it connects for every review that waits. Even where others are behind its address (NAT, a konnectivity agent)
// it gets in, in place of whoever was silent for the longest time. Safe for concurrent use.
type peers struct {
	net.Listener
	total, each int

	mu     sync.Mutex
	change sync.Cond // a connection has ended or become idle, or the listener was closed
	closed bool
	n      int
	byAddr map[netip.Addr]*peer
}

// peer is an address with connections. Guarded by peers.mu, but for room.
type peer struct {
	conns map[*peerConn]struct{}
	room  *room
}

type peerConn struct {
	net.Conn
	of   *peers
	addr netip.Addr
	peer *peer

	// Guarded by peers.mu.
	busy  bool      // there is a request on it
	used  bool      // it has come as far as a request
	since time.Time // of what it is now: new, busy or idle
	gone  bool
}

func newPeers(l net.Listener, total, each int) *peers {
	p := &peers{Listener: l, total: total, each: each, byAddr: map[netip.Addr]*peer{}}
	p.change.L = &p.mu
	return p
}

// Accept drops connections of peers that have all they get, with requests on each.
func (p *peers) Accept() (net.Conn, error) {
	for {
		c, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if pc := p.admit(c); pc != nil {
			return pc, nil
		}
		c.Close()
	}
}

// admit makes room for a connection, for which it waits where all are busy that do not belong to its own peer. nil: there
// is none.
func (p *peers) admit(c net.Conn) *peerConn {
	addr := addrOf(c)
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		own := p.byAddr[addr]
		switch {
		case p.closed:
			return nil
		case own != nil && len(own.conns) >= p.each:
			c := own.oldestIdle(newTime)
			if c == nil {
				return nil
			}
			p.drop(c)
		case p.n >= p.total:
			if c := p.oldestOfMost(); c != nil {
				p.drop(c)
			} else {
				p.change.Wait()
			}
		default:
			return p.add(c, addr)
		}
	}
}

func (p *peers) add(c net.Conn, addr netip.Addr) *peerConn {
	own := p.byAddr[addr]
	if own == nil {
		own = &peer{conns: map[*peerConn]struct{}{}, room: newPeerRoom()}
		p.byAddr[addr] = own
	}
	pc := &peerConn{Conn: c, of: p, addr: addr, peer: own, since: time.Now()}
	own.conns[pc] = struct{}{}
	p.n++
	return pc
}

// oldestOfMost is a connection to drop of the peer that has most; nil where all are busy.
func (p *peers) oldestOfMost() (oldest *peerConn) {
	most := 0
	for _, one := range p.byAddr {
		if len(one.conns) > most {
			if c := one.oldestIdle(0); c != nil {
				most, oldest = len(one.conns), c
			}
		}
	}
	return oldest
}

// oldestIdle is the connection on which nothing has gone on for the longest time; new ones count after newTime.
func (p *peer) oldestIdle(newTime time.Duration) (oldest *peerConn) {
	for c := range p.conns {
		idle := !c.busy && (c.used || time.Since(c.since) >= newTime)
		if idle && (oldest == nil || c.since.Before(oldest.since)) {
			oldest = c
		}
	}
	return oldest
}

func (p *peers) drop(c *peerConn) {
	p.forget(c)
	c.Conn.Close()
}

// forget counts a connection out, once.
func (p *peers) forget(c *peerConn) {
	if c.gone {
		return
	}
	c.gone = true
	delete(c.peer.conns, c)
	if len(c.peer.conns) == 0 {
		delete(p.byAddr, c.addr)
	}
	p.n--
	p.change.Broadcast()
}

// Close ends Accept also where it waits for room.
func (p *peers) Close() error {
	p.mu.Lock()
	p.closed = true
	p.change.Broadcast()
	p.mu.Unlock()
	return p.Listener.Close()
}

// Close counts the connection out.
func (c *peerConn) Close() error {
	err := c.Conn.Close()
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.of.forget(c)
	return err
}

// serve has a server tell which connections are busy, and its requests what room their peer has.
func (p *peers) serve(s *http.Server) {
	s.ConnState = func(c net.Conn, state http.ConnState) {
		if pc := peerConnOf(c); pc != nil {
			pc.set(state)
		}
	}
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if pc := peerConnOf(c); pc != nil {
			return withRoom(ctx, pc.peer.room)
		}
		return ctx
	}
}

func (c *peerConn) set(state http.ConnState) {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.busy = state == http.StateActive
	if state == http.StateActive || state == http.StateIdle {
		c.used, c.since = true, time.Now()
	}
	if !c.busy {
		c.of.change.Broadcast()
	}
}

func peerConnOf(c net.Conn) *peerConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	pc, _ := c.(*peerConn)
	return pc
}

func addrOf(c net.Conn) netip.Addr {
	a, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // of a listener that is not TCP's all are one peer
	return a.Addr().Unmap()
}
