package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sallyport/integration/bench/load"
)

// soakCommand has our proxies under full load for a long time and looks at what they hold.
func soakCommand(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("bench soak", flag.ContinueOnError)
	length := fs.Duration("for", 10*time.Minute, "how long")
	ours := oursFlag(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *length < 10*time.Second || *length > 2*time.Hour {
		return fmt.Errorf("-for %v: must be from 10s to 2h", *length)
	}
	b, err := newBench(*ours)
	if err != nil {
		return err
	}
	defer b.close()
	wrong, err := b.soak(ctx, os.Stdout, *length)
	if err != nil {
		return err
	}
	for _, w := range wrong {
		fmt.Println("FAIL:", w)
	}
	if len(wrong) > 0 {
		return errors.New("the soak failed")
	}
	fmt.Println("PASS: memory, descriptors and goroutines are flat")
	return nil
}

// stage is what runs in a soak: the front has a listener for HTTP, which goes to the back by mutual TLS and HTTP/2, one for
// new mutual-TLS connections, and one for TCP; the back is the sidecar of the application.
type stage struct {
	running
	http, tls, tcp int
}

func (b *bench) stage(ctx context.Context) (_ *stage, err error) {
	var ports [6]int
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	app, err := b.backend("http1-backend")
	if err != nil {
		return nil, err
	}
	sink, err := b.backend("sink")
	if err != nil {
		return nil, err
	}
	s := &stage{http: ports[0], tls: ports[1], tcp: ports[2]}
	front := &bootstrap{pki: b.pki, jwks: b.jwks, admin: ports[4]}
	front.soakFront(s, ports[3], app, sink)
	back := hop{tlsIn: true, listen: ports[3], upstream: app, admin: ports[5]}
	s.hops = []hop{{listen: s.http, admin: ports[4]}, back}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	for i, text := range []string{front.String(), b.envoyYAML(back)} {
		path := filepath.Join(b.dir, fmt.Sprintf("soak-%d.yaml", i))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, err
		}
		p, err := b.start(append(append([]string(nil), b.ours...), "-c", path, "--concurrency", "1"))
		if err != nil {
			return nil, err
		}
		s.processes = append(s.processes, p)
	}
	for i, p := range s.processes {
		if err := p.listens(ctx, s.hops[i].listen); err != nil {
			return nil, err
		}
	}
	return s, s.settle(ctx)
}

// soakFront fills the front's bootstrap.
func (b *bootstrap) soakFront(s *stage, back, app, sink int) {
	b.listener("http", hop{listen: s.http}, `{match: {path: `+load.Flaky+`}, route: {cluster: app}}`)
	b.listener("tls", hop{listen: s.tls, tlsIn: true, to: "app"})
	b.listener("tcp", hop{listen: s.tcp, tcp: true, to: "sink"})
	b.cluster("out", hop{upstream: back, tlsOut: true, h2Out: true})
	b.cluster("app", hop{upstream: app})
	b.cluster("sink", hop{upstream: sink, tcp: true})
}

// loads of a soak; those that break things fail by design.
func (s *stage) loads(pki string) map[string]load.Spec {
	at := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	return map[string]load.Spec{
		"requests":          {Kind: "http1", Address: at(s.http), Path: "/1k", Connections: 32},
		"large":             {Kind: "http1", Address: at(s.http), Path: "/64k", Connections: 4},
		"uploads":           {Kind: "http1", Address: at(s.http), Body: 64 << 10, Connections: 4},
		"HTTP/2 streams":    {Kind: "http2", Address: at(s.http), Path: "/1k", Connections: 2, Streams: 16},
		"new mTLS":          {Kind: "connect", Address: at(s.tls), Connections: 4, PKI: pki},
		"new plain":         {Kind: "connect", Address: at(s.http), Connections: 4},
		"TCP":               {Kind: "send", Address: at(s.tcp), Connections: 2, Body: 16 << 20},
		"failing backend":   {Kind: "http1", Address: at(s.http), Path: load.Flaky, Connections: 4},
		"departing clients": {Kind: "quit", Address: at(s.http), Path: "/1m", Connections: 4},
	}
}

// sample is what both proxies hold at a time.
type sample struct {
	At                                time.Duration
	RSS, Anon, Descriptors, Goroutine float64
}

// held are the figures of a sample that must not grow, each with what is let pass: an amount, or a share of the median.
var held = []struct {
	name   string
	of     func(sample) float64
	amount float64
	share  float64
}{
	{"resident memory, KiB", func(s sample) float64 { return s.RSS }, 4096, 0.05},
	{"anonymous memory, KiB", func(s sample) float64 { return s.Anon }, 4096, 0.05},
	{"descriptors", func(s sample) float64 { return s.Descriptors }, 16, 0.1},
	{"goroutines", func(s sample) float64 { return s.Goroutine }, 16, 0.1},
}

// grown says what of the samples after the first third has a trend upwards.
func grown(samples []sample) (wrong []string) {
	after := samples[len(samples)/3:]
	if len(after) < 8 {
		return []string{fmt.Sprintf("%d samples are too few for a trend", len(after))}
	}
	var x []float64
	for _, s := range after {
		x = append(x, s.At.Seconds())
	}
	span := x[len(x)-1] - x[0]
	for _, h := range held {
		var y []float64
		for _, s := range after {
			y = append(y, h.of(s))
		}
		growth, bound := slope(x, y)*span, max(h.amount, h.share*median(y))
		if growth > bound {
			wrong = append(wrong, fmt.Sprintf("%s grew by %.0f in %.0f s (median %.0f; %.0f is let pass)", h.name, growth, span, median(y), bound))
		}
	}
	return wrong
}

func (s *stage) sample(ctx context.Context, at time.Duration) (one sample, err error) {
	one.At = at
	m, err := s.memory()
	if err != nil {
		return one, err
	}
	one.RSS, one.Anon = float64(m.rss), float64(m.anon)
	for i, p := range s.processes {
		n, err := p.descriptors()
		if err != nil {
			return one, err
		}
		one.Descriptors += float64(n)
		text, err := s.hops[i].adminPage(ctx, "/memory")
		if err != nil {
			return one, err
		}
		var page struct{ Goroutines int }
		if err := json.Unmarshal(text, &page); err != nil {
			return one, fmt.Errorf("/memory: %w", err)
		}
		one.Goroutine += float64(page.Goroutines)
	}
	return one, nil
}

func (one sample) print(w io.Writer, note string) {
	fmt.Fprintf(w, "| %s | %.1f | %.1f | %.0f | %.0f | %s |\n", one.At.Round(time.Second), one.RSS/1024, one.Anon/1024, one.Descriptors, one.Goroutine, note)
}

type finished struct {
	name string
	r    load.Result
	err  error
}

// soak returns what was wrong at the end.
func (b *bench) soak(ctx context.Context, w io.Writer, length time.Duration) (wrong []string, err error) {
	s, err := b.stage(ctx)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fmt.Fprintf(w, "| after | resident, MiB | anonymous, MiB | descriptors | goroutines | |\n|---|---|---|---|---|---|\n")
	idle, err := s.sample(ctx, 0)
	if err != nil {
		return nil, err
	}
	idle.print(w, "before the load")
	loads := s.loads(b.pki)
	ended := make(chan finished, len(loads))
	for name, spec := range loads {
		spec.Seconds = length.Seconds()
		go func() {
			r, err := load.Run(ctx, b.self, spec)
			ended <- finished{name, r, err}
		}()
	}
	start := time.Now()
	every := min(max(length/60, 500*time.Millisecond), 10*time.Second)
	tick := time.NewTicker(every)
	defer tick.Stop()
	var samples []sample
	for n := 0; n < len(loads); {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case f := <-ended:
			n++
			if bad := f.unexpected(); bad != "" {
				wrong = append(wrong, bad)
			}
			fmt.Fprintf(os.Stderr, "bench: soak: %s: %d done, %d failed %v\n", f.name, f.r.Done, f.r.Failed, f.r.Errors)
		case <-tick.C:
			if time.Since(start) > length {
				continue // the loads are ending
			}
			one, err := s.sample(ctx, time.Since(start))
			if err != nil {
				return nil, fmt.Errorf("after %v: %w", time.Since(start).Round(time.Second), err)
			}
			one.print(w, "")
			samples = append(samples, one)
		}
	}
	wrong = append(wrong, grown(samples)...)
	last, left, err := s.rest(ctx, time.Since(start), idle)
	if err != nil {
		return nil, err
	}
	last.print(w, "after the load")
	return append(wrong, left...), nil
}

// unexpected says what of a load must not have happened.
func (f finished) unexpected() string {
	switch {
	case f.err != nil:
		return fmt.Sprintf("%s: %v", f.name, f.err)
	case f.r.Done == 0:
		return fmt.Sprintf("%s: nothing was done: %v", f.name, f.r.Errors)
	case f.r.Failed > 0 && f.name != "failing backend":
		return fmt.Sprintf("%s: %d failures: %v", f.name, f.r.Failed, f.r.Errors)
	}
	return ""
}

// rest waits until the clients' connections and streams are gone from the proxies, as they are from the clients, and
// returns what is left after half a minute.
func (s *stage) rest(ctx context.Context, at time.Duration, idle sample) (last sample, wrong []string, err error) {
	for end := time.Now().Add(30 * time.Second); ; {
		wrong = nil
		for i, h := range s.hops {
			text, err := h.adminPage(ctx, "/stats")
			if err != nil {
				return last, nil, err
			}
			// The connections between the two proxies stay, and those to the application.
			wrong = append(wrong, active(string(text), []string{"front", "back"}[i], i == 0)...)
		}
		if last, err = s.sample(ctx, at); err != nil {
			return last, nil, err
		}
		if last.Goroutine > idle.Goroutine+16 {
			wrong = append(wrong, fmt.Sprintf("%.0f goroutines are left, %.0f were there before", last.Goroutine, idle.Goroutine))
		}
		if len(wrong) == 0 || time.Now().After(end) {
			return last, wrong, nil
		}
		select {
		case <-ctx.Done():
			return last, nil, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// active lists the gauges of requests under way, and of clients' connections where asked, that are not 0.
func active(stats, who string, connections bool) (wrong []string) {
	suffixes := []string{".downstream_rq_active", ".upstream_rq_active", ".upstream_rq_pending_active"}
	if connections {
		suffixes = append(suffixes, ".downstream_cx_active")
	}
	seen := 0
	for line := range strings.Lines(stats) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		for _, suffix := range suffixes {
			if !strings.HasSuffix(name, suffix) {
				continue
			}
			seen++
			// As a signed number: a gauge that was counted down too often shows, too.
			n, err := strconv.ParseFloat(value, 64)
			if err != nil || n != 0 || math.IsNaN(n) {
				wrong = append(wrong, fmt.Sprintf("%s: %s is %s when the clients are gone", who, name, value))
			}
		}
	}
	if seen == 0 {
		wrong = append(wrong, who+": /stats has no gauge of what is active")
	}
	return wrong
}
