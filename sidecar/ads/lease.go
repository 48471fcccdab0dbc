package ads

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
)

// leases are the resources with a time to live (Resource.ttl): they are in
// force until it is over, unless the control plane renews it.
type leases struct {
	until map[lease]time.Time
	timer *time.Timer
	at    time.Time // when the timer fires
}

type lease struct{ typeURL, name string }

// renew starts a lease anew; without a ttl the resource has none any more.
func (l *leases) renew(typeURL, name string, ttl *durationpb.Duration, now time.Time) {
	k := lease{typeURL, name}
	d := ttl.AsDuration()
	if ttl == nil || d <= 0 {
		delete(l.until, k)
		return
	}
	if l.until == nil {
		l.until = map[lease]time.Time{}
	}
	l.until[k] = now.Add(d)
	l.schedule(now.Add(d), now)
}

func (l *leases) drop(typeURL, name string) { delete(l.until, lease{typeURL, name}) }

func (l *leases) schedule(at, now time.Time) {
	if l.timer != nil && !l.at.IsZero() && !at.Before(l.at) {
		return
	}
	l.at = at
	if l.timer == nil {
		l.timer = time.NewTimer(at.Sub(now))
		return
	}
	l.timer.Reset(at.Sub(now))
}

// due is ready when over should be called.
func (l *leases) due() <-chan time.Time {
	if l.timer == nil {
		return nil
	}
	return l.timer.C
}

// over returns what has run out.
func (l *leases) over(now time.Time) (gone []lease) {
	l.at = time.Time{}
	var next time.Time
	for k, t := range l.until {
		if !t.After(now) {
			gone = append(gone, k)
			delete(l.until, k)
		} else if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	if !next.IsZero() {
		l.schedule(next, now)
	}
	return gone
}
