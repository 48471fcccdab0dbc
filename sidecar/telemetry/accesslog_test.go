package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/stream"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func packed(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// fileConfig is an access log of that path, its format as JSON of the proto ("" is Envoy's default).
func fileConfig(t testing.TB, path, format string) *accesslogv3.AccessLog {
	t.Helper()
	c := &filelogv3.FileAccessLog{Path: path}
	if format != "" {
		var f corev3.SubstitutionFormatString
		if err := protojson.Unmarshal([]byte(format), &f); err != nil {
			t.Fatal(err)
		}
		c.AccessLogFormat = &filelogv3.FileAccessLog_LogFormat{LogFormat: &f}
	}
	return &accesslogv3.AccessLog{Name: "file", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: packed(t, c)}}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFileAccessLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	if err := os.WriteFile(path, []byte("from before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	logs := NewLogs(quiet)
	var want strings.Builder
	want.WriteString("from before\n")
	for format, line := range map[string]string{
		"": `[2026-03-09T08:07:06.005Z] "GET /now?x=1 HTTP/2" 503 UF,URX 11 22 26 - "-" "curl "8"" "id-1" "shop.example" "-"` + "\n",
		`{"text_format_source": {"inline_string": "%RESPONSE_CODE% %REQ(NO)%\n"}}`:                            "503 -\n",
		`{"text_format": "%RESPONSE_CODE%\n"}`:                                                                "503\n",
		`{"json_format": {"c": "%RESPONSE_CODE%"}}`:                                                           `{"c":503}` + "\n",
		`{"json_format": {"c": "%RESPONSE_CODE%", "n": "%REQ(NO)%"}, "omit_empty_values": true}`:              `{"c":503}` + "\n",
		`{"text_format_source": {"inline_string": "%RESPONSE_CODE% %REQ(NO)%\n"}, "omit_empty_values": true}`: "503 \n",
	} {
		// All to one file, written by one writer, in order.
		l, err := logs.Compile(fileConfig(t, path, format))
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		l.Log(finished())
		want.WriteString(line)
	}
	if len(logs.files) != 1 {
		t.Errorf("%d writers of one file", len(logs.files))
	}
	logs.Close()
	if got := read(t, path); got != want.String() {
		t.Errorf("%s\nwant\n%s", got, want.String())
	}
	logs.Close()
	if _, err := logs.Compile(fileConfig(t, path, "")); err == nil {
		t.Error("a log was opened after Close")
	}
}

func TestDeprecatedFormatsOfFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	logs := NewLogs(quiet)
	for _, c := range []string{`{"format": "a %RESPONSE_CODE%\n"}`, `{"json_format": {"a": "%RESPONSE_CODE%"}}`, `{"typed_json_format": {"b": "%RESPONSE_CODE%"}}`} {
		m := &filelogv3.FileAccessLog{}
		if err := protojson.Unmarshal([]byte(c), m); err != nil {
			t.Fatal(err)
		}
		m.Path = path
		l, err := logs.Compile(&accesslogv3.AccessLog{ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: packed(t, m)}})
		if err != nil {
			t.Fatal(err)
		}
		l.Log(finished())
	}
	logs.Close()
	if got, want := read(t, path), "a 503\n{\"a\":503}\n{\"b\":503}\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestNewLogFilesAreNotForEverybody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	logs := NewLogs(quiet)
	defer logs.Close()
	if _, err := logs.Compile(fileConfig(t, path, "")); err != nil {
		t.Fatal(err)
	}
	i, err := os.Stat(path)
	if err != nil || i.Mode().Perm()&0o007 != 0 {
		t.Errorf("%v, %v", i.Mode(), err)
	}
}

func TestAccessLogsThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	logs := NewLogs(quiet)
	defer logs.Close()
	for name, x := range map[string]struct {
		cfg  *accesslogv3.AccessLog
		want string
	}{
		"directory":    {fileConfig(t, dir, ""), dir},
		"no directory": {fileConfig(t, filepath.Join(dir, "no", "such"), ""), "no such file"},
		"a named pipe that nobody reads must not hang the configuration": {fileConfig(t, pipe, ""), "pipe"},
		"operator":          {fileConfig(t, filepath.Join(dir, "a"), `{"text_format_source": {"inline_string": "%NOPE%"}}`), "%NOPE% is not known"},
		"file as format":    {fileConfig(t, filepath.Join(dir, "a"), `{"text_format_source": {"filename": "/etc/passwd"}}`), "only inline_string"},
		"content only":      {fileConfig(t, filepath.Join(dir, "a"), `{"text_format_source": {"inline_string": "x"}, "formatters": [{"name": "f", "typed_config": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}}]}`), "formatters"},
		"another extension": {&accesslogv3.AccessLog{Name: "als", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: packed(t, &corev3.Address{})}}, "is not implemented"},
		"filter":            {&accesslogv3.AccessLog{Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_TraceableFilter{}}}, "is not implemented"},
	} {
		if l, err := logs.Compile(x.cfg); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, %v; want %q", name, l, err, x.want)
		}
	}
}

func TestStandardStreams(t *testing.T) {
	logs := NewLogs(quiet)
	for path, m := range map[string]proto.Message{"/dev/stdout": &streamlogv3.StdoutAccessLog{}, "/dev/stderr": &streamlogv3.StderrAccessLog{}} {
		if _, err := logs.Compile(&accesslogv3.AccessLog{ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: packed(t, m)}}); err != nil || logs.files[path] == nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	logs.Close()
	if _, err := os.Stdout.Stat(); err != nil {
		t.Errorf("standard output was closed: %v", err)
	}
}

func comparison(op accesslogv3.ComparisonFilter_Op, value uint32) *accesslogv3.ComparisonFilter {
	return &accesslogv3.ComparisonFilter{Op: op, Value: &corev3.RuntimeUInt32{DefaultValue: value}}
}

func TestFilters(t *testing.T) {
	status := func(op accesslogv3.ComparisonFilter_Op, value uint32) *accesslogv3.AccessLogFilter {
		return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: comparison(op, value)}}}
	}
	duration := func(op accesslogv3.ComparisonFilter_Op, value uint32) *accesslogv3.AccessLogFilter {
		return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_DurationFilter{DurationFilter: &accesslogv3.DurationFilter{Comparison: comparison(op, value)}}}
	}
	flags := func(list ...string) *accesslogv3.AccessLogFilter {
		return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: list}}}
	}
	sampled := func(n uint32, of typev3.FractionalPercent_DenominatorType) *accesslogv3.AccessLogFilter {
		return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_RuntimeFilter{RuntimeFilter: &accesslogv3.RuntimeFilter{PercentSampled: &typev3.FractionalPercent{Numerator: n, Denominator: of}}}}
	}
	and := func(list ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
		return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{AndFilter: &accesslogv3.AndFilter{Filters: list}}}
	}
	or := func(list ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
		return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{OrFilter: &accesslogv3.OrFilter{Filters: list}}}
	}
	const eq, ge, le, ne = accesslogv3.ComparisonFilter_EQ, accesslogv3.ComparisonFilter_GE, accesslogv3.ComparisonFilter_LE, accesslogv3.ComparisonFilter_NE
	yes, no, unknown := status(eq, 503), status(eq, 200), &accesslogv3.AccessLogFilter{}
	for i, x := range []struct {
		f    *accesslogv3.AccessLogFilter
		want bool
	}{
		{yes, true}, {no, false}, {status(ge, 503), true}, {status(ge, 504), false}, {status(le, 503), true}, {status(le, 502), false}, {status(ne, 503), false}, {status(ne, 1), true},
		{duration(ge, 26), true}, {duration(ge, 27), false},
		{flags(), true}, {flags("UF"), true}, {flags("NR", "URX"), true}, {flags("NR"), false},
		{sampled(100, typev3.FractionalPercent_HUNDRED), true}, {sampled(0, typev3.FractionalPercent_MILLION), false}, {sampled(1000000, typev3.FractionalPercent_MILLION), true},
		{and(yes, yes), true}, {and(yes, no), false}, {or(no, yes), true}, {or(no, no), false}, {and(or(no, yes), yes), true},
	} {
		f, err := compileFilter(x.f)
		if err != nil {
			t.Fatal(err)
		}
		if f(finished()) != x.want {
			t.Errorf("filter %d, %v: want %v", i, x.f, x.want)
		}
	}
	if f, err := compileFilter(flags()); err != nil || f(&stream.Stream{}) {
		t.Errorf("no flags, and a filter for any: %v", err)
	}
	for _, bad := range []*accesslogv3.AccessLogFilter{and(yes, unknown), or(unknown, yes)} {
		if _, err := compileFilter(bad); err == nil {
			t.Error("an unknown filter inside another one was taken")
		}
	}
	path := filepath.Join(t.TempDir(), "l")
	logs := NewLogs(quiet)
	cfg := fileConfig(t, path, "")
	cfg.Filter = no
	l, err := logs.Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.Log(finished())
	logs.Close()
	if read(t, path) != "" {
		t.Error("a line was written that the filter does not want")
	}
}

// disk is a file of tests.
type disk struct {
	mu     sync.Mutex
	writes [][]byte
	fail   atomic.Bool
	gate   chan struct{} // not nil: each write waits for it
	closed bool
}

func (d *disk) Write(p []byte) (int, error) {
	if d.gate != nil {
		<-d.gate
	}
	if d.fail.Load() {
		return 0, errors.New("no space left on device")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes = append(d.writes, bytes.Clone(p))
	return len(p), nil
}

func (d *disk) Close() error { d.closed = true; return nil }

func (d *disk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.writes)
}

func (d *disk) content() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return string(bytes.Join(d.writes, nil))
}

func startLog(out io.WriteCloser, log *slog.Logger) (l *logFile, end func()) {
	logs := NewLogs(log)
	l = &logFile{path: "test", out: out, log: log, wake: make(chan struct{}, 1), full: make(chan struct{}, 1), stop: make(chan struct{}), all: &logs.dropped}
	logs.files["test"] = l
	logs.wg.Go(l.run)
	return l, logs.Close
}

// constant is a line of its own.
type constant string

func (c constant) Append(dst []byte, _ *stream.Stream) []byte { return append(dst, c...) }

func TestLinesAreWrittenTogetherAndSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		l, end := startLog(d, quiet)
		s := finished()
		for range 10 {
			l.write(constant("line\n"), s)
		}
		synctest.Wait()
		if d.count() != 0 {
			t.Error("a line was written before others could join it")
		}
		time.Sleep(logDelay)
		synctest.Wait()
		if d.count() != 1 || d.content() != strings.Repeat("line\n", 10) {
			t.Errorf("%d writes: %q", d.count(), d.content())
		}
		time.Sleep(time.Minute)
		l.write(constant("later\n"), s)
		time.Sleep(logDelay)
		synctest.Wait()
		if !strings.HasSuffix(d.content(), "later\n") {
			t.Error("a line after a pause is not written")
		}
		// A full batch does not wait.
		l.write(constant(strings.Repeat("x", logBatch)), s)
		synctest.Wait()
		if d.count() != 3 {
			t.Errorf("%d writes after a full batch", d.count())
		}
		l.write(constant("last\n"), s)
		end()
		if !strings.HasSuffix(d.content(), "last\n") || !d.closed {
			t.Error("Close lost a line, or left the file open")
		}
		l.write(constant("too late\n"), s)
		if l.dropped.Load() != 1 {
			t.Error("a line after Close is not counted as lost")
		}
	})
}

func TestASlowDiskDropsLinesAndBoundsMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told bytes.Buffer
		d := &disk{gate: make(chan struct{})}
		l, end := startLog(d, slog.New(slog.NewTextHandler(&told, nil)))
		s, line := finished(), constant(strings.Repeat("y", 1023)+"\n")
		for range 3 * logQueue / 1024 {
			l.write(line, s)
		}
		if n := l.waiting.Load(); n > logQueue+2048 {
			t.Errorf("%d bytes wait", n)
		}
		if l.dropped.Load() == 0 {
			t.Error("nothing was dropped")
		}
		close(d.gate)
		end()
		if !strings.Contains(told.String(), "were dropped") {
			t.Errorf("the operator was told %q", told.String())
		}
		if n := l.waiting.Load(); n != 0 || len(d.content())%1024 != 0 {
			t.Errorf("%d bytes wait, %d written", n, len(d.content()))
		}
	})
}

func TestADiskThatFailsIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told bytes.Buffer
		d := &disk{}
		l, end := startLog(d, slog.New(slog.NewTextHandler(&told, nil)))
		d.fail.Store(true)
		for range 5 {
			l.write(constant("a\n"), finished())
			time.Sleep(time.Second)
		}
		d.fail.Store(false)
		l.write(constant("b\n"), finished())
		time.Sleep(time.Second)
		d.fail.Store(true)
		l.write(constant("c\n"), finished())
		end()
		if n := strings.Count(told.String(), "no space left"); n != 2 || d.content() != "b\n" {
			t.Errorf("told %d times, written %q", n, d.content())
		}
	})
}

func TestAReaderThatIsStuckDoesNotKeepTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told bytes.Buffer
		d := &disk{gate: make(chan struct{})}
		l, end := startLog(d, slog.New(slog.NewTextHandler(&told, nil)))
		l.write(constant("never read\n"), finished())
		time.Sleep(logDelay)
		synctest.Wait() // the writer waits for the disk
		end()
		if !strings.Contains(told.String(), "lost_bytes=11") {
			t.Errorf("the operator was told %q", told.String())
		}
		close(d.gate)
		synctest.Wait()
	})
}

func TestLinesOfADiskThatFailsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		d.fail.Store(true)
		l, end := startLog(d, quiet)
		for range 3 {
			l.write(constant("a\n"), finished())
		}
		end()
		if n := l.all.Load(); n != 3 {
			t.Errorf("%d lines are counted as lost, want 3", n)
		}
	})
}

func TestAfterARotationLinesGoToTheNewFile(t *testing.T) {
	dir := t.TempDir()
	path, old := filepath.Join(dir, "access.log"), filepath.Join(dir, "access.log.1")
	logs := NewLogs(quiet)
	l, err := logs.Compile(fileConfig(t, path, `{"text_format_source": {"inline_string": "%RESPONSE_CODE%\n"}}`))
	if err != nil {
		t.Fatal(err)
	}
	l.Log(finished())
	if err := os.Rename(path, old); err != nil {
		t.Fatal(err)
	}
	logs.Reopen()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the path was not opened again")
		}
	}
	l.Log(finished())
	logs.Close()
	if a, b := read(t, old), read(t, path); a != "503\n" || b != "503\n" {
		t.Errorf("%q in the old file and %q in the new one, want a line each", a, b)
	}
}

func TestWorkersLogAtOnce(t *testing.T) {
	const workers, lines = 4, 500
	d := &disk{}
	l, end := startLog(d, quiet)
	var wg sync.WaitGroup
	for i := range workers {
		w, err := loop.New(i)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		wg.Go(func() {
			s := finished()
			s.Conn.Worker = w
			for n := range lines {
				l.write(constant(fmt.Sprintf("%d %d\n", i, n)), s)
			}
		})
	}
	wg.Wait()
	end()
	next := [workers]int{}
	for line := range strings.Lines(d.content()) {
		var w, n int
		if _, err := fmt.Sscanf(line, "%d %d\n", &w, &n); err != nil || n != next[w] {
			t.Fatalf("%q, expected line %d of its worker (%v)", line, next[w], err)
		}
		next[w]++
	}
	if next != [workers]int{lines, lines, lines, lines} {
		t.Errorf("%v", next)
	}
}

func TestLoggingDoesNotAllocate(t *testing.T) {
	logs := NewLogs(quiet)
	defer logs.Close()
	l, err := logs.Compile(fileConfig(t, os.DevNull, ""))
	if err != nil {
		t.Fatal(err)
	}
	s := finished()
	for range 1000 {
		l.Log(s)
	}
	// The writer runs beside, with the memory that went round before.
	if n := testing.AllocsPerRun(1000, func() { l.Log(s) }); n != 0 {
		t.Errorf("%v allocations for a line", n)
	}
}

func BenchmarkLog(b *testing.B) {
	logs := NewLogs(quiet)
	defer logs.Close()
	l, err := logs.Compile(fileConfig(b, os.DevNull, ""))
	if err != nil {
		b.Fatal(err)
	}
	s := finished()
	b.ReportAllocs()
	for b.Loop() {
		l.Log(s)
	}
}
