package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sort"
	"strings"

	"sallyport/integration/bench/load"
)

// title of the peers as they write themselves.
var title = map[string]string{"envoy": "Envoy", "haproxy": "HAProxy", "nginx": "nginx", "ours": "ours"}

// outcome is what the rounds of one scenario gave.
type outcome struct {
	names  []string             // of the figures, in their order
	kinds  map[string]figure    // by name, for higher and plain
	values map[string][]float64 // by peer and figure: peer+"\x00"+name
	failed map[string]int64
	errors map[string]map[string]int
	broken map[string]string // peers of which nothing could be measured
}

// measure runs the scenarios and prints a row for each figure.
func (b *bench) measure(ctx context.Context, w io.Writer, chosen []scenario, peers []string, rounds int) error {
	header := []string{"scenario", "figure"}
	for _, p := range peers {
		header = append(header, title[p])
	}
	header = append(header, "ours")
	if len(peers) > 0 {
		header = append(header, "ours / best peer")
	}
	header = append(header, "failed")
	fmt.Fprintf(w, "| %s |\n|%s\n", strings.Join(header, " | "), strings.Repeat("---|", len(header)))
	var bad []string
	for _, s := range chosen {
		o := outcome{kinds: map[string]figure{}, values: map[string][]float64{}, failed: map[string]int64{}, errors: map[string]map[string]int{}, broken: map[string]string{}}
		for range rounds {
			for _, peer := range append(slices.Clone(peers), "ours") {
				if s.alone && peer != "ours" {
					continue
				}
				figs, r, err := b.round(ctx, s, peer)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil {
					o.broken[peer] = err.Error()
					fmt.Fprintf(os.Stderr, "bench: %s: %s: %v\n", s.name, peer, err)
					continue
				}
				o.add(peer, figs, r)
			}
		}
		for _, row := range o.rows(s.name, peers) {
			fmt.Fprintln(w, row)
		}
		for peer, kinds := range o.errors {
			for why, n := range kinds {
				fmt.Fprintf(os.Stderr, "bench: %s: %s: %d times: %s\n", s.name, peer, n, why)
			}
		}
		if o.failed["ours"] > 0 || o.broken["ours"] != "" {
			bad = append(bad, s.name)
		}
	}
	if len(bad) > 0 {
		return errors.New("failures of ours in " + strings.Join(bad, ", "))
	}
	return nil
}

func (o *outcome) add(peer string, figs []figure, r load.Result) {
	for _, f := range figs {
		if _, known := o.kinds[f.name]; !known {
			o.names = append(o.names, f.name)
			o.kinds[f.name] = f
		}
		key := peer + "\x00" + f.name
		o.values[key] = append(o.values[key], f.value)
	}
	o.failed[peer] += r.Failed
	for why, n := range r.Errors {
		if o.errors[peer] == nil {
			o.errors[peer] = map[string]int{}
		}
		o.errors[peer][why] += n
	}
}

func (o *outcome) rows(name string, peers []string) []string {
	if len(o.names) == 0 {
		o.names = []string{"not measured"}
	}
	var rows []string
	for i, n := range o.names {
		cells := []string{name, n}
		if i > 0 {
			cells[0] = ""
		}
		for _, p := range append(slices.Clone(peers), "ours") {
			cells = append(cells, o.cell(p, n))
		}
		if len(peers) > 0 {
			cells = append(cells, o.ratio(n, peers))
		}
		failed := ""
		if i == 0 {
			failed = o.failures()
		}
		rows = append(rows, "| "+strings.Join(append(cells, failed), " | ")+" |")
	}
	return rows
}

// cell is the median, with the least and the greatest of the rounds behind it.
func (o *outcome) cell(peer, name string) string {
	v := o.values[peer+"\x00"+name]
	if len(v) == 0 {
		if o.broken[peer] != "" {
			return "error"
		}
		return "–"
	}
	mid := median(v)
	if math.IsNaN(mid) {
		return "–"
	}
	if len(v) == 1 {
		return number(mid)
	}
	return fmt.Sprintf("%s (%s–%s)", number(mid), number(slices.Min(v)), number(slices.Max(v)))
}

// ratio is that of the medians, to the peer that is best.
func (o *outcome) ratio(name string, peers []string) string {
	kind := o.kinds[name]
	mine := o.values["ours\x00"+name]
	if kind.plain || len(mine) == 0 {
		return ""
	}
	best, who := math.NaN(), ""
	for _, p := range peers {
		if v := o.values[p+"\x00"+name]; len(v) > 0 {
			if m := median(v); who == "" || m < best != kind.higher {
				best, who = m, p
			}
		}
	}
	if who == "" || best == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f (%s)", median(mine)/best, title[who])
}

func (o *outcome) failures() string {
	var parts []string
	for p, n := range o.failed {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", title[p], n))
		}
	}
	sort.Strings(parts)
	if len(parts) == 0 {
		return "0"
	}
	return strings.Join(parts, ", ")
}

// number has three or four digits that count.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1 || a == 0:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

// median of values; NaN of none.
func median(values []float64) float64 {
	v := slices.Clone(values)
	slices.Sort(v)
	n := len(v)
	switch {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return v[n/2]
	default:
		return (v[n/2-1] + v[n/2]) / 2
	}
}

// slope is how much y grows for each unit of x: the median of the slopes between all pairs (Theil–Sen), which single
// peaks do not move.
func slope(x, y []float64) float64 {
	var all []float64
	for i := range x {
		for j := i + 1; j < len(x); j++ {
			if x[j] != x[i] {
				all = append(all, (y[j]-y[i])/(x[j]-x[i]))
			}
		}
	}
	if len(all) == 0 {
		return 0
	}
	return median(all)
}
