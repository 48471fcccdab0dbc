package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// inForce is how long a change may take to get to all proxies.
const inForce = time.Second

// seeLivePolicy keeps one connection open while a policy comes and goes.
func (s *shop) seeLivePolicy(ctx context.Context) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	defer c.close()
	before, err := c.ok(ctx, "/secret")
	if err != nil {
		return "", err
	}
	// until asks on that connection until the answer is that, and says how long it took.
	until := func(status int) (time.Duration, error) {
		begin := time.Now()
		for {
			r, err := c.get(ctx, "/secret")
			took := time.Since(begin)
			switch {
			case err != nil:
				return 0, err
			case r.local != before.local:
				return 0, fmt.Errorf("the connection was closed: %s is now %s", before.local, r.local)
			case r.status == status:
				return took, nil
			case took > inForce:
				return 0, fmt.Errorf("%s after the change: %w; want %d", took.Round(time.Millisecond), r.unexpected(), status)
			}
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(5 * time.Millisecond): // between two requests, not for anything to happen
			}
		}
	}
	file := filepath.Join(s.dir, "policies", "secret.yaml")
	// Written beside and renamed: nobody reads the half of it.
	next := filepath.Join(s.dir, "secret.next")
	if err := os.WriteFile(next, []byte(denySecret), 0o600); err != nil {
		return "", err
	}
	if err := os.Rename(next, file); err != nil {
		return "", err
	}
	denied, err := until(http.StatusForbidden)
	if err != nil {
		return "", errors.Join(err, os.Remove(file))
	}
	if r, err := c.get(ctx, "/"); err != nil || r.status != http.StatusOK {
		return "", errors.Join(errors.New("what the policy does not speak of is refused, too"), err, os.Remove(file))
	}
	if err := os.Remove(file); err != nil {
		return "", err
	}
	allowed, err := until(http.StatusOK)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("on one open %s connection: denied %d ms after the file was written, allowed %d ms after it was removed",
		before.proto, denied.Milliseconds(), allowed.Milliseconds()), nil
}

// seeDeath kills an instance of orders under load. Its sidecar lives on, which
// is the harder case: connections to it still succeed.
func (s *shop) seeDeath(ctx context.Context) (string, error) {
	auth, err := s.bearer("alice", time.Hour)
	if err != nil {
		return "", err
	}
	victim := s.of("orders", "v1")[0]
	l := s.load(ctx, "/api/orders/stable", auth)
	defer l.stop()
	if err := l.until(ctx, func() bool { return l.answered(victim.id) > 20 }); err != nil {
		return "", fmt.Errorf("before the death: %w", err)
	}
	victim.process.kill()
	killed, atDeath := time.Now(), l.answered("")
	left := len(s.of("orders", "v1")) - 1
	for _, e := range s.edges {
		if err := s.waitMembers(ctx, e.process, e.admin, "default/orders~orders-v1", left); err != nil {
			return "", fmt.Errorf("after the death: %w", err)
		}
	}
	out := time.Since(killed)
	if err := l.until(ctx, func() bool { return l.answered("") > atDeath+1000 }); err != nil {
		return "", fmt.Errorf("after the death: %w", err)
	}
	// Back again, and taken in again.
	if err := s.startApp(victim); err != nil {
		return "", err
	}
	before := l.answered(victim.id)
	if err := l.until(ctx, func() bool { return l.answered(victim.id) > before+20 }); err != nil {
		return "", fmt.Errorf("after it came back: %w", err)
	}
	total := l.answered("")
	l.stop()
	if n := l.failed.Load(); n > 0 {
		return "", fmt.Errorf("%d of %d requests failed; the first: %w", n, total+int(n), *l.first.Load())
	}
	return fmt.Sprintf("%s killed under load, out of both edges after %d ms, started again and taken in: %d requests, 0 failed",
		victim.id, out.Milliseconds(), total), nil
}

// load is several clients that ask without a pause.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed atomic.Int64
	first  atomic.Pointer[error]

	mu       sync.Mutex
	answers  int
	instance map[string]int
}

const loadClients = 8

func (s *shop) load(ctx context.Context, path string, fields ...string) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{cancel: cancel, instance: map[string]int{}}
	for range loadClients {
		l.wg.Go(func() {
			c, err := s.client()
			if err != nil {
				l.fail(err)
				return
			}
			defer c.close()
			for ctx.Err() == nil {
				r, err := c.ok(ctx, path, fields...)
				switch {
				case ctx.Err() != nil: // ended by stop
				case err != nil:
					l.fail(err)
				default:
					l.mu.Lock()
					l.answers++
					l.instance[r.Instance]++
					l.mu.Unlock()
				}
			}
		})
	}
	return l
}

func (l *load) fail(err error) {
	l.failed.Add(1)
	l.first.CompareAndSwap(nil, &err)
}

// answered is how many requests an instance answered; all, where it is "".
func (l *load) answered(instance string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if instance == "" {
		return l.answers
	}
	return l.instance[instance]
}

// until waits for enough to have happened.
func (l *load) until(ctx context.Context, enough func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !enough() {
		select {
		case <-ctx.Done():
			l.mu.Lock()
			defer l.mu.Unlock()
			err := fmt.Errorf("it did not happen: %s, %d failed", counted(l.instance), l.failed.Load())
			if first := l.first.Load(); first != nil {
				err = fmt.Errorf("%w; the first: %w", err, *first)
			}
			return err
		case <-tick.C:
		}
	}
	return nil
}

func (l *load) stop() {
	l.cancel()
	l.wg.Wait()
}
