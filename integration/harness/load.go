package harness

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

// Load calls something at a fixed rate and counts what failed. It is open: a slow answer does not slow the rate, until
// all workers are busy, which is counted as Late.
type Load struct {
	t       testing.TB
	call    func(context.Context) error
	rate    int
	workers int
	life    time.Duration

	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	report Report
	first  chan struct{} // closed after the first success
}

// Report is what a load saw.
type Report struct {
	Sent, Failed, Late int
	Errors             map[string]int
	Worst              time.Duration
	Took               time.Duration
}

// String is the report in one line.
func (r Report) String() string {
	var kinds []string
	for e, n := range r.Errors {
		kinds = append(kinds, fmt.Sprintf("%d× %s", n, e))
	}
	sort.Strings(kinds)
	return fmt.Sprintf("%d sent in %v, %d failed, %d late, worst %v %s", r.Sent, r.Took.Round(time.Millisecond), r.Failed, r.Late,
		r.Worst.Round(time.Millisecond), strings.Join(kinds, "; "))
}

// NewLoad prepares a load of call: 100 a second by 32 workers, for two minutes at most.
func NewLoad(t testing.TB, call func(context.Context) error) *Load {
	return &Load{t: t, call: call, rate: 100, workers: 32, life: 2 * time.Minute, done: make(chan struct{}), first: make(chan struct{})}
}

// Rate sets the calls per second.
func (l *Load) Rate(n int) *Load { l.rate = n; return l }

// Life bounds the load in time.
func (l *Load) Life(d time.Duration) *Load { l.life = d; return l }

// Start starts the load and waits for the first success.
func (l *Load) Start() *Load {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), l.life)
	l.cancel = cancel
	l.report.Errors = map[string]int{}
	go l.run(ctx)
	l.t.Cleanup(func() { l.cancel(); <-l.done })
	select {
	case <-l.first:
	case <-time.After(patience):
		l.t.Fatalf("load: no call succeeded within %v: %v", patience, l.So())
	}
	return l
}

func (l *Load) run(ctx context.Context) {
	defer close(l.done)
	start := time.Now()
	work := make(chan struct{}, l.workers)
	var busy sync.WaitGroup
	var once sync.Once
	for range l.workers {
		busy.Add(1)
		go func() {
			defer busy.Done()
			for range work {
				// Calls under way are let finish when the load stops, so that stopping never counts as a failure.
				c, cancel := context.WithTimeout(context.Background(), patience)
				began := time.Now()
				err := l.call(c)
				cancel()
				l.count(err, time.Since(began))
				if err == nil {
					once.Do(func() { close(l.first) })
				}
			}
		}()
	}
	tick := time.NewTicker(min(time.Second/time.Duration(l.rate), 10*time.Millisecond))
	defer tick.Stop()
	due := 0
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		for now := int(time.Since(start).Seconds() * float64(l.rate)); due < now; due++ {
			select {
			case work <- struct{}{}:
			default:
				l.mu.Lock()
				l.report.Late++
				l.mu.Unlock()
			}
		}
	}
	close(work)
	busy.Wait()
	l.mu.Lock()
	l.report.Took = time.Since(start)
	l.mu.Unlock()
}

func (l *Load) count(err error, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report.Sent++
	l.report.Worst = max(l.report.Worst, took)
	if err == nil {
		return
	}
	l.report.Failed++
	what := err.Error()
	if len(l.report.Errors) >= 20 {
		what = "(others)"
	}
	l.report.Errors[what]++
}

// So is the report so far.
func (l *Load) So() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.report
	r.Errors = map[string]int{}
	for e, n := range l.report.Errors {
		r.Errors[e] = n
	}
	return r
}

// After waits until n more calls have been made.
func (l *Load) After(n int) *Load {
	l.t.Helper()
	target := l.So().Sent + n
	Eventually(l.t, l.life, fmt.Sprintf("%d more calls", n), func() error {
		if r := l.So(); r.Sent < target {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	return l
}

// Stop ends the load, waits for the calls under way, and returns the report.
func (l *Load) Stop() Report {
	l.cancel()
	<-l.done
	return l.So()
}

// MustNotFail ends the load and fails the test if any call failed.
func (l *Load) MustNotFail() Report {
	l.t.Helper()
	r := l.Stop()
	l.t.Log(r)
	if r.Failed > 0 {
		l.t.Errorf("load: %v", r)
	}
	return r
}

// HTTPCall returns a call for a Load: GET url over kept connections, HTTP/1.1, or HTTP/2 with prior knowledge. Anything
// but 200 is a failure.
func HTTPCall(t testing.TB, url string, h2c bool) func(context.Context) error {
	var protocols http.Protocols
	protocols.SetHTTP1(!h2c)
	protocols.SetUnencryptedHTTP2(h2c)
	transport := &http.Transport{Protocols: &protocols, MaxIdleConnsPerHost: 256, DialContext: (&net.Dialer{Timeout: patience}).DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%d %s", resp.StatusCode, clip(body))
		}
		return nil
	}
}
