package integration

import (
	"encoding/xml"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/integration/harness"
)

// The cases that sallyport misses, by "section: case", with the reason. A case that fails and is not listed fails the test, and so
// does one that is listed and passes.
var (
	missedInCleartext = map[string]string{
		"http2/3.5: Sends invalid connection preface": "a cleartext listener speaks both versions: what is no preface is a bad HTTP/1.1 request, and answered as one",
	}
	missedOverTLS = map[string]string{}
)

// TestHTTP2Conformance runs h2spec in strict mode against a listener, cleartext and over TLS.
func TestHTTP2Conformance(t *testing.T) {
	harness.Need(t, harness.H2spec)
	id := harness.NewAuthority(t, "test").Issue("127.0.0.1")
	bootstrap, err := os.ReadFile("testdata/h2spec.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// Long enough for the cases that open the window byte by byte.
	page := harness.OK(strings.Repeat("page ", 400))
	one := harness.NewBackend(t, "one").HTTP1().Handle(func(*harness.Message) string { return page })
	proxy := harness.NewSidecar(t).Bootstrap(string(bootstrap)).Value("cert", id.CertPath).Value("key", id.KeyPath).
		Backend("one", one).Run()
	t.Run("cleartext", func(t *testing.T) { conform(t, proxy.Addr("h2c"), missedInCleartext) })
	t.Run("TLS", func(t *testing.T) { conform(t, proxy.Addr("tls"), missedOverTLS, "-t", "-k") })
}

func conform(t *testing.T, addr string, misses map[string]string, args ...string) {
	cases := h2spec(t, addr, args...)
	failed := 0
	for name, failure := range cases {
		why, known := misses[name]
		switch {
		case failure == "" && known:
			t.Errorf("%s passes; take it from the list of known misses", name)
		case failure != "" && known:
			failed++
			t.Logf("miss: %s (%s)", name, why)
		case failure != "":
			failed++
			t.Errorf("miss: %s\n%s", name, failure)
		}
	}
	for name := range misses {
		if _, ran := cases[name]; !ran {
			t.Errorf("no such case among the known misses: %s", name)
		}
	}
	t.Logf("%d of %d cases passed", len(cases)-failed, len(cases))
	if len(cases) != 146 || failed > 3 {
		t.Errorf("%d of %d cases passed; at least 143 of 146 are promised", len(cases)-failed, len(cases))
	}
}

// h2spec returns every case with why it failed, "" for those that passed.
func h2spec(t *testing.T, addr string, args ...string) map[string]string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(t.TempDir(), "report.xml")
	run := harness.Command{Name: "h2spec", Path: harness.H2spec.Path(), Life: 5 * time.Minute,
		Args: append([]string{"-h", host, "-p", port, "-S", "-o", "2", "-j", report}, args...)}.Start(t)
	run.WaitExit(5 * time.Minute) // 1 where any case failed
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("h2spec wrote no report: %v", err)
	}
	var suites struct {
		Suites []struct {
			Package string `xml:"package,attr"`
			Cases   []struct {
				Package string  `xml:"package,attr"`
				Name    string  `xml:"classname,attr"`
				Failure *string `xml:"failure"`
				Error   *string `xml:"error"`
				Skipped *string `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &suites); err != nil {
		t.Fatalf("h2spec's report: %v", err)
	}
	cases := map[string]string{}
	for _, s := range suites.Suites {
		for _, c := range s.Cases {
			name := c.Package + ": " + c.Name
			if _, twice := cases[name]; twice {
				t.Fatalf("h2spec reports %s twice", name)
			}
			cases[name] = ""
			for _, bad := range []*string{c.Failure, c.Error, c.Skipped} {
				if bad != nil {
					cases[name] = "failed: " + *bad
				}
			}
		}
	}
	return cases
}
