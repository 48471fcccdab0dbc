package load

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// The test binary is the process of traffic, too.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "load" {
		os.Exit(Main(os.Args[2]))
	}
	os.Exit(m.Run())
}

func TestPercentile(t *testing.T) {
	up := func(n int) []int64 {
		v := make([]int64, n)
		for i := range v {
			v[i] = int64(i) + 1
		}
		return v
	}
	for _, c := range []struct {
		name   string
		values []int64
		p      float64
		want   int64
	}{
		{"of none there is none", nil, 50, 0},
		{"of one it is that", up(1), 99.9, 1},
		{"the median of two is the lower", up(2), 50, 1},
		{"99 of 100", up(100), 99, 99},
		{"99.9 of 1,000", up(1000), 99.9, 999},
		{"99.9 of 1,001 is the next", up(1001), 99.9, 1000},
		{"100 is the greatest", up(1000), 100, 1000},
		{"0 is the least", up(10), 0, 1},
	} {
		if got := Percentile(c.values, c.p); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestTheScheduleDoesNotDrift(t *testing.T) {
	for _, rate := range []int{1, 3, 7, 5000, 9999} {
		s := schedule{start: 1e9, rate: rate, n: 10 * rate}
		for second := range 10 {
			if got, want := s.due(second*rate), int64(second+1)*1e9; got != want {
				t.Errorf("rate %d: request %d is due at %d, want %d", rate, second*rate, got, want)
			}
		}
		for i := 1; i < s.n; i++ {
			if gap := s.due(i) - s.due(i-1); gap < 1e9/int64(rate) || gap > 1e9/int64(rate)+1 {
				t.Fatalf("rate %d: %d ns between requests %d and %d", rate, gap, i-1, i)
			}
		}
	}
}

func TestALateAnswerIsCountedFromWhenTheRequestWasDue(t *testing.T) {
	var r Result
	o := &open{r: &r, under: map[*asker]int{}, schedule: schedule{start: monotonic() - int64(time.Second), rate: 10, n: 10}}
	a := &asker{}
	// Request 0 was due a second ago and request 5 half a second ago, whenever they were sent.
	for _, i := range []int{0, 5} {
		o.under[a] = i
		o.over(a)
	}
	o.lost(9, o.due(9)+7)
	if o.samples[0] < 1e9 || o.samples[1] < 5e8 || o.samples[1] >= o.samples[0] || o.samples[2] != 7 || r.Failed != 1 {
		t.Errorf("latencies %v, %d failed", o.samples, r.Failed)
	}
	l := summary(slices.Clone(o.samples), []int64{3, 1, 2})
	if l.Max != o.samples[0] || l.P50 != o.samples[1] || l.Lag != 3 {
		t.Errorf("%+v of %v", l, o.samples)
	}
}

// TestMessagesAreFoundHoweverTheyAreCut feeds a stream of messages in pieces of every size.
func TestMessagesAreFoundHoweverTheyAreCut(t *testing.T) {
	stream := []byte("HTTP/1.1 200 OK\r\nServer: x\r\nCONTENT-length:  5 \r\n\r\nhello" +
		"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n" +
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n" +
		"HTTP/1.1 200 OK\r\nx-content-length: 9\r\nContent-Length: 12\r\nA: b\r\n\r\n\r\n\r\nHTTP/1.1")
	want := []string{"HTTP/1.1 200 OK", "HTTP/1.1 503 Busy", "GET / HTTP/1.1", "HTTP/1.1 200 OK"}
	for size := 1; size <= len(stream); size++ {
		var m message
		var begun []string
		ended := 0
		for piece := range slices.Chunk(stream, size) {
			if err := m.feed(bytes.Clone(piece), func() error { begun = append(begun, string(m.first)); return nil }, func() { ended++ }); err != nil {
				t.Fatalf("pieces of %d: %v", size, err)
			}
		}
		if !slices.Equal(begun, want) || ended != len(want) {
			t.Fatalf("pieces of %d: %q, %d ended", size, begun, ended)
		}
	}
}

func TestUnreadableMessages(t *testing.T) {
	for name, text := range map[string]string{
		"chunked":           "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
		"length is no size": "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
		"no end":            strings.Repeat("x", maxHead+1),
	} {
		var m message
		if err := m.feed([]byte(text), func() error { return nil }, func() {}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFramesAreFoundHoweverTheyAreCut(t *testing.T) {
	stream := []byte(http2.ClientPreface)
	stream = appendSettings(stream, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 70000})
	stream = appendWindow(stream, 0, 5)
	stream = appendFrame(stream, http2.FrameData, http2.FlagDataPadded|http2.FlagDataEndStream, 3, []byte("\x02hello00"))
	for size := 1; size <= len(stream); size++ {
		f := frames{preface: len(http2.ClientPreface)}
		var got []string
		for piece := range slices.Chunk(stream, size) {
			if err := f.feed(piece, func(f frame) error {
				got = append(got, fmt.Sprintf("%v %d %d", f.kind, f.stream, f.size()))
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		if want := []string{"SETTINGS 0 6", "WINDOW_UPDATE 0 4", "DATA 3 5"}; !slices.Equal(got, want) {
			t.Fatalf("pieces of %d: %q, want %q", size, got, want)
		}
	}
	if err := new(frames).feed([]byte{255, 255, 255, 0, 0, 0, 0, 0, 0}, func(frame) error { return nil }); err == nil {
		t.Error("a frame of 16 MiB is taken")
	}
}

// TestTheFieldsOfAResponse: what was written by hand is what a decoder reads.
func TestTheFieldsOfAResponse(t *testing.T) {
	fields, err := hpack.NewDecoder(4096, nil).DecodeFull(replyBlock)
	if err != nil || len(fields) != 2 || fields[0].Name != ":status" || fields[0].Value != "200" || fields[1].Name != "content-length" || fields[1].Value != fmt.Sprint(h2Body) {
		t.Errorf("%v, %v", fields, err)
	}
}

func TestTheBackendHoldsBackWhatTheWindowDoesNotTake(t *testing.T) {
	a := &h2answerer{body: body(h2Body), room: h2Body + 1}
	for id := uint32(1); id < 7; id += 2 {
		a.reply(id)
	}
	if len(a.blocked) != 2 || a.room != 1 {
		t.Fatalf("%d wait, window of %d", len(a.blocked), a.room)
	}
	if err := a.feed(appendWindow(nil, 0, h2Body), a.frame); err != nil || !slices.Equal(a.blocked, []uint32{5}) || a.room != 1 {
		t.Errorf("%v wait, window of %d, %v", a.blocked, a.room, err)
	}
}

func TestErrorsAreCountedByKind(t *testing.T) {
	var r Result
	for i := range 100 {
		r.fail(fmt.Sprint("kind ", i%(maxKinds+5)))
	}
	total := 0
	for _, n := range r.Errors {
		total += n
	}
	if r.Failed != 100 || total != 100 || len(r.Errors) != maxKinds+1 || r.Errors["others"] == 0 {
		t.Errorf("%+v", r)
	}
	err := &net.OpError{Op: "read", Addr: &net.TCPAddr{Port: rand.IntN(60000)}, Err: errors.New("reset")}
	if got := kind(err); got != "read: reset" {
		t.Errorf("%q", got)
	}
}

func TestSpecsThatAreRefused(t *testing.T) {
	for _, arg := range []string{"", "{}", `{"Kind":"http1"}`, `{"Kind":"nope","Seconds":1}`, `{"Kind":"http1","Seconds":1e9}`} {
		if err := run(arg); err == nil {
			t.Errorf("%q: no error", arg)
		}
	}
}

// TestTraffic has each generator ask its backend with no proxy between.
func TestTraffic(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := func(kind string) string {
		t.Helper()
		cmd := Command(t.Context(), self, Spec{Kind: kind, Seconds: 60})
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
		line := make([]byte, 64)
		n, err := stdout.Read(line)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(line[:n]))
	}
	web, h2, rpc, hole := start("http1-backend"), start("http2-backend"), start("grpc-backend"), start("sink")
	for _, c := range []struct {
		name  string
		spec  Spec
		fails bool
	}{
		{"small bodies", Spec{Kind: "http1", Address: web, Connections: 2}, false},
		{"large bodies", Spec{Kind: "http1", Address: web, Connections: 2, Path: "/1m"}, false},
		{"request bodies", Spec{Kind: "http1", Address: web, Connections: 2, Body: 64 << 10}, false},
		{"a backend that fails", Spec{Kind: "http1", Address: web, Connections: 2, Path: Flaky}, true},
		{"requests on time", Spec{Kind: "latency", Address: web, Connections: 4, Rate: 500}, false},
		{"HTTP/2", Spec{Kind: "http2", Address: h2, Connections: 2, Streams: 8}, false},
		{"gRPC calls", Spec{Kind: "grpc-unary", Address: rpc, Connections: 1, Streams: 2}, false},
		{"gRPC server streams", Spec{Kind: "grpc-server", Address: rpc, Connections: 1, Streams: 2}, false},
		{"gRPC both ways", Spec{Kind: "grpc-bidi", Address: rpc, Connections: 1, Streams: 2}, false},
		{"new connections", Spec{Kind: "connect", Address: web, Connections: 2}, false},
		{"idle connections", Spec{Kind: "idle", Address: web, Connections: 20}, false},
		{"clients that leave", Spec{Kind: "quit", Address: web, Path: "/1m", Connections: 2}, false},
		{"one stream", Spec{Kind: "send", Address: hole, Connections: 1}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.Seconds = 0.2
			r, err := Run(t.Context(), self, c.spec)
			if err != nil || r.Done == 0 || (r.Failed > 0) != c.fails {
				text, _ := json.Marshal(r)
				t.Fatalf("%s, %v", text, err)
			}
			if c.spec.Rate > 0 && (r.Done != 100 || r.Latency == nil || r.Latency.P50 <= 0 || r.Latency.P50 > r.Latency.P999 || r.Latency.P999 > r.Latency.Max) {
				t.Errorf("%d requests, %+v", r.Done, r.Latency)
			}
		})
	}
}
