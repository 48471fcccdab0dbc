package ads

import (
	"math/rand/v2"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Bounds of the wait before a refusal is sent again. Some servers answer a refusal with what was refused, at once: without
// a wait both sides would do nothing else.
const (
	refusalBase = 100 * time.Millisecond
	refusalMax  = 5 * time.Second
	// refusalForget is when a type whose resources were refused is as any other again.
	refusalForget = time.Minute
)

// refusals hold answers back. The first refusal of a type is sent at once; the next ones in a row wait, each for longer.
// What has the bytes of what was refused last is not even looked at before that: then it is tried again, for the reason may
// be gone. A response with other bytes is never held: it is used at once, and accepted at once. Owned by Run.
type refusals struct {
	types map[string]*refusal
	timer *time.Timer
}

// refusal is a type of which the last response was refused.
type refusal struct {
	sum  uint64    // of that response
	row  int       // refused responses in a row
	last time.Time // when the last of them was answered
	// answer is held back until due; nil: nothing is.
	answer func() error
	due    time.Time
}

// take gives a response to the sink and has it answered, now or later.
func (c *Client) take(r Response, bad []Refused, answer func([]Refused) error) error {
	if !r.Full && len(r.Resources)+len(r.Removed)+len(bad) == 0 {
		return answer(c.apply(r, nil)) // heartbeats: they say nothing of what was refused
	}
	now := time.Now()
	x := c.refused.types[r.Type]
	if x != nil && x.answer == nil && now.Sub(x.last) > refusalForget {
		delete(c.refused.types, r.Type)
		x = nil
	}
	if x == nil {
		refused := c.apply(r, bad)
		if len(refused) > 0 {
			if c.refused.types == nil {
				c.refused.types = map[string]*refusal{}
			}
			c.refused.types[r.Type] = &refusal{sum: digest(r), row: 1, last: now}
		}
		return answer(refused)
	}
	sum := digest(r)
	again := func() error {
		refused := c.apply(r, bad)
		if len(refused) == 0 {
			delete(c.refused.types, r.Type)
		}
		return answer(refused)
	}
	if sum != x.sum {
		refused := c.apply(r, bad)
		if len(refused) == 0 {
			delete(c.refused.types, r.Type)
			return answer(nil)
		}
		x.sum = sum
		again = func() error { return answer(refused) }
	}
	// The nonce of an answer that is still held is not the last one any more: no server waits for it.
	if x.answer == nil {
		x.due = now.Add(x.wait())
	}
	x.answer = again
	c.refused.schedule(now)
	return nil
}

// wait is how long the next answer is held back. Half of it is chance: many proxies refuse the same resource at once.
func (x *refusal) wait() time.Duration {
	d := refusalMax
	if x.row < 8 { // the shift stays small
		d = min(refusalBase<<(x.row-1), refusalMax)
	}
	return d/2 + time.Duration(rand.Int64N(int64(d/2)))
}

// answerHeld sends the answers that are due.
func (c *Client) answerHeld() error {
	now := time.Now()
	for _, x := range c.refused.types {
		if x.answer == nil || x.due.After(now) {
			continue
		}
		answer := x.answer
		x.answer, x.last = nil, now
		x.row++
		if err := answer(); err != nil {
			return err
		}
	}
	c.refused.schedule(now)
	return nil
}

// flushHeld sends the answer for a type that is held back, if one is: a request with other names carries its nonce, and
// would be taken for it.
func (c *Client) flushHeld(typeURL string) (sent bool, err error) {
	x := c.refused.types[typeURL]
	if x == nil || x.answer == nil {
		return false, nil
	}
	answer := x.answer
	x.answer, x.last = nil, time.Now()
	x.row++
	return true, answer()
}

// drop forgets the answers that are held: their stream has ended.
func (r *refusals) drop() {
	for _, x := range r.types {
		x.answer = nil
	}
}

func (r *refusals) schedule(now time.Time) {
	var next time.Time
	for _, x := range r.types {
		if x.answer != nil && (next.IsZero() || x.due.Before(next)) {
			next = x.due
		}
	}
	switch {
	case next.IsZero():
	case r.timer == nil:
		r.timer = time.NewTimer(next.Sub(now))
	default:
		r.timer.Reset(next.Sub(now))
	}
}

// ready is when answerHeld should be called.
func (r *refusals) ready() <-chan time.Time {
	if r.timer == nil {
		return nil
	}
	return r.timer.C
}

// digest identifies what a response wants, whatever its version and nonce.
func digest(r Response) uint64 {
	var h xxhash.Digest
	h.Reset()
	text := func(s string) {
		_, _ = h.WriteString(s)
		_, _ = h.Write([]byte{0})
	}
	for i := range r.Resources {
		text(r.Resources[i].Name)
		text(r.Resources[i].Body.GetTypeUrl())
		_, _ = h.Write(r.Resources[i].Body.GetValue())
		text("")
	}
	for _, n := range r.Removed {
		text(n)
	}
	return h.Sum64()
}
