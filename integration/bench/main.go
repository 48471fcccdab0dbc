// Command bench measures what a request costs in our proxy and in its peers, from outside: the CPU time of the proxy
// processes, never wall time, so that a figure holds on a machine that is busy with other work.
//
//	go run ./integration/bench                          every scenario, beside the peers that are installed
//	go run ./integration/bench -only http1-64k,pair     some; -list says which there are
//	go run ./integration/bench soak -for 10m            full load; memory, descriptors and goroutines must be flat
//	go run ./integration/bench pgo -o default.pgo       a CPU profile of the data path, for go build
//
// Rounds are interleaved over the peers, the median is printed. Envoy and we start from the very same YAML.
// Backends and generators (package load) are processes of their own: this program run again with "load" as its first
// argument. docs/benchmarks.md says what each figure means.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"sallyport/integration/bench/load"
	"sallyport/integration/harness"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "load" {
		os.Exit(load.Main(os.Args[2]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "soak" {
		return soakCommand(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == "pgo" {
		return pgoCommand(ctx, args[1:])
	}
	return measureCommand(ctx, args)
}

// measureCommand prints the table.
func measureCommand(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := fs.String("only", "", "comma-separated regular expressions of the scenarios (default: all)")
	peers := fs.String("peers", "envoy,haproxy,nginx", "what to measure beside ours; empty for ours alone")
	rounds := fs.Int("rounds", 3, "rounds of each scenario; the median is printed")
	seconds := fs.Float64("seconds", 4, "seconds of load in each round")
	ours := oursFlag(fs)
	list := fs.Bool("list", false, "list the scenarios and end")
	if err := fs.Parse(args); err != nil {
		return err
	}
	switch {
	case fs.NArg() > 0:
		return fmt.Errorf("unexpected %q; the commands soak and pgo come first, everything else is a flag", fs.Arg(0))
	case *rounds < 1 || *rounds > 100:
		return fmt.Errorf("-rounds %d: must be from 1 to 100", *rounds)
	case *seconds < 0.1 || *seconds > 600:
		return fmt.Errorf("-seconds %v: must be from 0.1 to 600", *seconds)
	}
	chosen, err := choose(scenarios, *only)
	if errors.Is(err, errNone) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return nil // as go test -bench does: the same expression picks benchmarks of the parts
	}
	if err != nil {
		return err
	}
	if *list {
		for _, s := range chosen {
			fmt.Printf("%-16s %s\n", s.name, s.what)
		}
		return nil
	}
	b, err := newBench(*ours)
	if err != nil {
		return err
	}
	defer b.close()
	b.seconds = *seconds
	var present []string
	for p := range strings.SplitSeq(*peers, ",") {
		if p = strings.TrimSpace(p); p == "" {
			continue
		}
		if why := b.missing(p); why != "" {
			fmt.Fprintf(os.Stderr, "bench: without %s: %s\n", p, why)
			continue
		}
		present = append(present, p)
	}
	return b.measure(ctx, os.Stdout, chosen, present, *rounds)
}

// oursFlag is the proxy that is measured.
func oursFlag(fs *flag.FlagSet) *string {
	return fs.String("ours", filepath.Join(harness.Root(), "bin/sallyport")+" sidecar", "command of the proxy under test, to which -c FILE and --concurrency N are added")
}

var errNone = errors.New("matches no scenario")

// choose returns the scenarios whose names match one of the expressions, in their order.
func choose(all []scenario, only string) ([]scenario, error) {
	if only == "" {
		return all, nil
	}
	var chosen []scenario
	var patterns []*regexp.Regexp
	for p := range strings.SplitSeq(only, ",") {
		// A name means that scenario alone; what is no name is a pattern, as in go test -bench.
		if slices.ContainsFunc(all, func(s scenario) bool { return s.name == p }) {
			p = "^" + regexp.QuoteMeta(p) + "$"
		}
		re, err := regexp.Compile(p)
		if err != nil {
			return nil, fmt.Errorf("-only: %w", err)
		}
		patterns = append(patterns, re)
	}
	var names []string
	for _, s := range all {
		names = append(names, s.name)
		if slices.ContainsFunc(patterns, func(re *regexp.Regexp) bool { return re.MatchString(s.name) }) {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("-only %q: %w; there are %s", only, errNone, strings.Join(names, ", "))
	}
	return chosen, nil
}

// bench is one run of the program: where it keeps its files, the backends, and what is measured.
type bench struct {
	dir     string
	pki     string
	token   string // that the filters scenario's requests carry
	jwks    string
	self    string
	ours    []string
	env     []string // of our proxies, in addition
	seconds float64

	backends map[string]*backend
}

// backendLife bounds the life of a backend whose starter does not end it.
const backendLife = 3 * time.Hour

func newBench(ours string) (*bench, error) {
	b := &bench{ours: strings.Fields(ours), backends: map[string]*backend{}}
	if len(b.ours) == 0 {
		return nil, errors.New("-ours is empty: must be a command, as in 'bin/sallyport sidecar'")
	}
	path, err := exec.LookPath(b.ours[0])
	if err != nil {
		return nil, fmt.Errorf("-ours: %w; make build makes bin/sallyport", err)
	}
	// It is started in another folder.
	if b.ours[0], err = filepath.Abs(path); err != nil {
		return nil, err
	}
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp("", "sallyport-bench-"); err != nil {
		return nil, err
	}
	b.pki = filepath.Join(b.dir, "pki")
	if err := makePKI(b.pki); err != nil {
		b.close()
		return nil, err
	}
	if b.token, b.jwks, err = makeToken(); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bench) close() {
	for _, x := range b.backends {
		x.stop()
	}
	os.RemoveAll(b.dir)
}
