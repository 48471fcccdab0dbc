package localratelimit

import (
	"math"
	"sync/atomic"
	"time"
)

// bucket is a token bucket that all workers share without a lock. Its state is
// one number: the moment at which it was, or would have been, empty. Tokens
// come evenly, one each interval, as in Envoy; a bucket is full when that
// moment lies a whole burst back. Safe for concurrent use.
type bucket struct {
	max      int64
	interval time.Duration // between two tokens
	burst    time.Duration // max intervals
	base     time.Time
	empty    atomic.Int64 // nanoseconds since base
}

// numbers are what makes a bucket (envoy.type.v3.TokenBucket).
type numbers struct {
	limit, perFill uint32
	fill           time.Duration
}

func (n numbers) bucket(now time.Time) *bucket { return newBucket(n.limit, n.perFill, n.fill, now) }

// newBucket returns a full bucket.
func newBucket(limit uint32, perFill uint32, fill time.Duration, now time.Time) *bucket {
	b := &bucket{max: int64(limit), interval: max(fill/time.Duration(perFill), 1), base: now}
	if b.interval > math.MaxInt64/4/time.Duration(limit) {
		b.interval = math.MaxInt64 / 4 / time.Duration(limit) // decades
	}
	b.burst = b.interval * time.Duration(limit)
	// Long ago: full for any clock, also one that a worker read before this.
	b.empty.Store(math.MinInt64 / 2)
	return b
}

// take takes a token, if there is one.
func (b *bucket) take(now time.Time) bool {
	at := int64(now.Sub(b.base))
	for {
		old := b.empty.Load()
		// What came in while the bucket was full is lost.
		empty := max(old, at-int64(b.burst)) + int64(b.interval)
		if empty > at {
			return false
		}
		if b.empty.CompareAndSwap(old, empty) {
			return true
		}
	}
}

// left is how many tokens there are.
func (b *bucket) left(now time.Time) int64 {
	at := int64(now.Sub(b.base))
	return min(max((at-b.empty.Load())/int64(b.interval), 0), b.max)
}

// wait is how long it takes until there is a token.
func (b *bucket) wait(now time.Time) time.Duration {
	return max(time.Duration(b.empty.Load()+int64(b.interval)-int64(now.Sub(b.base))), 0)
}

// refill is how long it takes until the bucket is full.
func (b *bucket) refill(now time.Time) time.Duration {
	return max(time.Duration(b.empty.Load()+int64(b.burst)-int64(now.Sub(b.base))), 0)
}
