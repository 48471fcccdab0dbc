package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	resourcev1 "go.opentelemetry.io/proto/otlp/resource/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"sallyport/xds/catalog"
	"sallyport/xds/policy"
)

func TestPlanHasTheQuickstartOnPortsOfItsOwn(t *testing.T) {
	p, err := newPlan()
	if err != nil {
		t.Fatal(err)
	}
	defer p.ports.close()
	used := map[int]bool{p.public: true, p.l4Admin: true, p.control: true, p.status: true}
	n := len(used)
	add := func(port int) {
		used[port] = true
		n++
		if port < firstPort || port >= afterLastPort {
			t.Errorf("port %d is in the range of outgoing connections", port)
		}
	}
	for _, in := range p.instances {
		add(in.app)
		add(in.mesh)
		add(in.admin)
		for _, u := range in.upstreams {
			add(u)
		}
	}
	for _, e := range p.edges {
		add(e.port)
		add(e.admin)
	}
	if len(used) != n {
		t.Errorf("%d ports for %d uses", len(used), n)
	}
	if len(p.edges) != 2 || len(p.of("orders", "v1")) != 2 || len(p.of("orders", "v2")) != 1 || len(p.of("orders", "")) != 3 {
		t.Errorf("edges %d, orders v1 %d, v2 %d", len(p.edges), len(p.of("orders", "v1")), len(p.of("orders", "v2")))
	}
}

func TestWrittenFilesAreGood(t *testing.T) {
	p, err := newPlan()
	if err != nil {
		t.Fatal(err)
	}
	defer p.ports.close()
	users, err := newIssuer()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := p.write(dir, "127.0.0.1:4999", users); err != nil {
		t.Fatal(err)
	}
	s, problems := catalog.LoadFile(filepath.Join(dir, "catalog.yaml"))
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	set, problems := policy.Load(filepath.Join(dir, "policies"))
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	if set.Mesh.Tracing == nil || set.Mesh.Tracing.Endpoint != "127.0.0.1:4999" {
		t.Errorf("spans go to %+v", set.Mesh.Tracing)
	}
	first := p.of("orders", "v1")[0]
	found := false
	for _, in := range s.Services[catalog.Name{Namespace: "default", Name: "orders"}].Instances {
		found = found || in.ID == first.id && int(in.Port) == first.app && int(in.Sidecar.Port) == first.mesh && in.Meta["version"] == "v1"
	}
	if !found {
		t.Errorf("%s is not in the catalog as planned", first.id)
	}
	// The policy that the tour adds belongs to the others.
	if err := os.WriteFile(filepath.Join(dir, "policies", "secret.yaml"), []byte(denySecret), 0o600); err != nil {
		t.Fatal(err)
	}
	if set, problems = policy.Load(filepath.Join(dir, "policies")); problems.Err() != nil || len(set.Authorization) != 1 {
		t.Fatalf("with the tour's policy: %v", problems.Err())
	}
	if info, err := os.Stat(filepath.Join(dir, "keys", "shop.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %v, %v", info.Mode(), err)
	}
}

func TestAppCallsOnAndHandsOnTheTrace(t *testing.T) {
	payments := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		(&App{Service: "payments"}).serve(w, r, http.DefaultClient)
	}))
	defer payments.Close()
	denied := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "RBAC: access denied", http.StatusForbidden)
	}))
	defer denied.Close()
	a := &App{Service: "orders", Instance: "orders-1", Calls: map[string]string{"/pay": payments.URL, "/steal": denied.URL, "/gone": "http://127.0.0.1:1"}}
	get := func(path string) (int, Answer) {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		a.serve(w, r, http.DefaultClient)
		var out Answer
		if err := json.NewDecoder(w.Body).Decode(&out); err != nil {
			t.Fatal(err)
		}
		return w.Code, out
	}
	if code, out := get("/pay/7"); code != 200 || out.Via == nil || out.Via.Service != "payments" || out.Via.Path != "/7" || traceID(out.Via.Headers["traceparent"]) != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("/pay/7: %d %+v %+v", code, out, out.Via)
	}
	if code, out := get("/steal"); code != 403 || out.Via.Status != 403 || out.Via.Error != "RBAC: access denied" {
		t.Errorf("/steal: %d %+v", code, out.Via)
	}
	if code, out := get("/gone"); code != 502 || out.Via.Error == "" {
		t.Errorf("/gone: %d %+v", code, out.Via)
	}
	if code, out := get("/"); code != 200 || out.Via != nil || out.Instance != "orders-1" {
		t.Errorf("/: %d %+v", code, out)
	}
}

func TestCounterSumsLabelsAndNothingElse(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("# TYPE rq counter\nrq{a=\"1\"} 3\nrq{a=\"2\"} 4\nrq_more{a=\"1\"} 50\nrq{p=\"admin\"} 60\n"))
	}))
	defer srv.Close()
	port := srv.Listener.Addr().String()[len("127.0.0.1:"):]
	if n, err := counter(context.Background(), atoi(t, port), "rq", ""); err != nil || n != 7 {
		t.Errorf("%v, %v; want 7", n, err)
	}
	if n, err := counter(context.Background(), atoi(t, port), "rq", `a="2`); err != nil || n != 4 {
		t.Errorf("of one label: %v, %v; want 4", n, err)
	}
	if _, err := counter(context.Background(), atoi(t, port), "none", ""); err == nil {
		t.Error("a metric that is not there was counted")
	}
}

func atoi(t *testing.T, s string) (n int) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestConnectedFindsASecondRoot(t *testing.T) {
	tree := []Span{{ID: "1"}, {ID: "2", Parent: "1"}, {ID: "3", Parent: "2"}}
	if err := connected(tree); err != nil {
		t.Error(err)
	}
	if err := connected(append(tree, Span{ID: "5", Parent: "4"})); err == nil {
		t.Error("two trees passed for one")
	}
}

func TestTraceID(t *testing.T) {
	for in, want := range map[string]string{"": "", "x": "", "00-ab-cd-01": "ab"} {
		if got := traceID(in); got != want {
			t.Errorf("traceID(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestCollectorKeepsSpansByTrace(t *testing.T) {
	c, err := newCollector("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	conn, err := grpc.NewClient(c.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = collectorv1.NewTraceServiceClient(conn).Export(t.Context(), &collectorv1.ExportTraceServiceRequest{ResourceSpans: []*tracev1.ResourceSpans{{
		Resource: &resourcev1.Resource{Attributes: []*commonv1.KeyValue{{Key: "service.name", Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: "orders"}}}}},
		ScopeSpans: []*tracev1.ScopeSpans{{Spans: []*tracev1.Span{
			{TraceId: bytes.Repeat([]byte{0xab}, 16), SpanId: []byte{1, 2, 3, 4, 5, 6, 7, 8}, Name: "ingress", EndTimeUnixNano: 2e6}}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	want := Span{Service: "orders", Name: "ingress", ID: "0102030405060708", Millis: 2}
	if got := c.trace(strings.Repeat("ab", 16)); len(got) != 1 || got[0] != want {
		t.Errorf("%+v; want %+v", got, want)
	}
}

func TestProcessEndIsToldWithItsLog(t *testing.T) {
	p, err := start(t.TempDir(), "sh", "/bin/sh", "-c", "echo no such luck; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	err = waitFor(t.Context(), p, "luck", func() error { return errors.New("not yet") })
	if err == nil || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("%v; want the end of the log", err)
	}
}

func TestFamilyStopsAllOfThem(t *testing.T) {
	var f family
	dir := t.TempDir()
	for i, script := range []string{"exec sleep 100", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"} {
		p, err := start(dir, fmt.Sprint("child", i), "/bin/sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		f.add(p)
	}
	err := waitFor(t.Context(), nil, "the one that does not listen", func() error {
		if p := f.all()[1]; p.tail() != "deaf" {
			return errors.New(p.tail())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	f.stop()
	for _, p := range f.all() {
		if p.alive() {
			t.Error("a child lives on")
		}
	}
	if took := time.Since(begin); took > 2*grace {
		t.Errorf("it took %s", took)
	}
}

func TestConsulThatIsNotThere(t *testing.T) {
	_, err := findConsul(filepath.Join(t.TempDir(), "consul"))
	if err == nil || !strings.Contains(err.Error(), "CONSUL=") {
		t.Errorf("%v; want a hint at CONSUL=", err)
	}
}

func TestWalkCountsWhatHeldAndGoesOn(t *testing.T) {
	var out bytes.Buffer
	rows := []row{
		{"one", func(context.Context) (string, error) { return "seen", nil }},
		{"two", func(context.Context) (string, error) { return "", errors.New("it did not hold") }},
		{"three", func(context.Context) (string, error) { return "seen too", nil }},
	}
	if held := walk(t.Context(), &out, rows); held != 2 {
		t.Errorf("%d held; want 2", held)
	}
	lines := strings.Split(out.String(), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[1], "FAILED  two ") || !strings.HasSuffix(lines[1], "it did not hold") || !strings.HasPrefix(lines[2], "ok      three ") {
		t.Errorf("%q", lines)
	}
}

// The tour has ten commands, each of one line, so that it can be copied from a terminal.
func TestTourHasTenCommandsOfOneLine(t *testing.T) {
	p, err := newPlan()
	if err != nil {
		t.Fatal(err)
	}
	defer p.ports.close()
	s := &shop{plan: p, dir: "/tmp/demo"}
	child, err := start(t.TempDir(), "child", "/bin/sh", "-c", "exit 0")
	if err != nil {
		t.Fatal(err)
	}
	<-child.done
	for _, in := range p.instances {
		in.process = child
	}
	tries := s.tries()
	if len(tries) != 10 {
		t.Errorf("%d commands", len(tries))
	}
	for _, c := range tries {
		if strings.Contains(c.command, "\n") {
			t.Errorf("%s: more than one line", c.what)
		}
	}
	if picture := s.picture(); strings.Count(picture, "sidecar :") != len(p.instances) || !strings.Contains(picture, "payments (denied)") || strings.Contains(picture, "orders (denied)") {
		t.Errorf("%s", picture)
	}
}

func TestPortsAreHeldUntilTheirProgramStarts(t *testing.T) {
	var g portGiver
	defer g.close()
	port := g.next()
	if g.err != nil {
		t.Fatal(g.err)
	}
	if l, err := net.Listen("tcp", local(port)); err == nil {
		l.Close()
		t.Error("somebody else can take the port")
	}
	if err := listening(local(port))(); err == nil {
		t.Error("a connection is accepted, though nobody listens")
	}
	g.release("demo", "--call", "/pay=http://"+local(port), "--admin", ":")
	l, err := net.Listen("tcp", local(port))
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	l.Close()
}
