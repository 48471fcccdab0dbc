package manifest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// sharing writes Lists whose objects share at random what they may: by anchors, some of them set anew, aliases and merges.
type sharing struct {
	*rand.Rand
	anchors  map[string]string // name: of which kind is what it stands for at this place
	comments int
}

// field is one of a mapping. Its value is written with n spaces before its lines.
type field struct {
	key   string
	value func(n int) string
}

// anchor is "&NAME ", or nothing. Until end is called it stands for nothing that could have an alias.
func (s *sharing) anchor(kind string) (text string, end func()) {
	if s.IntN(3) > 0 {
		return "", func() {}
	}
	name := fmt.Sprintf("n%d", s.IntN(6))
	delete(s.anchors, name)
	mine := fmt.Sprint(kind, " is open ", s.Uint64())
	s.anchors[name] = mine
	return " &" + name, func() {
		if s.anchors[name] == mine { // nothing within has taken the name
			s.anchors[name] = kind
		}
	}
}

// alias is " *NAME" of something of a kind, or nothing.
func (s *sharing) alias(kind string) string {
	for i, n := 0, s.IntN(6); i < 6 && s.IntN(8) > 0; i++ {
		if name := fmt.Sprintf("n%d", (i+n)%6); s.anchors[name] == kind {
			return " *" + name
		}
	}
	return ""
}

// comment is one, at times. What a probe has goes with it when the sidecar makes another, so there is none.
func (s *sharing) comment(kind string) string {
	if s.IntN(8) > 0 || kind == "probe" || kind == "call" || kind == "port" {
		return ""
	}
	s.comments++
	return fmt.Sprintf(" # c%d", s.comments)
}

func (s *sharing) scalar(kind string, values ...string) func(int) string {
	return func(int) string {
		if alias := s.alias(kind); alias != "" {
			return alias + s.comment(kind) + "\n"
		}
		anchor, end := s.anchor(kind)
		defer end()
		return anchor + " " + values[s.IntN(len(values))] + s.comment(kind) + "\n"
	}
}

func (s *sharing) mapping(kind string, fields func() []field) func(int) string {
	return func(n int) string {
		if alias := s.alias(kind); alias != "" {
			return alias + s.comment(kind) + "\n"
		}
		anchor, end := s.anchor(kind)
		defer end()
		text, pad, merged := anchor+s.comment(kind)+"\n", strings.Repeat(" ", n), false
		for _, f := range fields() {
			if alias := s.alias(kind); !merged && alias != "" && s.IntN(3) == 0 {
				text += pad + "<<:" + alias + s.comment(kind) + "\n"
				merged = true
			}
			text += pad + f.key + ":" + f.value(n+2)
		}
		return text
	}
}

func (s *sharing) labels() func(int) string {
	return s.mapping("labels", func() []field {
		return []field{{"app", s.scalar("name", "a", "b")}, {fmt.Sprintf("k%d", s.IntN(3)), s.scalar("name", "c", `"80"`)}}
	})
}

func (s *sharing) probe() func(int) string {
	return s.mapping("probe", func() []field {
		call := s.mapping("call", func() []field { return []field{{"port", s.scalar("port", "80", "81")}} })
		how := []string{"grpc", "httpGet", "tcpSocket"}[s.IntN(3)]
		return []field{{how, call}, {"periodSeconds", s.scalar("port", "5")}}[:1+s.IntN(2)]
	})
}

func (s *sharing) metadata() func(int) string {
	return s.mapping("metadata", func() []field {
		return []field{{"labels", s.labels()}, {"annotations", s.labels()}}[:1+s.IntN(2)]
	})
}

func (s *sharing) spec() func(int) string {
	return s.mapping("spec", func() []field {
		container := s.mapping("container", func() []field {
			return []field{{"name", func(int) string { return " app\n" }}, {"image", s.scalar("name", "a")}, {"livenessProbe", s.probe()}, {"readinessProbe", s.probe()}}[:2+s.IntN(3)]
		})
		list := func(n int) string {
			return "\n" + strings.Repeat(" ", n) + "-" + container(n+2)
		}
		return []field{{"serviceAccountName", s.scalar("name", "a", "b")}, {"containers", list}, {"nodeSelector", s.labels()}}[:2+s.IntN(2)]
	})
}

func (s *sharing) document() string {
	text := "apiVersion: v1\nkind: List\nx:" + s.probe()(2) + "y:" + s.labels()(2) + "z:" + s.spec()(2) + "items:\n"
	for range 1 + s.IntN(4) {
		switch s.IntN(3) {
		case 0:
			text += "- apiVersion: v1\n  kind: Pod\n  metadata:" + s.metadata()(4) + "  spec:" + s.spec()(4)
		case 1:
			text += "- apiVersion: example.org/v1\n  kind: Pod\n  metadata:" + s.metadata()(4) + "  spec:" + s.spec()(4)
		default:
			text += "- apiVersion: apps/v1\n  kind: Deployment\n  metadata:" + s.metadata()(4) + "  spec:\n    template:\n      metadata:" + s.metadata()(8) + "      spec:" + s.spec()(8)
		}
	}
	return text
}

// TestSharedAtRandom: as TestAnchors, for what nobody would think of. No comment is lost either.
func TestSharedAtRandom(t *testing.T) {
	injected := 0
	for seed := range uint64(80) {
		s := &sharing{Rand: rand.New(rand.NewPCG(seed, 0)), anchors: map[string]string{}}
		in := s.document()
		out, _, err := File("f.yaml", []byte(in), options())
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, in)
		}
		if !checkAnchors(t, []byte(in), out) {
			t.Fatalf("seed %d: package yaml cannot expand it:\n%s", seed, in)
		}
		injected += bytes.Count(out, []byte(AnnotationStatus))
		for c := 1; c <= s.comments; c++ {
			if !bytes.Contains(out, fmt.Appendf(nil, "# c%d\n", c)) {
				t.Errorf("seed %d: comment %d is lost:\n%s\nof\n%s", seed, c, out, in)
			}
		}
		if twice, _, err := File("f.yaml", out, options()); err != nil || !bytes.Equal(twice, out) {
			t.Fatalf("seed %d: injected twice: %v\n%s", seed, err, in)
		}
		if back, err := FileBack("f.yaml", out); err != nil || string(back) != in {
			t.Fatalf("seed %d: taken out again: %v\n%s\nof\n%s", seed, err, back, in)
		}
	}
	if injected < 50 {
		t.Errorf("only %d pods are injected", injected)
	}
}
