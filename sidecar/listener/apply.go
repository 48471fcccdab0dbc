package listener

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"sallyport/sidecar/conn"
)

// Change is an update of the listeners as a whole.
type Change struct {
	Set    []*Config // added or updated; a name occurs once
	Remove []string
}

// BindError says that an address cannot be had from the system. Another process may give it back: it is worth another try.
type BindError struct {
	Listener string
	Address  conn.Address
	Err      error
}

func (e *BindError) Error() string {
	if errors.Is(e.Err, syscall.EADDRINUSE) {
		return fmt.Sprintf("listener %q: %s is in use by another process; stop it or choose another port", e.Listener, e.Address)
	}
	return fmt.Sprintf("listener %q: cannot listen on %s: %v", e.Listener, e.Address, e.Err)
}

func (e *BindError) Unwrap() error { return e.Err }

// DuplicateError says that two listeners would have one address: the kernel would spread its connections over both.
type DuplicateError struct {
	Listener, Other string
	Address         conn.Address
}

func (e *DuplicateError) Error() string {
	return fmt.Sprintf("listener %q has duplicate address %s as listener %q; give one of them another address, or remove the other in the same update",
		e.Listener, e.Address, e.Other)
}

// Conflict is the first address that two listeners cannot both have. As in Envoy these are equal addresses of one
// protocol, whether they are bound or not; a wildcard address is another one than each of those that it covers, and port
// 0 of a listener that binds is a new port each time.
func Conflict(a, b *Config) (conn.Address, bool) {
	if (a.DNS != nil) != (b.DNS != nil) {
		return conn.Address{}, false
	}
	for _, at := range a.claims() {
		if slices.Contains(b.claims(), at) {
			return at, true
		}
	}
	return conn.Address{}, false
}

// claims are the addresses that no other listener may have.
func (c *Config) claims() []conn.Address {
	var out []conn.Address
	for _, a := range c.Addresses {
		if a = plain(a); !c.Bind || a.IsUnix() || a.IP.Port() != 0 {
			out = append(out, a)
		}
	}
	return out
}

// plain is an address in the one form in which it is compared.
func plain(a conn.Address) conn.Address {
	if !a.IsUnix() {
		a.IP = netip.AddrPortFrom(a.IP.Addr().Unmap(), a.IP.Port())
	}
	return a
}

// socketKind is what a socket of a listener is: one of the same kind can go from one listener to another.
type socketKind struct {
	addr                          conn.Address
	v6Only, transparent, freeBind bool
}

func (c *Config) kindOf(a conn.Address) socketKind {
	return socketKind{plain(a), !c.IPv4Compat, c.Transparent, c.FreeBind}
}

func (c *Config) socketOptions() conn.ListenOptions {
	return conn.ListenOptions{ReusePort: true, V6Only: !c.IPv4Compat, Backlog: c.Backlog, Transparent: c.Transparent, FreeBind: c.FreeBind}
}

// bound is an address of a listener that binds.
type bound struct {
	kind socketKind
	at   conn.Address // with the port that the kernel chose for port 0
	// Until the workers have them: the sockets of from, which is the at-th there, or new ones by worker.
	from  *active
	index int
	fds   []int
}

// plan is how a listener of a Change comes into force.
type plan struct {
	cfg     *Config
	old     *active // the version before; nil: new
	same    bool    // its sockets and connections stay
	sockets []bound
	err     error
}

// ApplyAll carries a change out as one transaction: first it decides which of the listeners can be, and opens the sockets
// that are missing; then, on each worker at once, sockets go over to the listeners that have their addresses now, new
// ones open, and what nobody has any more closes. A client that connects meanwhile finds a listener.
//
// It returns an error for each of Set that is refused, nil for the others. What is refused changes nothing: its version
// before serves on, and keeps its addresses. An update whose sockets are the same is in force on open connections with
// the next event of each worker; the connections of one that moved drain, as do those of listeners that are removed.
//
// It is in force when ApplyAll returns, and is not called on a worker.
func (s *Server) ApplyAll(c Change) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	plans := make([]*plan, len(c.Set))
	for i, cfg := range c.Set {
		p := &plan{cfg: cfg, old: s.active[cfg.Name]}
		p.same = p.old != nil && p.old.cfg.Load().Hash == cfg.Hash
		plans[i] = p
	}
	for !s.decide(plans, c.Remove) {
		// Who was refused keeps addresses that another one counted on.
	}
	s.carryOut(plans, c.Remove)
	errs := make([]error, len(plans))
	for i, p := range plans {
		errs[i] = p.err
	}
	return errs
}

// decide refuses the plans that cannot be, and opens the sockets of the others. It answers false where one was refused
// and all must be looked at again. Called with s.mu held.
func (s *Server) decide(plans []*plan, removed []string) bool {
	owner := map[conn.Address]string{}
	var free []*active // whose sockets others may have
	// First those who stay where they are: nobody takes an address from them.
	for name, a := range s.active {
		stays := a.cfg.Load().claims()
		if p := planOf(plans, name); p != nil && p.err == nil {
			if next := p.cfg.claims(); !p.same {
				free = append(free, a)
				stays = slices.DeleteFunc(stays, func(at conn.Address) bool { return !slices.Contains(next, at) })
			}
		} else if p == nil && slices.Contains(removed, name) {
			free = append(free, a)
			stays = nil
		}
		for _, at := range stays {
			owner[at] = name
		}
	}
	settled := true
	for _, p := range plans {
		if p.err == nil && !p.claim(owner) {
			settled = false
		}
	}
	for _, p := range plans {
		if settled && p.err == nil && !p.same {
			settled = s.open(p, free)
		}
	}
	return settled
}

func planOf(plans []*plan, name string) *plan {
	if i := slices.IndexFunc(plans, func(p *plan) bool { return p.cfg.Name == name }); i >= 0 {
		return plans[i]
	}
	return nil
}

// claim makes the plan's listener the owner of its addresses; where another one has one of them, it is refused.
func (p *plan) claim(owner map[conn.Address]string) bool {
	claims := p.cfg.claims()
	for _, at := range claims {
		if other, taken := owner[at]; taken && other != p.cfg.Name {
			p.refuse(&DuplicateError{p.cfg.Name, other, at})
			return false
		}
	}
	for _, at := range claims {
		owner[at] = p.cfg.Name
	}
	return true
}

// refuse ends a plan, and closes what was opened for it.
func (p *plan) refuse(err error) {
	p.err = err
	for i := range p.sockets {
		closeAll(p.sockets[i].fds)
	}
	p.sockets = nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		conn.CloseFD(fd)
	}
}

// open finds the sockets of a plan: those of listeners that give them up, or new ones, as far as it has none from an
// earlier round. Where one cannot be had the plan is refused.
func (s *Server) open(p *plan, free []*active) bool {
	if !p.cfg.Bind {
		return true
	}
	if p.sockets == nil {
		p.sockets = make([]bound, len(p.cfg.Addresses))
	}
	for i, addr := range p.cfg.Addresses {
		b := &p.sockets[i]
		b.kind = p.cfg.kindOf(addr)
		if b.from, b.index = adoptable(free, b.kind); b.from != nil {
			closeAll(b.fds)
			b.fds, b.at = nil, b.from.sockets[b.index].at
			continue
		}
		if b.fds != nil {
			continue
		}
		var err error
		if b.fds, b.at, err = s.bind(p.cfg, addr); err != nil {
			p.refuse(&BindError{p.cfg.Name, addr, err})
			return false
		}
	}
	return true
}

// adoptable looks for sockets of a kind. Two listeners never claim one address, so that nobody else takes them.
func adoptable(free []*active, kind socketKind) (*active, int) {
	for _, a := range free {
		if i := slices.IndexFunc(a.sockets, func(b bound) bool { return b.kind == kind && kind.fixed() }); i >= 0 {
			return a, i
		}
	}
	return nil, 0
}

// fixed says that the address is the same each time.
func (k socketKind) fixed() bool { return k.addr.IsUnix() || k.addr.IP.Port() != 0 }

// bind opens a socket per worker for an address. It is tried without sharing first, so that a port that another process
// has is an error and not silently shared with it.
func (s *Server) bind(cfg *Config, addr conn.Address) (fds []int, at conn.Address, err error) {
	opts := cfg.socketOptions()
	if !addr.IsUnix() && addr.IP.Port() != 0 && !s.Held[addr.IP.Port()] && !s.overlaps(addr) {
		probe := opts
		probe.ReusePort = false
		fd, _, err := conn.ListenFD(addr, probe)
		if err != nil {
			return nil, addr, err
		}
		conn.CloseFD(fd)
	}
	at = addr
	for i := range s.workers {
		if addr.IsUnix() && i > 0 {
			break // a Unix socket has one listening socket; the first worker accepts
		}
		var fd int
		if fd, at, err = conn.ListenFD(at, opts); err != nil {
			return fds, addr, err
		}
		fds = append(fds, fd)
	}
	return fds, at, nil
}

// overlaps says that a socket of this process would be in the way of one that is not shared: at the same address with
// other options, or at one that covers the other.
func (s *Server) overlaps(addr conn.Address) bool {
	for _, a := range s.active {
		for _, b := range a.sockets {
			x, y := plain(b.at).IP, plain(addr).IP
			if !b.at.IsUnix() && x.Port() == y.Port() && (x == y || x.Addr().IsUnspecified() || y.Addr().IsUnspecified()) {
				return true
			}
		}
	}
	return false
}

// carryOut puts what was decided in force. Called with s.mu held.
func (s *Server) carryOut(plans []*plan, removed []string) {
	var gone []*active
	for _, name := range removed {
		if a := s.active[name]; a != nil && planOf(plans, name) == nil {
			gone = append(gone, a)
			delete(s.active, name)
		}
	}
	starting := map[*plan]*active{}
	for _, p := range plans {
		switch {
		case p.err != nil:
		case p.same:
			p.old.cfg.Store(p.cfg)
		default:
			a := s.newActive(p)
			starting[p] = a
			s.active[p.cfg.Name] = a
			if p.old != nil {
				gone = append(gone, p.old)
			}
		}
	}
	s.onWorkers(func(worker int) {
		for p, a := range starting {
			a.locals[worker].listen(p.sockets)
		}
		for _, a := range gone {
			a.locals[worker].close()
		}
		for _, p := range plans {
			if p.err == nil && p.same {
				p.old.locals[worker].reconsider(p.cfg)
			}
		}
	})
	for _, a := range starting {
		for i := range a.sockets {
			a.sockets[i].from, a.sockets[i].fds = nil, nil
		}
	}
}

func (s *Server) newActive(p *plan) *active {
	a := &active{server: s, stats: s.metrics.Set("listener", p.cfg.StatPrefix, stats), sockets: p.sockets}
	a.cfg.Store(p.cfg)
	if !p.cfg.Bind {
		a.addresses = p.cfg.Addresses
	}
	for _, b := range p.sockets {
		a.addresses = append(a.addresses, b.at)
	}
	for i, w := range s.workers {
		a.locals = append(a.locals, &workerListener{parent: a, worker: w, factory: s.factories[i], virtual: s.virtual[i], recheck: s.rechecks[i]})
	}
	return a
}

// onWorkers runs f on each worker and waits for all: a socket that is closed is closed then, and its address free.
func (s *Server) onWorkers(f func(worker int)) {
	var done sync.WaitGroup
	for i, w := range s.workers {
		done.Add(1)
		if !w.Post(func() { defer done.Done(); f(i) }) {
			done.Done() // it has stopped, and closed what it had
		}
	}
	done.Wait()
}

// listen takes the worker's sockets: those of another listener, which the worker has, or new ones.
func (l *workerListener) listen(sockets []bound) {
	worker, cfg := l.worker.ID(), l.parent.cfg.Load()
	if !cfg.Bind {
		for _, a := range cfg.Addresses {
			l.virtual[a.IP] = l
		}
	}
	for i := range sockets {
		b := &sockets[i]
		var sock *conn.Listener
		switch {
		case b.from != nil:
			other := b.from.locals[worker]
			sock, other.sockets[b.index] = other.sockets[b.index], nil
			if sock != nil {
				sock.Accept(l.accept)
				sock.SetBacklog(cfg.Backlog)
			}
		case worker < len(b.fds):
			var err error
			if sock, err = conn.NewListener(l.worker, b.fds[worker], l.accept); err != nil {
				l.parent.server.log.Error("listening socket could not be watched", "listener", cfg.Name, "error", err)
			}
		}
		l.sockets = append(l.sockets, sock) // nil: the worker has none of that address
	}
}

// close stops accepting and drains the connections.
func (l *workerListener) close() {
	for a, v := range l.virtual {
		if v == l {
			delete(l.virtual, a)
		}
	}
	for _, sock := range l.sockets {
		if sock != nil {
			sock.Close()
		}
	}
	l.sockets = nil
	for _, k := range slices.Clone(l.open) {
		k.drain()
	}
}

// reconsider puts a version with the same sockets in force on open connections.
func (l *workerListener) reconsider(cfg *Config) {
	for _, k := range slices.Clone(l.open) {
		k.reconsider(cfg)
	}
}
