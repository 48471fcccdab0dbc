package issuer

import (
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/peer"

	"sallyport/certs/peercred"
)

// limiter admits per key a burst and then one per interval (GCRA: one time per key, no timers). Safe for concurrent use.
type limiter struct {
	interval time.Duration
	burst    int
	max      int // keys

	mu  sync.Mutex
	due map[string]time.Time // the time at which the key's bucket is full again
}

func newLimiter(interval time.Duration, burst, maxKeys int) *limiter {
	return &limiter{interval: interval, burst: burst, max: maxKeys, due: make(map[string]time.Time)}
}

// ready reports whether take would succeed, and takes nothing.
func (l *limiter) ready(key string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fits(l.due[key], now)
}

func (l *limiter) fits(due, now time.Time) bool {
	return due.Sub(now) <= time.Duration(l.burst-1)*l.interval
}

func (l *limiter) take(key string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	due, known := l.due[key]
	if !l.fits(due, now) {
		return false
	}
	if !known && len(l.due) >= l.max {
		l.evict(now)
	}
	if due.Before(now) {
		due = now
	}
	l.due[key] = due.Add(l.interval)
	return true
}

// evict forgets every key whose bucket is full, and if there is none, any one: an attacker with very many addresses
// gets more tries, but no memory, and honest newcomers are not shut out.
func (l *limiter) evict(now time.Time) {
	for key, due := range l.due {
		if !due.After(now) {
			delete(l.due, key)
		}
	}
	for key := range l.due {
		if len(l.due) < l.max {
			return
		}
		delete(l.due, key)
	}
}

// limitKey is what a caller is counted by: address, or user of a socket. An IPv6 host owns a /64, so that counts as one.
func limitKey(p *peer.Peer) string {
	if info, ok := p.AuthInfo.(peercred.Info); ok {
		return "uid " + strconv.FormatUint(uint64(info.UID), 10)
	}
	if p.Addr == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	addr = addr.Unmap()
	if addr.Is6() {
		if prefix, err := addr.WithZone("").Prefix(64); err == nil {
			return prefix.String()
		}
	}
	return addr.String()
}
