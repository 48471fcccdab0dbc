package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"sallyport/integration/bench/load"
)

// figure is one thing that a scenario measures.
type figure struct {
	name   string // with its unit
	value  float64
	higher bool // is better; else lower is
	plain  bool // not to be compared
}

// scenario is a configuration, a traffic through it, and what is measured meanwhile.
type scenario struct {
	name, what string
	backend    string
	// hops for a peer; their ports are chosen at each start.
	hops    func(peer string) []hop
	traffic load.Spec
	measure func(context.Context, *bench, *running, load.Spec) ([]figure, load.Result, error)
	// alone: there is nothing like it to be read in the peers.
	alone bool
	env   []string // of ours
}

func one(h hop) func(string) []hop { return func(string) []hop { return []hop{h} } }

// pair is what a mesh does: application, sidecar, mutual TLS with HTTP/2, sidecar, application. nginx speaks HTTP/1.1 to
// backends, so its hop is that, unless it is gRPC.
func pair(h hop) func(string) []hop {
	return func(peer string) []hop {
		a, b := h, h
		a.tlsOut, b.tlsIn = true, true
		a.h2Out = peer != "nginx" || h.grpc
		b.h2In = h.grpc
		return []hop{a, b}
	}
}

// scenarios in the order in which they are printed.
var scenarios = func() []scenario {
	all := []scenario{
		{name: "http1-c1", what: "HTTP/1.1, one proxy, 1 connection", hops: one(hop{}), traffic: http1("/", 1)},
		{name: "http1", what: "HTTP/1.1, one proxy, 32 connections", hops: one(hop{}), traffic: http1("/", 32)},
		{name: "pair", what: "HTTP/1.1 through two sidecars, mTLS between, 32 connections", hops: pair(hop{}), traffic: http1("/", 32)},
	}
	for _, size := range []string{"1k", "64k", "1m"} {
		h := hop{large: size != "1k"}
		all = append(all,
			scenario{name: "http1-" + size, what: "response bodies of " + size + ", one proxy, 32 connections", hops: one(h), traffic: http1("/"+size, 32)},
			scenario{name: "pair-" + size, what: "response bodies of " + size + ", two sidecars, 32 connections", hops: pair(h), traffic: http1("/"+size, 32)})
	}
	upload := http1("/", 32)
	upload.Body = 64 << 10
	all = append(all,
		scenario{name: "http1-up-64k", what: "request bodies of 64k, one proxy, 32 connections", hops: one(hop{large: true}), traffic: upload},
		scenario{name: "pair-up-64k", what: "request bodies of 64k, two sidecars, 32 connections", hops: pair(hop{large: true}), traffic: upload},
		scenario{name: "h2", what: "HTTP/2, one proxy, 4 connections of 32 streams, 1k", backend: "http2-backend", hops: one(hop{h2In: true, h2Out: true}),
			traffic: load.Spec{Kind: "http2", Connections: 4, Streams: 32}},
		scenario{name: "h2-pair", what: "HTTP/2 through two sidecars, 4 x 32, 1k", backend: "http2-backend", hops: h2Pair,
			traffic: load.Spec{Kind: "http2", Connections: 4, Streams: 32}})
	for _, g := range [][2]string{{"unary", "calls, 4 x 32 at once"}, {"server", "messages of server streams, 4 x 8"}, {"bidi", "messages there and back, 4 x 32 streams"}} {
		t := load.Spec{Kind: "grpc-" + g[0], Connections: 4, Streams: 32}
		if g[0] == "server" {
			t.Streams = 8
		}
		h := hop{h2In: true, h2Out: true, grpc: true}
		all = append(all,
			scenario{name: "grpc-" + g[0], what: "gRPC " + g[1] + ", 1k each, one proxy", backend: "grpc-backend", hops: one(h), traffic: t},
			scenario{name: "grpc-" + g[0] + "-pair", what: "gRPC " + g[1] + ", 1k each, two sidecars", backend: "grpc-backend", hops: pair(h), traffic: t})
	}
	rate := http1("/", 64)
	rate.Kind, rate.Rate = "latency", 5000
	conns := load.Spec{Kind: "connect", Connections: 8, PKI: "pki"}
	all = append(all,
		scenario{name: "filters", what: "JWT, RBAC, local rate limit and CORS on, 32 connections, 1k", hops: one(hop{filters: true}), traffic: http1("/1k", 32)},
		scenario{name: "workers2", what: "HTTP/1.1, one proxy of 2 workers, 64 connections", hops: one(hop{workers: 2}), traffic: http1("/", 64), measure: throughput},
		scenario{name: "workers2-pair", what: "two sidecars of 2 workers each, 64 connections", hops: pair(hop{workers: 2}), traffic: http1("/", 64), measure: throughput},
		scenario{name: "latency", what: "5,000 requests/s sent on time (open loop), one proxy, 64 connections", hops: one(hop{}), traffic: rate, measure: latency},
		scenario{name: "latency-pair", what: "5,000 requests/s sent on time (open loop), two sidecars", hops: pair(hop{}), traffic: rate, measure: latency},
		scenario{name: "conns", what: "new mTLS connections with one GET, 8 at a time", hops: one(hop{tlsIn: true}), traffic: conns},
		scenario{name: "tcp", what: "TCP proxy, one stream", backend: "sink", hops: one(hop{tcp: true}), traffic: load.Spec{Kind: "send", Connections: 1}, measure: bytesPerCPU},
		scenario{name: "tcp-mtls", what: "TCP proxy, mTLS in, one stream", backend: "sink", hops: one(hop{tcp: true, tlsIn: true}),
			traffic: load.Spec{Kind: "send", Connections: 1, PKI: "pki"}, measure: bytesPerCPU},
		scenario{name: "idle", what: "idle keep-alive connections, 2,000 of them", hops: one(hop{}), traffic: load.Spec{Kind: "idle", Connections: 2000, Hold: true}, measure: perIdle},
		scenario{name: "idle-mtls", what: "idle keep-alive mTLS connections, 1,000 of them", hops: one(hop{tlsIn: true}),
			traffic: load.Spec{Kind: "idle", Connections: 1000, Hold: true, PKI: "pki"}, measure: perIdle},
		scenario{name: "rss", what: "resident memory, one listener, no traffic", hops: one(hop{}), measure: resident},
	)
	for _, s := range []scenario{
		{name: "gc-http1", what: "garbage of http1", hops: one(hop{}), traffic: http1("/", 32)},
		{name: "gc-pair", what: "garbage of the sidecar on the client's side of pair", hops: pair(hop{}), traffic: http1("/", 32)},
		{name: "gc-h2", what: "garbage of h2", backend: "http2-backend", hops: one(hop{h2In: true, h2Out: true}), traffic: load.Spec{Kind: "http2", Connections: 4, Streams: 32}},
		{name: "gc-grpc", what: "garbage of grpc-unary", backend: "grpc-backend", hops: one(hop{h2In: true, h2Out: true, grpc: true}),
			traffic: load.Spec{Kind: "grpc-unary", Connections: 4, Streams: 32}},
		{name: "gc-filters", what: "garbage of filters", hops: one(hop{filters: true}), traffic: http1("/1k", 32)},
		{name: "gc-conns", what: "garbage of conns", hops: one(hop{tlsIn: true}), traffic: conns},
	} {
		s.alone, s.measure, s.env = true, garbage, []string{"GODEBUG=gctrace=1"}
		all = append(all, s)
	}
	for i := range all {
		if all[i].backend == "" {
			all[i].backend = "http1-backend"
		}
		if all[i].measure == nil {
			all[i].measure = perRequest
		}
	}
	return all
}()

func http1(path string, connections int) load.Spec {
	return load.Spec{Kind: "http1", Path: path, Connections: connections}
}

func h2Pair(string) []hop {
	return []hop{{h2In: true, h2Out: true, tlsOut: true}, {h2In: true, tlsIn: true, h2Out: true}}
}

// round is one measurement of one peer; figs is nil where the peer has no such thing.
func (b *bench) round(ctx context.Context, s scenario, peer string) (figs []figure, r load.Result, err error) {
	port, err := b.backend(s.backend)
	if err != nil {
		return nil, r, err
	}
	hops := s.hops(peer)
	hops[len(hops)-1].upstream = port
	b.env = s.env
	run, err := b.run(ctx, peer, hops...)
	if run == nil || err != nil {
		return nil, r, err
	}
	defer run.stop()
	t := s.traffic
	t.Address = run.address
	if t.PKI != "" {
		t.PKI = b.pki
	}
	if hops[0].filters {
		t.Fields = append(t.Fields, "Authorization: Bearer "+b.token, "Origin: "+origin)
	}
	return s.measure(ctx, b, run, t)
}

// under has the traffic for so long, and returns what the proxies took meanwhile.
func (b *bench) under(ctx context.Context, r *running, t load.Spec, seconds float64) (time.Duration, load.Result, error) {
	t.Seconds = seconds
	before, err := r.cpu()
	if err != nil {
		return 0, load.Result{}, err
	}
	got, err := load.Run(ctx, b.self, t)
	if err != nil {
		return 0, got, err
	}
	after, err := r.cpu()
	return after - before, got, err
}

// warm is a part of the traffic that is not measured: connections to backends, caches, the heap. Its failures count.
func (b *bench) warm(ctx context.Context, r *running, t load.Spec) (load.Result, error) {
	_, got, err := b.under(ctx, r, t, max(b.seconds/4, 0.1))
	return got, err
}

// warmed is under after warm.
func (b *bench) warmed(ctx context.Context, r *running, t load.Spec) (time.Duration, load.Result, error) {
	first, err := b.warm(ctx, r, t)
	if err != nil {
		return 0, first, err
	}
	spent, got, err := b.under(ctx, r, t, b.seconds)
	return spent, withFailures(got, first), err
}

// withFailures adds those of another run.
func withFailures(r, other load.Result) load.Result {
	r.Failed += other.Failed
	for why, n := range other.Errors {
		if r.Errors == nil {
			r.Errors = map[string]int{}
		}
		r.Errors[why] += n
	}
	return r
}

func micros(spent time.Duration, n int64) float64 {
	return float64(spent.Nanoseconds()) / 1e3 / float64(max(n, 1))
}

func perRequest(ctx context.Context, b *bench, r *running, t load.Spec) ([]figure, load.Result, error) {
	spent, got, err := b.warmed(ctx, r, t)
	return []figure{{name: "CPU, µs", value: micros(spent, got.Done)}}, got, err
}

func throughput(ctx context.Context, b *bench, r *running, t load.Spec) ([]figure, load.Result, error) {
	spent, got, err := b.warmed(ctx, r, t)
	return []figure{{name: "CPU, µs", value: micros(spent, got.Done)}, {name: "requests/s", value: float64(got.Done) / b.seconds, higher: true}}, got, err
}

func latency(ctx context.Context, b *bench, r *running, t load.Spec) ([]figure, load.Result, error) {
	spent, got, err := b.warmed(ctx, r, t)
	if err != nil || got.Latency == nil {
		return nil, got, err
	}
	ms := func(ns int64) float64 { return float64(ns) / 1e6 }
	l := got.Latency
	return []figure{{name: "p50, ms", value: ms(l.P50)}, {name: "p99, ms", value: ms(l.P99)}, {name: "p99.9, ms", value: ms(l.P999)}, {name: "max, ms", value: ms(l.Max)},
		{name: "of p99 the generator's, ms", value: ms(l.Lag), plain: true}, {name: "CPU, µs", value: micros(spent, got.Done)}}, got, nil
}

func bytesPerCPU(ctx context.Context, b *bench, r *running, t load.Spec) ([]figure, load.Result, error) {
	spent, got, err := b.warmed(ctx, r, t)
	return []figure{{name: "GB per CPU-second", value: float64(got.Bytes) / 1e9 / max(spent.Seconds(), 1e-3), higher: true}}, got, err
}

// resident is what a proxy that does nothing holds.
func resident(_ context.Context, _ *bench, r *running, _ load.Spec) ([]figure, load.Result, error) {
	m, err := r.memory()
	return []figure{{name: "resident, MiB", value: float64(m.rss) / 1024}, {name: "of it anonymous, MiB", value: float64(m.anon) / 1024}}, load.Result{}, err
}

// perIdle is what a connection that waits holds.
func perIdle(ctx context.Context, b *bench, r *running, t load.Spec) ([]figure, load.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var got load.Result
	before, err := r.memory()
	if err != nil {
		return nil, got, err
	}
	t.Seconds = 120
	cmd := load.Command(ctx, b.self, t)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, got, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, got, err
	}
	if err := cmd.Start(); err != nil {
		return nil, got, err
	}
	defer func() {
		stdin.Close()
		_ = cmd.Wait() // its report came before
	}()
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		return nil, got, fmt.Errorf("idle: no report: %w", err)
	}
	if err := json.Unmarshal(line, &got); err != nil {
		return nil, got, err
	}
	// What the handshakes left behind is collected and given back in the two seconds after, where a peer does that.
	select {
	case <-ctx.Done():
		return nil, got, ctx.Err()
	case <-time.After(2 * time.Second):
	}
	after, err := r.memory()
	return []figure{{name: "KiB per connection", value: float64(after.rss-before.rss) / float64(max(got.Done, 1))}}, got, err
}
