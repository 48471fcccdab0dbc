package dns

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// resolvConf is read for each question that is passed on, for a DHCP client may change it.
	resolvConf = "/etc/resolv.conf"
	// stubUpstreams are the servers that systemd-resolved asks (systemd-resolved.service(8)).
	stubUpstreams = "/run/systemd/resolve/resolv.conf"
)

// stub is what is known of a stub resolver of this host, such as systemd-resolved at 127.0.0.53: what is passed on to it
// it asks other servers, and where its user's questions are redirected too they come here, and would go to it again.
type stub struct {
	upstreams string
	log       *slog.Logger

	mu   sync.Mutex
	told time.Time
}

var errLoop = errors.New("the host's own resolver asks by way of this sidecar, which asks it: exclude its user from redirection (sallyport redirect apply --exclude-uids), " +
	"or the servers that it asks (--exclude-outbound-cidrs)")

// tell logs an error, once a minute at most.
func (s *stub) tell(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.told) > time.Minute {
		s.told = now
		s.log.Error("DNS questions go around in circles", "error", err)
	}
}

// resolvers are those that a question is passed on to; forget is to be called once they have answered.
//
// A stub resolver's own questions are known by where they come from. It asks other hosts, so the kernel gives them an
// address of an interface, which redirection leaves as it is; who asks the stub asks from a loopback address. They go to
// the stub's servers where these are known. Where not, one that is on its way to the stub this moment is a loop.
func (l *listener) resolvers(c *Config, from net.Addr, q *dns.Msg) (to []netip.AddrPort, forget func(), err error) {
	to, forget = c.Resolvers, func() {}
	if len(to) == 0 {
		to = hostResolvers(resolvConf)
	}
	if !onLoopback(to) {
		return to, forget, nil
	}
	of := q.Question[0]
	of.Name = strings.ToLower(of.Name)
	if !fromLoopback(from) {
		up := slices.DeleteFunc(hostResolvers(l.stub.upstreams), func(a netip.AddrPort) bool { return a.Addr().IsLoopback() })
		if len(up) > 0 {
			return up, forget, nil
		}
		if l.asked.has(of) {
			return nil, forget, errLoop
		}
	}
	l.asked.add(of, 1)
	return to, func() { l.asked.add(of, -1) }, nil
}

func onLoopback(resolvers []netip.AddrPort) bool {
	return len(resolvers) > 0 && !slices.ContainsFunc(resolvers, func(a netip.AddrPort) bool { return !a.Addr().IsLoopback() })
}

func fromLoopback(a net.Addr) bool {
	at, err := netip.ParseAddrPort(a.String())
	return err == nil && at.Addr().Unmap().IsLoopback()
}

// asked counts the questions that a stub resolver has not answered yet. Safe for concurrent use; bounded by Config.Pending.
type asked struct {
	mu sync.Mutex
	of map[dns.Question]int
}

func (a *asked) has(q dns.Question) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.of[q] > 0
}

func (a *asked) add(q dns.Question, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of == nil {
		a.of = map[dns.Question]int{}
	}
	if a.of[q] += n; a.of[q] == 0 {
		delete(a.of, q)
	}
}

func hostResolvers(file string) (out []netip.AddrPort) {
	c, err := dns.ClientConfigFromFile(file)
	if err != nil {
		return nil
	}
	for _, s := range c.Servers {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	return out
}
