package message

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestHeadAgainstModel makes random changes to a Head and to a plain list, and compares.
func TestHeadAgainstModel(t *testing.T) {
	type pair struct{ name, value string }
	names := []string{"host", "x-a", "x-b", ":path", "content-length", "x-request-id", "y"}
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		var h Head
		var model []pair
		removeAll := func(name string) {
			kept := model[:0]
			for _, p := range model {
				if p.name != name {
					kept = append(kept, p)
				}
			}
			model = kept
		}
		for step := range 30 {
			name, value := names[r.IntN(len(names))], fmt.Sprint("v", step)
			switch r.IntN(5) {
			case 0, 1:
				h.AddString(name, value)
				model = append(model, pair{name, value})
			case 2:
				first := -1
				for i, p := range model {
					if p.name == name {
						first = i
						break
					}
				}
				h.Set(name, value)
				if first < 0 || NameOf([]byte(name)) == Unknown {
					removeAll(name)
					model = append(model, pair{name, value})
				} else {
					model[first].value = value
					kept := model[:first+1]
					for _, p := range model[first+1:] {
						if p.name != name {
							kept = append(kept, p)
						}
					}
					model = kept
				}
			case 3:
				h.Remove(name)
				removeAll(name)
			case 4:
				if len(model) > 0 {
					i := r.IntN(len(model))
					h.RemoveAt(i)
					model = append(model[:i], model[i+1:]...)
				}
			}
			if h.Len() != len(model) {
				t.Fatalf("%d fields, want %d", h.Len(), len(model))
			}
			for i, p := range model {
				if n, v := h.At(i); n != p.name || string(v) != p.value {
					t.Fatalf("field %d is %q: %q, want %v", i, n, v, p)
				}
			}
			for _, n := range names {
				want, count := "", 0
				var joined []string
				for _, p := range model {
					if p.name == n {
						if count == 0 {
							want = p.value
						}
						count++
						joined = append(joined, p.value)
					}
				}
				if got := string(h.Lookup(n)); got != want || h.Count(n) != count {
					t.Fatalf("Lookup(%q) = %q, Count %d; want %q, %d", n, got, h.Count(n), want, count)
				}
				if known := NameOf([]byte(n)); known != Unknown && string(h.Get(known)) != want {
					t.Fatalf("Get(%q) = %q, want %q", n, h.Get(known), want)
				}
				if v, ok := h.Joined(n); ok != (count > 0) || string(v) != strings.Join(joined, ",") {
					t.Fatalf("Joined(%q) = %q", n, v)
				}
			}
		}
	}
}

func TestAnEmptyValueIsPresent(t *testing.T) {
	var h Head
	h.AddString("accept", "")
	h.AddString("x", "")
	if h.Get(Accept) == nil || h.Lookup("x") == nil || !h.Has(Accept) {
		t.Error("an empty value counts as absent")
	}
}

func TestTheMarkOfASensitiveFieldStaysWithIt(t *testing.T) {
	var h, c Head
	h.AddString("x-a", "1")
	h.AddString("x-key", "2")
	h.MarkSensitive()
	h.AddNameString(Cookie, "3")
	h.MarkSensitive()
	h.SetNameString(Cookie, "4")
	h.Remove("x-a")
	c.CopyFrom(&h)
	c.AddString("x-b", "5")
	if !c.Sensitive(0) || !c.Sensitive(1) || c.Sensitive(2) {
		t.Error("marks moved or were lost")
	}
	c.Reset()
	if c.AddString("x-b", "5"); c.Sensitive(0) {
		t.Error("a mark outlives Reset")
	}
}

func TestAHeadKeepsNoLargeMemory(t *testing.T) {
	var h Head
	for range 3 {
		for i := range 5000 {
			h.AddString("x-name", strings.Repeat("v", i%50))
		}
		if cap(h.arena) <= keptArena || cap(h.fields) <= keptFields {
			t.Fatal("the head is not large")
		}
		h.Reset()
		if h.Len() != 0 || cap(h.arena) > keptArena || cap(h.fields) > keptFields {
			t.Errorf("%d bytes and %d fields are kept", cap(h.arena), cap(h.fields))
		}
	}
	// Up to the bound it allocates nothing.
	value := strings.Repeat("v", keptArena/2)
	h.AddString("x-name", value)
	if n := testing.AllocsPerRun(100, func() { h.Reset(); h.AddString("x-name", value) }); n != 0 {
		t.Errorf("%v allocations for a head of half the bound", n)
	}
}

func TestStatusCode(t *testing.T) {
	for v, want := range map[string]int{"200": 200, "099": 99, "20": 0, "2000": 0, "2x0": 0, "": 0} {
		var h Head
		h.AddNameString(Status, v)
		if got := h.StatusCode(); got != want {
			t.Errorf("status %q is %d, want %d", v, got, want)
		}
	}
}

func BenchmarkHead(b *testing.B) {
	var h Head
	b.ReportAllocs()
	for b.Loop() {
		h.Reset()
		h.AddNameString(Method, "GET")
		h.AddNameString(Path, "/")
		h.AddNameString(Authority, "bench.local")
		h.AddString("x-custom", "value")
		h.SetNameString(XForwardedProto, "http")
		if h.Lookup("x-custom") == nil {
			b.Fatal("lost")
		}
	}
}

// BenchmarkHeadReset is what giving memory back costs where there is none to give: Reset alone, of a head of a usual size.
func BenchmarkHeadReset(b *testing.B) {
	var h Head
	for i := range 12 {
		h.AddString("x-name", strings.Repeat("v", 20*i))
	}
	b.ReportAllocs()
	for b.Loop() {
		h.Reset()
	}
}

func TestSizeAtMostIsNoLessThanSize(t *testing.T) {
	var h Head
	for n := Method; n < nameCount; n++ {
		h.AddNameString(n, "")
		h.AddString("x-unknown", "value")
		if n%7 == 0 {
			h.SetNameString(n, "again")
		}
		if h.SizeAtMost() < h.Size() {
			t.Fatalf("%d, of a head of %d bytes", h.SizeAtMost(), h.Size())
		}
	}
}
