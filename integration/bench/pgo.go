package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"sallyport/integration/bench/load"
	"sallyport/integration/harness"
)

// profiled are the scenarios whose profiles are merged: what a sidecar does most.
var profiled = []string{"http1", "http1-64k", "pair", "h2", "h2-pair", "conns"}

// pgoCommand records CPU profiles of our proxy under load and merges them into one for go build.
func pgoCommand(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("bench pgo", flag.ContinueOnError)
	out := fs.String("o", filepath.Join(harness.Root(), "default.pgo"), "file to write")
	seconds := fs.Int("seconds", 10, "seconds of each profile")
	ours := oursFlag(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *seconds < 1 || *seconds > 60 {
		return fmt.Errorf("-seconds %d: must be from 1 to 60", *seconds)
	}
	b, err := newBench(*ours)
	if err != nil {
		return err
	}
	defer b.close()
	b.seconds = float64(*seconds)
	var files []string
	for _, name := range profiled {
		i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
		s := scenarios[i]
		s.measure = func(ctx context.Context, b *bench, r *running, t load.Spec) ([]figure, load.Result, error) {
			paths, got, err := b.profile(ctx, name, r, t, *seconds)
			files = append(files, paths...)
			return nil, got, err
		}
		_, got, err := b.round(ctx, s, "ours")
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if got.Failed > 0 {
			return fmt.Errorf("%s: %d failures: %v", name, got.Failed, got.Errors)
		}
		fmt.Printf("%s: %d requests\n", name, got.Done)
	}
	merged, err := merge(ctx, files)
	if err != nil {
		return err
	}
	if err := os.WriteFile(*out, merged, 0o644); err != nil {
		return err
	}
	fmt.Printf("%s: %d KiB; go build uses it for the package in that folder\n", *out, len(merged)>>10)
	return nil
}

// profile records the CPU profile of each hop while the traffic goes through.
func (b *bench) profile(ctx context.Context, name string, r *running, t load.Spec, seconds int) (paths []string, got load.Result, err error) {
	if got, err = b.warm(ctx, r, t); err != nil {
		return nil, got, err
	}
	t.Seconds = float64(seconds) + 1 // the profile is within
	type answer struct {
		path string
		err  error
	}
	answers := make(chan answer, len(r.hops))
	for i, h := range r.hops {
		path := filepath.Join(b.dir, fmt.Sprintf("%s-%d.prof", name, i))
		go func() {
			text, err := h.adminPage(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds))
			if err == nil {
				err = os.WriteFile(path, text, 0o600)
			}
			answers <- answer{path, err}
		}()
	}
	got, err = load.Run(ctx, b.self, t)
	for range r.hops {
		a := <-answers
		if a.err != nil && err == nil {
			err = a.err
		}
		paths = append(paths, a.path)
	}
	return paths, got, err
}

// merge adds profiles up, as go help build (-pgo) advises.
func merge(ctx context.Context, files []string) ([]byte, error) {
	slices.Sort(files) // the order of the names in the result, too, is then the same each time
	c := exec.CommandContext(ctx, "go", append([]string{"tool", "pprof", "-proto", "-output", "/dev/stdout"}, files...)...)
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("go tool pprof: %w: %s", err, said.String())
	}
	return out.Bytes(), nil
}
