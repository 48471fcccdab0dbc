package jwtauthn

import (
	"hash/maphash"
	"sync/atomic"
)

// cache remembers tokens whose signature was found good, so that in the steady
// state a token costs a hash and a comparison. It belongs to one provider's
// keys: an update makes a new one. What changes with time (exp, nbf) and what
// depends on the rule (audiences) is checked at each use, never cached.
//
// It is a table of fixed size with two places for each token; the newer entry
// replaces the older. All workers use it without a lock.
type cache struct {
	seed  maphash.Seed
	slots [cacheSlots]atomic.Pointer[token]
}

const (
	cacheSlots = 1024 // a power of two
	// maxCached bounds what one entry may keep alive, so that a cache stays under about 16 MiB.
	maxCached = 4 << 10
)

func newCache() *cache { return &cache{seed: maphash.MakeSeed()} }

// get returns the verified token with that text, or nil. The whole text is
// compared: a collision of hashes finds nothing.
func (c *cache) get(raw []byte) *token {
	a, b := c.places(maphash.Bytes(c.seed, raw))
	if t := a.Load(); t != nil && t.raw == string(raw) {
		return t
	}
	if t := b.Load(); t != nil && t.raw == string(raw) {
		return t
	}
	return nil
}

func (c *cache) put(t *token) {
	if len(t.raw) > maxCached {
		return
	}
	a, b := c.places(maphash.String(c.seed, t.raw))
	b.Store(a.Swap(t))
}

func (c *cache) places(h uint64) (a, b *atomic.Pointer[token]) {
	i := h % cacheSlots
	return &c.slots[i], &c.slots[i^1]
}
