package message

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// listOf is a Head with a field of those lines, between others.
func listOf(lines ...string) *Head {
	h := new(Head)
	h.AddNameString(Host, "a,b")
	for _, l := range lines {
		h.AddNameString(XForwardedFor, l)
		h.AddString("x-other", l)
	}
	return h
}

func elements(h *Head, n Name) []string {
	var all []string
	for e := h.Elements(n); e.Next(); {
		all = append(all, string(e.Element))
	}
	return all
}

func TestElementsOfAllLines(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  string // joined by "|"
	}{
		{nil, ""},
		{[]string{""}, ""},
		{[]string{" , ,\t,"}, ""},
		{[]string{"a"}, "a"},
		{[]string{"a, b"}, "a|b"},
		{[]string{"a", "b"}, "a|b"},
		{[]string{"a,,b", "", ",c ,", "\td\t"}, "a|b|c|d"},
		{[]string{"a b, c"}, "a b|c"},
	} {
		h := listOf(c.lines...)
		got := elements(h, XForwardedFor)
		if strings.Join(got, "|") != c.want {
			t.Errorf("%q: %q, want %q", c.lines, got, c.want)
		}
		if n := h.CountElements(XForwardedFor); n != len(got) {
			t.Errorf("%q: counted %d", c.lines, n)
		}
		for i, want := range got {
			if e := h.ElementAt(XForwardedFor, i); string(e) != want {
				t.Errorf("%q: element %d is %q", c.lines, i, e)
			}
			if e := h.ElementAt(XForwardedFor, i-len(got)); string(e) != want {
				t.Errorf("%q: element %d is %q", c.lines, i-len(got), e)
			}
			if !h.HasElement(XForwardedFor, want) {
				t.Errorf("%q: does not have %q", c.lines, want)
			}
		}
		for _, i := range []int{len(got), -len(got) - 1, 1 << 20, -1 << 20} {
			if e := h.ElementAt(XForwardedFor, i); e != nil {
				t.Errorf("%q: element %d is %q", c.lines, i, e)
			}
		}
		if only := h.OnlyElement(XForwardedFor); (len(got) == 1) != (only != nil) || only != nil && string(only) != got[0] {
			t.Errorf("%q: the only one is %q", c.lines, only)
		}
		if h.HasElement(XForwardedFor, "z") || h.HasElement(Upgrade, "a") {
			t.Errorf("%q: has what it has not", c.lines)
		}
	}
	h := listOf("A", "b, KEEP-Alive")
	if !h.HasElement(XForwardedFor, "keep-alive") || !h.HasElement(XForwardedFor, "a") || h.HasElement(XForwardedFor, "keep") {
		t.Error("tokens are not compared as tokens")
	}
}

func TestJoinedElementsAreOneLineOfTheSameElements(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	parts := []string{"a", "bb", " c", "d\t", ",", ",,", ", ", ""}
	var scratch []byte
	for range 2000 {
		var lines []string
		for range r.IntN(4) {
			line := ""
			for range r.IntN(5) {
				line += parts[r.IntN(len(parts))]
			}
			lines = append(lines, line)
		}
		h := listOf(lines...)
		want := elements(h, XForwardedFor)
		scratch = h.JoinElements(XForwardedFor, scratch)
		got := elements(h, XForwardedFor)
		if strings.Join(got, "|") != strings.Join(want, "|") || h.Count("x-forwarded-for") != min(1, len(lines)) || h.Count("x-other") != len(lines) {
			t.Fatalf("%q became %d lines with %q", lines, h.Count("x-forwarded-for"), got)
		}
		if len(lines) == 1 && string(h.Get(XForwardedFor)) != lines[0] {
			t.Fatalf("%q became %q", lines, h.Get(XForwardedFor))
		}
	}
}

func TestElementsAllocateNothing(t *testing.T) {
	h := listOf("a, b", "c")
	if n := testing.AllocsPerRun(100, func() {
		for e := h.Elements(XForwardedFor); e.Next(); {
			if e.Element == nil {
				t.Fatal("no element")
			}
		}
		h.ElementAt(XForwardedFor, -1)
		h.HasElement(XForwardedFor, "c")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
