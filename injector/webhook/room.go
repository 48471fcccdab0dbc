package webhook

import (
	"context"
	"net/http"

	"golang.org/x/sync/semaphore"
)

// kind of room, in the order in which a review takes them. Who holds one waits for a later one only, and who has room for
// work waits for nothing but the peer to take the answer, which has a deadline: so no two wait for each other. (Bodies that
// grow are the exception; see steps.)
type kind int

const (
	places kind = iota // one a review, from its beginning to its end
	bodies             // bytes of the buffers, which grow as bodies arrive
	work               // bytes that answering takes, by shape.weight
)

// What there is room for at a time, of all peers and of one. The API server is answered as long as others have taken no
// more than their part.
const (
	maxPlaces, peerPlaces = 1024, 256
	maxBodies, peerBodies = 16 << 20, 6 << 20
	maxWork, peerWork     = 40 << 20, 32 << 20
)

// room is by kind. Safe for concurrent use.
type room [3]*semaphore.Weighted

func newRoom() *room {
	return &room{semaphore.NewWeighted(maxPlaces), semaphore.NewWeighted(maxBodies), semaphore.NewWeighted(maxWork)}
}

func newPeerRoom() *room {
	return &room{semaphore.NewWeighted(peerPlaces), semaphore.NewWeighted(peerBodies), semaphore.NewWeighted(peerWork)}
}

type roomKey struct{}

// withRoom tells the reviews of a connection what room its peer has.
func withRoom(ctx context.Context, r *room) context.Context {
	return context.WithValue(ctx, roomKey{}, r)
}

// claim is what a review holds. Owned by its goroutine.
type claim struct {
	rooms []*room // the peer's first: who has used up its own does not wait in the queue of all
	held  []held
}

type held struct {
	of *semaphore.Weighted
	n  int64
}

func (r *room) claim(ctx context.Context) *claim {
	if peer, ok := ctx.Value(roomKey{}).(*room); ok {
		return &claim{rooms: []*room{peer, r}}
	}
	return &claim{rooms: []*room{r}}
}

var errNoRoom = &badRequest{http.StatusServiceUnavailable, "too many reviews at once"}

// take waits until there is room, or ctx ends.
func (c *claim) take(ctx context.Context, k kind, n int) error {
	for _, r := range c.rooms {
		if r[k].Acquire(ctx, int64(n)) != nil {
			return errNoRoom
		}
		c.held = append(c.held, held{r[k], int64(n)})
	}
	return nil
}

// try does not wait.
func (c *claim) try(k kind, n int) error {
	for _, r := range c.rooms {
		if !r[k].TryAcquire(int64(n)) {
			return errNoRoom
		}
		c.held = append(c.held, held{r[k], int64(n)})
	}
	return nil
}

func (c *claim) release() {
	for _, h := range c.held {
		h.of.Release(h.n)
	}
	c.held = nil
}
