package main

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/integration/bench/load"
	"sallyport/integration/harness"
	"sallyport/sidecar"
)

// The test binary is the process of traffic, too.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "load" {
		os.Exit(load.Main(os.Args[2]))
	}
	os.Exit(harness.Main(m))
}

func TestCPUTimeOfAProcess(t *testing.T) {
	// A name may hold anything, parentheses and spaces too.
	stat := "42 (a) b) (c) S 1 42 42 0 -1 4194304 99 0 0 0 250 50 7 9 20 0 1 0 100 0 0"
	if got, err := parseStat(stat); err != nil || got != 3*time.Second {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "42 (a) S 1", strings.Replace(stat, "250", "x", 1)} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	// The clock of a process, the kernel's file and getrusage(2) count the same.
	for before := time.Now(); time.Since(before) < 50*time.Millisecond; {
		runtime.Gosched()
	}
	clock, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	stated, err := parseStat(string(text))
	if err != nil {
		t.Fatal(err)
	}
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	after, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	used := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	const tick = time.Second / ticks
	if used < clock-tick || used > after+tick || stated < clock-2*tick || stated > after+2*tick {
		t.Errorf("the clock says %v to %v, getrusage %v, /proc/self/stat %v", clock, after, used, stated)
	}
}

func TestMemoryOfAProcess(t *testing.T) {
	m, err := parseStatus("Name:\tx\nVmRSS:\t   36528 kB\nRssAnon:\t    7300 kB\nRssFile:\t 1 kB\n")
	if err != nil || m != (memory{36528, 7300}) {
		t.Errorf("%+v, %v", m, err)
	}
	for _, bad := range []string{"", "VmRSS:\t1 kB\n", "VmRSS:\t1 MB\nRssAnon:\t1 kB\n"} {
		if _, err := parseStatus(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestTheTreeHoldsChildren(t *testing.T) {
	cmd := exec.Command("sh", "-c", "cat; :")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	harness.Eventually(t, 10*time.Second, "the shell's child", func() error {
		if got := tree(cmd.Process.Pid); len(got) != 2 || got[0] != cmd.Process.Pid {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

func TestMedianAndSlope(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median of %v: %v, want %v", c.in, got, c.want)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("there is a median of nothing")
	}
	x := []float64{0, 1, 2, 3, 4, 5, 6}
	if got := slope(x, []float64{1, 3, 5, 900, 9, 11, 13}); got != 2 {
		t.Errorf("a peak moves the slope to %v", got)
	}
	if got := slope([]float64{1, 1}, []float64{1, 2}); got != 0 {
		t.Errorf("slope %v without a distance", got)
	}
}

func TestWhatASoakLetsPass(t *testing.T) {
	samples := func(change func(i int, s *sample)) []sample {
		all := make([]sample, 60)
		for i := range all {
			noise := float64(i * 7919 % 13)
			all[i] = sample{At: time.Duration(i) * time.Second, RSS: 60000 + 50*noise, Anon: 20000 + 40*noise, Descriptors: 120 + noise, Goroutine: 40 + noise/4}
			change(i, &all[i])
		}
		return all
	}
	for _, c := range []struct {
		name   string
		change func(int, *sample)
		want   []string
	}{
		{"flat with noise", func(int, *sample) {}, nil},
		{"growth in the first third is warming up", func(i int, s *sample) { s.RSS += 2000 * float64(min(i, 19)) }, nil},
		{"a peak is no trend", func(i int, s *sample) { s.Descriptors += map[bool]float64{true: 500}[i == 40] }, nil},
		{"memory leaks", func(i int, s *sample) { s.RSS += 200 * float64(i); s.Anon += 200 * float64(i) }, []string{"resident", "anonymous"}},
		{"descriptors leak", func(i int, s *sample) { s.Descriptors += float64(i) }, []string{"descriptors"}},
		{"goroutines leak", func(i int, s *sample) { s.Goroutine += float64(i) }, []string{"goroutines"}},
		{"what falls is no leak", func(i int, s *sample) { s.RSS -= 500 * float64(i) }, nil},
	} {
		got := grown(samples(c.change))
		if len(got) != len(c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
			continue
		}
		for i, w := range c.want {
			if !strings.HasPrefix(got[i], w) {
				t.Errorf("%s: %v, want %v", c.name, got, c.want)
			}
		}
	}
	if len(grown(samples(func(int, *sample) {})[:6])) == 0 {
		t.Error("six samples are enough for a trend")
	}
}

func TestWhatIsLeftActive(t *testing.T) {
	const idle = "http.http.downstream_rq_active: 0\nlistener.x.downstream_cx_active: 3\ncluster.out.upstream_rq_active: 0\n"
	if got := active(idle, "back", false); len(got) != 0 {
		t.Errorf("%v", got)
	}
	if got := active(idle, "front", true); len(got) != 1 || got[0] != "front: listener.x.downstream_cx_active is 3 when the clients are gone" {
		t.Errorf("%v", got)
	}
	if got := active("cluster.out.upstream_rq_active: 18446744073709551615\n", "front", false); len(got) != 1 {
		t.Errorf("counted down below nothing: %v", got)
	}
	if len(active("", "front", true)) == 0 {
		t.Error("a page without gauges passes")
	}
}

func TestFailuresOfTheLoadsOfASoak(t *testing.T) {
	for _, c := range []struct {
		f    finished
		fine bool
	}{
		{finished{name: "requests", r: load.Result{Done: 5}}, true},
		{finished{name: "requests", r: load.Result{Done: 5, Failed: 1}}, false},
		{finished{name: "failing backend", r: load.Result{Done: 5, Failed: 15}}, true},
		{finished{name: "failing backend", r: load.Result{Failed: 15}}, false},
		{finished{name: "requests", err: os.ErrDeadlineExceeded}, false},
	} {
		if got := c.f.unexpected(); (got == "") != c.fine {
			t.Errorf("%+v: %q", c.f, got)
		}
	}
}

func TestTraceOfTheCollector(t *testing.T) {
	p, ok := parseTrace("gc 7 @1.204s 0%: 0.018+0.52+0.003 ms clock, 0.036+0.11/0.4/0+0.006 ms cpu, 7->7->3 MB, 8 MB goal, 0 MB stacks, 0 MB globals, 2 P")
	if !ok || p != [2]float64{0.018, 0.003} {
		t.Errorf("%v %v", p, ok)
	}
	if _, ok := parseTrace("scav 1 KiB work (bg)"); ok {
		t.Error("another line is taken for a cycle")
	}
	h, err := parseHeap("# TYPE go_memstats_mallocs_total counter\ngo_memstats_alloc_bytes_total 1.5e+06\ngo_memstats_mallocs_total 20\n")
	if err != nil || h != (heap{1.5e6, 20}) {
		t.Errorf("%v, %v", h, err)
	}
	if _, err := parseHeap("go_goroutines 3\n"); err == nil {
		t.Error("a page without them passes")
	}
}

func TestRows(t *testing.T) {
	o := outcome{kinds: map[string]figure{}, values: map[string][]float64{}, failed: map[string]int64{}, errors: map[string]map[string]int{}, broken: map[string]string{"nginx": "x"}}
	for _, v := range []float64{30, 10, 20} {
		o.add("envoy", []figure{{name: "CPU, µs", value: 2 * v}, {name: "requests/s", value: 5, higher: true}}, load.Result{})
		o.add("ours", []figure{{name: "CPU, µs", value: v}, {name: "requests/s", value: 10, higher: true}}, load.Result{Failed: 1, Errors: map[string]int{"why": 1}})
	}
	got := o.rows("http1", []string{"envoy", "nginx"})
	want := []string{"| http1 | CPU, µs | 40.0 (20.0–60.0) | error | 20.0 (10.0–30.0) | 0.50 (Envoy) | ours 3 |",
		"|  | requests/s | 5.00 (5.00–5.00) | error | 10.0 (10.0–10.0) | 2.00 (Envoy) |  |"}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
}

func TestChoosingScenarios(t *testing.T) {
	for only, want := range map[string][]string{
		"http1":          {"http1"},
		"pair,conns":     {"pair", "conns"},
		"^latency":       {"latency", "latency-pair"},
		"http1-64k,^tcp": {"http1-64k", "tcp", "tcp-mtls"},
	} {
		chosen, err := choose(scenarios, only)
		var names []string
		for _, s := range chosen {
			names = append(names, s.name)
		}
		if err != nil || !slices.Equal(names, want) {
			t.Errorf("%s: %v %v, want %v", only, names, err, want)
		}
	}
	for _, bad := range []string{"nope", "("} {
		if _, err := choose(scenarios, bad); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
	names := map[string]bool{}
	for _, s := range scenarios {
		if names[s.name] || s.what == "" {
			t.Errorf("%s is there twice, or does not say what it is", s.name)
		}
		names[s.name] = true
	}
	for _, p := range profiled {
		if !names[p] {
			t.Errorf("%s is to be profiled, and there is no such scenario", p)
		}
	}
}

func TestUnknownArguments(t *testing.T) {
	for _, args := range [][]string{{"-rounds", "0"}, {"-seconds", "1h"}, {"-seconds", "0"}, {"nope"}, {"-ours", " "}, {"-ours", "/no/such/program"}, {"soak", "-for", "1s"}, {"pgo", "-seconds", "0"}, {"-only", "("}} {
		if err := command(t.Context(), args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

// TestTheConfigurationsAreWhatWeServe: everything in them is implemented, or we would measure less work than Envoy does.
func TestTheConfigurationsAreWhatWeServe(t *testing.T) {
	b := testBench(t, "true")
	valid := func(name, text string) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "envoy.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		if err := sidecar.Validate(sidecar.Options{Config: path}, &said); err != nil || said.String() != "configuration OK\n" {
			t.Errorf("%s: %v %s\n%s", name, err, said.String(), text)
		}
	}
	for _, s := range scenarios {
		for i, h := range s.hops("ours") {
			h.listen, h.upstream, h.admin = 1001, 1002, 1003
			valid(fmt.Sprintf("%s, hop %d", s.name, i), b.envoyYAML(h))
		}
	}
	front := &bootstrap{pki: b.pki, jwks: b.jwks, admin: 1001}
	front.soakFront(&stage{http: 1002, tls: 1003, tcp: 1004}, 1005, 1006, 1007)
	valid("soak", front.String())
}

func testBench(t *testing.T, ours string) *bench {
	t.Helper()
	b, err := newBench(ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.close)
	return b
}

// TestOneScenario runs the whole of it, with ours alone, for a moment.
func TestOneScenario(t *testing.T) {
	b := testBench(t, harness.Binary(t)+" sidecar")
	b.seconds = 0.2
	chosen, err := choose(scenarios, "pair")
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	if err := b.measure(t.Context(), &said, chosen, nil, 1); err != nil {
		t.Fatal(err)
	}
	var value float64
	rows := strings.Split(strings.TrimSpace(said.String()), "\n")
	if n, err := fmt.Sscanf(rows[len(rows)-1], "| pair | CPU, µs | %f | 0 |", &value); n != 1 || err != nil || value <= 0 {
		t.Errorf("%s", said.String())
	}
}
