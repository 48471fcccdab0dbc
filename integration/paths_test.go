package integration

import (
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"

	"sallyport/integration/harness"
)

// TestPathsAreNormalizedAsByEnvoy sends all paths of up to five parts to Envoy and to us. Where Envoy's result
// leads elsewhere for a server that drops parameters or decodes once more, ours must not, or is refused; everywhere
// else they must be the same.
func TestPathsAreNormalizedAsByEnvoy(t *testing.T) {
	harness.Need(t, harness.Envoy)
	bootstrap, err := os.ReadFile("testdata/paths.yaml")
	if err != nil {
		t.Fatal(err)
	}
	envoy := harness.NewEnvoy(t).Bootstrap(string(bootstrap)).Run()
	ours := harness.NewSidecar(t).Bootstrap(string(bootstrap)).Run()
	for _, listener := range []string{"kept", "unescaped"} {
		t.Run(listener, func(t *testing.T) {
			theirs, own := newNormalizer(t, envoy.Addr(listener)), newNormalizer(t, ours.Addr(listener))
			same, safer := 0, 0
			for _, path := range pathsOf([]string{"/", ".", "..", ";", "a", `\`, "%2e", "%2f", "%3b"}, 4) {
				want, got := theirs.normalize(path), own.normalize(path)
				switch {
				case got != "400" && leadsElsewhere(got):
					t.Errorf("%s becomes %s, which leads elsewhere", path, got)
				case got == want, want == "//" && got == "/": // of "///" Envoy leaves two slashes
					same++
				case leadsElsewhere(want), strings.Contains(path, ";") && strings.Contains(path, `\`):
					// Envoy takes a backslash among parameters for a part of them.
					safer++
				default:
					t.Errorf("%s becomes %s, and by Envoy %s", path, got, want)
				}
			}
			t.Logf("%d paths are the same, %d are refused or resolved where Envoy's leads elsewhere", same, safer)
			if same < safer {
				t.Error("too many differ")
			}
		})
	}
}

// pathsOf returns "/" and what up to n of the parts make behind it.
func pathsOf(parts []string, n int) (all []string) {
	last := []string{"/"}
	for range n {
		var next []string
		for _, p := range last {
			for _, c := range parts {
				next = append(next, p+c)
			}
		}
		all, last = append(all, last...), next
	}
	return append(all, last...)
}

// normalizer asks a proxy what becomes of a path.
type normalizer struct {
	t    *testing.T
	addr string
	conn *harness.Conn
}

func newNormalizer(t *testing.T, addr string) *normalizer {
	return &normalizer{t, addr, harness.Dial(t, addr, nil)}
}

// normalize returns the path, or the status of the refusal.
func (n *normalizer) normalize(path string) string {
	m, err := n.conn.Send(harness.Request("GET", path, "")).Response("GET")
	if err != nil || m.Get("connection") == "close" {
		n.conn.Close()
		n.conn = harness.Dial(n.t, n.addr, nil)
	}
	if err != nil {
		n.t.Fatalf("%s: %v", path, err)
	}
	if at, is := strings.CutPrefix(m.Get("location"), "http://normalized.example"); is {
		return at
	}
	return strconv.Itoa(m.Status())
}

// leadsElsewhere says whether somebody who drops parameters, or decodes once more, would find dot segments in a path
// that was to have none, or a segment less.
func leadsElsewhere(path string) bool {
	for _, reading := range []string{path, unescape(path)} {
		segments := strings.Split(strings.ReplaceAll(reading, `\`, "/"), "/")[1:]
		for i, s := range segments {
			name, _, parameters := strings.Cut(s, ";")
			if name == "." || name == ".." || name == "" && parameters && i < len(segments)-1 {
				return true
			}
		}
	}
	return false
}

func unescape(path string) string {
	if u, err := url.PathUnescape(path); err == nil {
		return u
	}
	return path
}
