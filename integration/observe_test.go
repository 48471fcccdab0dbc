package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"sallyport/integration/harness"
)

// observed is a running proxy with everything that listens to what it tells.
type observed struct {
	*harness.Proxy
	one       *harness.Backend
	collector *harness.Collector
	log       string // path of the access log
}

func observe(t *testing.T, b *harness.ProxyBuilder) observed {
	t.Helper()
	bootstrap, err := os.ReadFile("testdata/observed.yaml")
	if err != nil {
		t.Fatal(err)
	}
	o := observed{one: harness.NewBackend(t, "one").HTTP1(), collector: harness.NewCollector(t), log: filepath.Join(t.TempDir(), "access.log")}
	o.Proxy = b.Bootstrap(string(bootstrap)).Value("log", o.log).Backend("one", o.one).Backend("collector", o.collector).Run()
	return o
}

// both runs a story with a stock Envoy, which proves the story, and with sallyport.
func both(t *testing.T, story func(*testing.T, observed)) {
	t.Run("Envoy", func(t *testing.T) {
		story(t, observe(t, harness.NewEnvoy(t).Args("--file-flush-interval-msec", "20")))
	})
	t.Run("sallyport", func(t *testing.T) { story(t, observe(t, harness.NewSidecar(t))) })
}

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
)

func TestTraceGoesOn(t *testing.T) {
	both(t, func(t *testing.T, o observed) {
		harness.Get(t, o.Addr("http"), "/plain", "traceparent: 00-"+traceID+"-"+spanID+"-01", "tracestate: vendor=value")
		spans := o.collector.WaitTrace(traceID, 1)
		if s := spans[0]; s.Parent != spanID || s.Service != "observed" || s.Kind != "SPAN_KIND_SERVER" || s.End.Before(s.Start) {
			t.Errorf("span %+v", s)
		}
		got := o.one.Take()[0]
		part := strings.Split(got.Get("traceparent"), "-")
		if len(part) != 4 || part[1] != traceID || part[2] == spanID || part[3] != "01" {
			t.Fatalf("traceparent %q upstream", got.Get("traceparent"))
		}
		ours := false
		for _, s := range spans {
			ours = ours || s.ID == part[2]
		}
		if !ours {
			t.Errorf("the upstream's parent %s is no span of %+v", part[2], spans)
		}
		if state := got.Get("tracestate"); state != "vendor=value" {
			t.Errorf("tracestate %q upstream", state)
		}
	})
}

func TestTraceBegins(t *testing.T) {
	both(t, func(t *testing.T, o observed) {
		harness.Get(t, o.Addr("http"), "/plain")
		got := o.one.Take()[0]
		parent := regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-01$`).FindStringSubmatch(got.Get("traceparent"))
		if parent == nil {
			t.Fatalf("traceparent %q upstream", got.Get("traceparent"))
		}
		if s := o.collector.WaitTrace(parent[1], 1)[0]; s.Parent != "" {
			t.Errorf("the first span has a parent: %+v", s)
		}
	})
}

func TestTraceThatIsNotSampledStaysSo(t *testing.T) {
	both(t, func(t *testing.T, o observed) {
		harness.Get(t, o.Addr("http"), "/plain", "traceparent: 00-"+traceID+"-"+spanID+"-00")
		got := o.one.Take()[0]
		if p := got.Get("traceparent"); !strings.HasPrefix(p, "00-"+traceID+"-") || !strings.HasSuffix(p, "-00") {
			t.Errorf("traceparent %q upstream", p)
		}
		// A later trace has arrived, so this one would have.
		later := strings.Repeat("12", 16)
		harness.Get(t, o.Addr("http"), "/plain", "traceparent: 00-"+later+"-"+spanID+"-01")
		o.collector.WaitTrace(later, 1)
		for _, s := range o.collector.Spans() {
			if s.Trace == traceID {
				t.Errorf("exported %+v", s)
			}
		}
	})
}

// TestSameAccessLogAsEnvoy compares the access logs of the same requests, line by line: codes, flags, details, bytes.
func TestSameAccessLogAsEnvoy(t *testing.T) {
	harness.Need(t, harness.Envoy)
	requests := []struct {
		name, raw string
		reply     string
	}{
		{"plain", harness.Request("GET", "/plain?a=b", "", "user-agent: test"), harness.OK("hello", "x-reply: yes")},
		{"with content", harness.Request("POST", "/plain", "content"), harness.Ordinary},
		{"quotes and control characters", harness.Request("GET", "/plain", "", "user-agent: \"a\\b\t"), harness.Ordinary},
		{"rewritten", harness.Request("GET", "/old/x", ""), harness.Ordinary},
		{"no route", harness.Request("GET", "/nowhere", ""), ""},
		{"no host", harness.Request("GET", "/plain", "", "host: other.example"), ""},
		{"denied", harness.Request("GET", "/denied", ""), ""},
		{"direct", harness.Request("GET", "/direct", ""), ""},
		{"timeout", harness.Request("GET", "/slow", ""), harness.Silence},
		{"no healthy upstream", harness.Request("GET", "/empty", ""), ""},
		{"connect failure", harness.Request("GET", "/dead", ""), ""},
		{"upstream reset", harness.Request("POST", "/plain", "content"), harness.Hangup},
		{"upstream 500", harness.Request("GET", "/plain", ""), harness.Response(500, "bad")},
		{"bad request", "GET /plain HTTP/1.1\r\nhost: test.example\r\nx y: z\r\n\r\n", ""},
	}
	envoy := observe(t, harness.NewEnvoy(t).Args("--file-flush-interval-msec", "20"))
	ours := observe(t, harness.NewSidecar(t))
	for i, r := range requests {
		t.Run(r.name, func(t *testing.T) {
			line := func(o observed) map[string]any {
				o.one.Take()
				if r.reply != "" {
					o.one.Script(r.reply)
				}
				harness.Exchange(t, o.Addr("http"), r.raw, 1, "")
				return o.line(t, i)
			}
			want, got := line(envoy), line(ours)
			t.Logf("%v", want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Envoy (-) and sallyport (+):\n%s", diff)
			}
		})
	}
}

// line waits for the i-th line of the access log and masks what is the run's own.
func (o observed) line(t *testing.T, i int) map[string]any {
	t.Helper()
	var got map[string]any
	harness.Eventually(t, 15*time.Second, "access log line", func() error {
		text, err := os.ReadFile(o.log)
		if err != nil {
			return err
		}
		lines := strings.SplitAfter(string(text), "\n")
		if len(lines) < i+2 {
			return fmt.Errorf("%d lines", len(lines)-1)
		}
		return json.Unmarshal([]byte(lines[i]), &got)
	})
	if host, _ := got["host"].(string); host == o.one.Addr() {
		got["host"] = "one"
	} else if strings.HasPrefix(host, "127.0.0.1:") {
		got["host"] = "dead"
	}
	if details, _ := got["details"].(string); strings.HasPrefix(details, "upstream_reset_before_response_started{") {
		// Envoy adds the transport's and the system's words.
		got["details"] = regexp.MustCompile(`[|,}].*`).ReplaceAllString(details, "}")
	}
	if details, _ := got["details"].(string); strings.HasPrefix(details, "http1.") {
		got["details"] = "http1.…" // each codec has its own names for what it refuses
	}
	// With a connect failure or without, the length of the body that carries the system's words is Envoy's own.
	if flags := got["flags"]; flags == "UF" || flags == "UC" {
		got["sent"] = "…"
	}
	return got
}

func TestAdminPages(t *testing.T) {
	both(t, func(t *testing.T, o observed) {
		for range 3 {
			harness.Get(t, o.Addr("http"), "/plain")
		}
		harness.Get(t, o.Addr("http"), "/nowhere")
		for stat, want := range map[string]int64{
			"http.observed.downstream_rq_total": 4, "http.observed.downstream_rq_2xx": 3, "http.observed.downstream_rq_4xx": 1,
			"cluster.one.upstream_rq_total": 3, "cluster.one.upstream_rq_2xx": 3, "cluster.one.membership_healthy": 1,
		} {
			harness.Eventually(t, 10*time.Second, stat, func() error {
				if got := o.Stat(stat); got != want {
					return fmt.Errorf("%d, want %d", got, want)
				}
				return nil
			})
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(o.Admin("/stats/prometheus")))
		if err != nil {
			t.Errorf("/stats/prometheus: %v", err)
		}
		total := 0.0
		for _, m := range families["envoy_cluster_upstream_rq_total"].GetMetric() {
			for _, l := range m.Label {
				if l.GetName() == "envoy_cluster_name" && l.GetValue() == "one" {
					total += m.GetCounter().GetValue()
				}
			}
		}
		if total != 3 {
			t.Errorf("envoy_cluster_upstream_rq_total of cluster one is %v, want 3", total)
		}
		var dump struct {
			Configs []map[string]any `json:"configs"`
		}
		text := o.Admin("/config_dump")
		if err := json.Unmarshal([]byte(text), &dump); err != nil || len(dump.Configs) == 0 {
			t.Errorf("/config_dump: %v, %d parts", err, len(dump.Configs))
		}
		for _, name := range []string{"BootstrapConfigDump", "ListenersConfigDump", "ClustersConfigDump", "RoutesConfigDump"} {
			if !strings.Contains(text, "envoy.admin.v3."+name) {
				t.Errorf("/config_dump has no %s", name)
			}
		}
		if clusters := o.Admin("/clusters"); !strings.Contains(clusters, "one::"+o.one.Addr()+"::health_flags::healthy") {
			t.Errorf("/clusters:\n%s", clusters)
		}
	})
}

// TestDrain: whoever asks a proxy to end loses no request.
func TestDrain(t *testing.T) {
	o := observe(t, harness.NewSidecar(t).Args("--drain-time-s", "5"))
	begun, finish := make(chan struct{}), make(chan struct{})
	o.one.Handle(func(*harness.Message) string {
		close(begun)
		<-finish
		return harness.OK("whole")
	})
	answer := make(chan string, 1)
	go func() {
		m, err := harness.TryGet(o.Addr("http"), "/plain/slow")
		answer <- fmt.Sprint(m.Status(), " ", string(m.Body), " ", err)
	}()
	<-begun
	o.Signal(syscall.SIGTERM)
	o.WaitFor("draining", func() error {
		if o.Ready() {
			return errors.New("still ready")
		}
		return nil
	})
	close(finish)
	if got := <-answer; got != "200 whole <nil>" {
		t.Errorf("the request under way got %s", got)
	}
	if code := o.WaitExit(15 * time.Second); code != 0 {
		t.Errorf("exit %d", code)
	}
}
