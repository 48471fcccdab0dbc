package http2

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sallyport/sidecar/message"
)

func newDecoder() *hpack.Decoder { return hpack.NewDecoder(4096, nil) }

func newEncoder(w io.Writer) *hpack.Encoder { return hpack.NewEncoder(w) }

// client is a client's connection whose peer is a framer of x/net.
type client struct {
	server // for its framer; its own Conn is not used
	c      *Conn
}

func newTestClient(t testing.TB, o *Options, settings ...http2.Setting) *client {
	k := &client{}
	k.t, k.out = t, newSink()
	k.f = http2.NewFramer(&k.in, nil)
	k.f.AllowIllegalWrites = true
	k.enc = hpack.NewEncoder(&k.block)
	k.c = NewClient(k.out, o, &k.hooks)
	k.server.c = k.c
	k.c.Start()
	if settings != nil {
		_ = k.f.WriteSettings(settings...)
		_ = k.f.WriteSettingsAck()
		k.send()
	}
	k.frames()
	return k
}

func (k *client) open(h *message.Head, end bool) *tape {
	r := &tape{t: k.t}
	s := k.c.Open(r)
	if s == nil {
		k.t.Fatal("no stream")
	}
	r.s = s.(*Stream)
	s.Head(h, end)
	return r
}

var noSettings = []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 100}}

// TestResponses answers a request; want is what the receiver gets, where it ends with "!" by a stream error.
func TestResponses(t *testing.T) {
	for _, c := range []struct {
		name, method string
		send         func(k *client)
		want         string
	}{
		{"200", "GET", func(k *client) { k.headers(1, true, ":status=200", "x=y") }, "[:status=200 x=y]."},
		{"content", "GET", func(k *client) { k.headers(1, false, ":status=200", "content-length=2"); k.data(1, true, "hi") }, `[:status=200 content-length=2]"hi".`},
		{"content too long", "GET", func(k *client) { k.headers(1, false, ":status=200", "content-length=1"); k.data(1, true, "hi") }, "[:status=200 content-length=1]!"},
		{"no content that was promised", "GET", func(k *client) { k.headers(1, true, ":status=200", "content-length=1") }, "!"},
		{"trailers", "GET", func(k *client) { k.headers(1, false, ":status=200"); k.headers(1, true, "a=b") }, "[:status=200]+[a=b]."},
		{"HEAD with a length", "HEAD", func(k *client) { k.headers(1, true, ":status=200", "content-length=9") }, "[:status=200 content-length=9]."},
		{"HEAD with an empty frame", "HEAD", func(k *client) { k.headers(1, false, ":status=200", "content-length=9"); k.data(1, true, "") }, "[:status=200 content-length=9]."},
		{"HEAD with content", "HEAD", func(k *client) { k.headers(1, false, ":status=200"); k.data(1, true, "x") }, "[:status=200]!"},
		{"304 with a length", "GET", func(k *client) { k.headers(1, true, ":status=304", "content-length=9") }, "[:status=304 content-length=9]."},
		{"304 with content", "GET", func(k *client) { k.headers(1, false, ":status=304"); k.data(1, true, "x") }, "[:status=304]!"},
		{"204 with content", "GET", func(k *client) { k.headers(1, false, ":status=204"); k.data(1, true, "x") }, "[:status=204]!"},
		{"204 with a length", "GET", func(k *client) { k.headers(1, true, ":status=204", "content-length=9") }, "!"},
		{"204 with length 0", "GET", func(k *client) { k.headers(1, true, ":status=204", "content-length=0") }, "[:status=204]."},
		{"1xx before", "GET", func(k *client) { k.headers(1, false, ":status=103", "a=b"); k.headers(1, true, ":status=200") }, "[:status=103 a=b][:status=200]."},
		{"1xx that ends", "GET", func(k *client) { k.headers(1, true, ":status=103") }, "!"},
		{"101", "GET", func(k *client) { k.headers(1, false, ":status=101") }, "!"},
		{"17 informational heads", "GET", func(k *client) {
			for range 17 {
				k.headers(1, false, ":status=103")
			}
		}, strings.Repeat("[:status=103]", 16) + "!"},
		{"no status", "GET", func(k *client) { k.headers(1, true, "a=b") }, "!"},
		{"a status of two digits", "GET", func(k *client) { k.headers(1, true, ":status=20") }, "!"},
		{"a status below 100", "GET", func(k *client) { k.headers(1, true, ":status=099") }, "!"},
		{"a request's pseudo-header field", "GET", func(k *client) { k.headers(1, true, ":status=200", ":path=/") }, "!"},
		{"content before the head", "GET", func(k *client) { k.data(1, false, "x") }, "!"},
		{"content after a 1xx head only", "GET", func(k *client) { k.headers(1, false, ":status=103"); k.data(1, false, "x") }, "[:status=103]!"},
		{"connection", "GET", func(k *client) { k.headers(1, true, ":status=200", "connection=close") }, "!"},
		{"CONNECT", "CONNECT", func(k *client) { k.headers(1, false, ":status=200", "content-length=3"); k.data(1, true, "tunnel") }, `[:status=200]"tunnel".`},
		{"CONNECT refused", "CONNECT", func(k *client) { k.headers(1, false, ":status=403", "content-length=2"); k.data(1, true, "no") }, `[:status=403 content-length=2]"no".`},
	} {
		k := newTestClient(t, nil, noSettings...)
		r := k.open(head(":method="+c.method, ":scheme=http", ":authority=h", ":path=/"), false)
		k.frames()
		c.send(k)
		want := strings.ReplaceAll(c.want, "!", "!protocol error")
		if got := r.String(); got != want || k.err != nil {
			t.Errorf("%s: %s, %v", c.name, got, k.err)
		}
		if bad := strings.HasPrefix(k.frames(), "RST_STREAM 1 "); bad != strings.HasSuffix(c.want, "!") {
			t.Errorf("%s: stream error: %v", c.name, bad)
		}
	}
}

func TestRequestHeads(t *testing.T) {
	k := newTestClient(t, nil, noSettings...)
	dec := newDecoder()
	for _, c := range []struct {
		h    *message.Head
		want string
	}{
		{get, ":method=GET :scheme=https :path=/ :authority=h.example"},
		{head(":method=GET", ":path=/", "host=h", "te=trailers", "connection=te", "keep-alive=x", "x=y"), ":method=GET :scheme=http :path=/ :authority=h te=trailers x=y"},
		{head(":method=GET", ":path=/", "te=gzip", "transfer-encoding=chunked", "proxy-connection=x", "http2-settings=x"), ":method=GET :scheme=http :path=/"},
		{head(":method=CONNECT", ":authority=h:1", "content-length=0"), ":method=CONNECT :authority=h:1"},
	} {
		r := k.open(c.h, false)
		if got := describe(t, k.out.take(), dec); got != fmt.Sprintf("HEADERS %d %s", r.s.ID(), c.want) {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
}

func TestAnUpgradeWaitsForSettings(t *testing.T) {
	ws := head(":method=GET", ":scheme=https", ":authority=h", ":path=/ws", "upgrade=websocket", "connection=upgrade", "sec-websocket-key=k")
	k := newTestClient(t, nil)
	r := k.open(ws, false)
	r.s.Data([]byte("early"), false)
	k.open(get, true)
	k.want("HEADERS 1 end")
	_ = k.f.WriteSettings(http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
	k.send()
	if got := k.frames(); got != "SETTINGS ack=true\nHEADERS 3\nDATA 3 5" {
		t.Error(got)
	}
	k.headers(3, false, ":status=200", "sec-websocket-accept=x")
	k.data(3, true, "hi")
	if got := r.String(); got != `[:status=101 sec-websocket-accept=x upgrade=websocket connection=upgrade]"hi".` {
		t.Error(got)
	}
	r.s.Data(nil, true)
	if k.want("DATA 3 0 end"); k.c.Active() != 1 {
		t.Error(k.c.Active())
	}

	k = newTestClient(t, nil)
	r = k.open(ws, false)
	_ = k.f.WriteSettings()
	k.send()
	if r.reset != message.LocalReset || k.c.Active() != 0 {
		t.Error("a server that takes no upgrades was sent one")
	}
	k.want("SETTINGS ack=true")
}

func TestGoAwayAndRefused(t *testing.T) {
	k := newTestClient(t, nil, noSettings...)
	told := 0
	k.drains = func() { told++ }
	a, b, c := k.open(get, true), k.open(get, true), k.open(get, true)
	idle := &tape{t: t}
	late := k.c.Open(idle)
	_ = k.f.WriteRSTStream(3, http2.ErrCodeRefusedStream)
	_ = k.f.WriteGoAway(1, http2.ErrCodeNo, nil)
	k.send()
	if a.reset != 0 || b.reset != message.Refused || c.reset != message.Refused || idle.reset != message.Refused || told != 1 {
		t.Error(a.reset, b.reset, c.reset, idle.reset, told)
	}
	late.Head(get, true) // nothing comes of it
	k.headers(1, true, ":status=200")
	if a.String() != "[:status=200]." || k.c.Active() != 0 || k.c.Capacity() != 0 {
		t.Error(a, k.c.Active())
	}
	if k.c.Open(a) != nil {
		t.Error("a stream after GOAWAY")
	}
}

func TestCapacity(t *testing.T) {
	k := newTestClient(t, &Options{MaxConcurrentStreams: 50})
	if n := k.c.Capacity(); n != 50 {
		t.Error(n)
	}
	closed := 0
	k.closed = func() { closed++ }
	_ = k.f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	k.send()
	r := k.open(get, true)
	if k.c.Open(r) != nil || k.c.Capacity() != 0 {
		t.Error("more streams than the server allows")
	}
	closed = 0
	if k.headers(1, true, ":status=200"); closed != 1 || k.c.Capacity() != 1 {
		t.Error(closed, k.c.Capacity())
	}
	k.c.next = maxStreamID + 2
	if !k.c.Draining() || k.c.Capacity() != 0 {
		t.Error("identifiers beyond 2^31-1")
	}
}

// TestAStreamIsNotReusedWhileItsOwnerMayCall: the response is complete, the
// server does not want the rest, and the owner, who cannot know, sends on.
func TestAStreamIsNotReusedWhileItsOwnerMayCall(t *testing.T) {
	k := newTestClient(t, nil, noSettings...)
	r := k.open(get, false)
	k.headers(1, true, ":status=413")
	_ = k.f.WriteRSTStream(1, http2.ErrCodeNo)
	k.send()
	if r.reset != 0 || k.c.Active() != 0 {
		t.Error(r.reset, k.c.Active())
	}
	k.frames()
	for range 5 {
		other := k.open(get, true)
		if other.s == r.s {
			t.Fatal("the stream is used again")
		}
		k.headers(other.s.ID(), true, ":status=200")
	}
	k.frames()
	r.s.Data([]byte("the rest"), true)
	r.s.Reset(message.LocalReset)
	k.want("")
}

func TestAPingIsAnswered(t *testing.T) {
	k := newTestClient(t, nil, noSettings...)
	_ = k.f.WritePing(true, [8]byte{1, 2, 3, 4, 5, 6, 7, 8}) // an answer that nobody asked for
	_ = k.f.WritePing(false, [8]byte{9})
	k.send()
	k.want("PING 0900000000000000 ack=true")
}

func TestStartSaysWhatIsAllowed(t *testing.T) {
	out := newSink()
	NewServer(out, &Options{AllowConnect: true}, new(hooks)).Start()
	p := out.take()
	f := http2.NewFramer(nil, bytes.NewReader(p))
	fr, err := f.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	got := map[http2.SettingID]uint32{}
	_ = fr.(*http2.SettingsFrame).ForeachSetting(func(s http2.Setting) error { got[s.ID] = s.Val; return nil })
	if got[http2.SettingMaxConcurrentStreams] != 100 || got[http2.SettingInitialWindowSize] != 256<<10 || got[http2.SettingMaxHeaderListSize] != 60<<10 ||
		got[http2.SettingEnableConnectProtocol] != 1 || got[http2.SettingMaxFrameSize] != 16384 {
		t.Error(got)
	}
	if got := describe(t, p, nil); got != fmt.Sprintf("SETTINGS ack=false\nWINDOW_UPDATE 0 %d", 1<<20-65535) {
		t.Error(got)
	}
}

// TestAHeadThatTheServerWouldNotTakeIsNotSent: it resets what is too large, and the connection for many of those.
func TestAHeadThatTheServerWouldNotTakeIsNotSent(t *testing.T) {
	fields := func(n int, more ...string) *message.Head {
		h := head(append([]string{":method=GET", ":scheme=https", ":authority=h", ":path=/", "connection=x", "host=h"}, more...)...)
		for i := range n {
			h.AddString(fmt.Sprintf("x%d", i), "y")
		}
		return h
	}
	// The four pseudo-header fields take 43+44+42+38 bytes.
	const pseudo = 3 + 7 + 7 + 5 + 10 + 1 + 5 + 1 + 4*32
	for _, c := range []struct {
		name     string
		count    int
		h        *message.Head
		settings []http2.Setting
		sent     bool
	}{
		{"as many fields as may be", 100, fields(96), noSettings, true},
		{"one field more", 100, fields(97), noSettings, false},
		{"many fields, and no limit is known", 0, fields(200), noSettings, true},
		{"as large as may be", 0, fields(0, "x="+strings.Repeat("y", 1000)), []http2.Setting{{ID: http2.SettingMaxHeaderListSize, Val: pseudo + 1033}}, true},
		{"a byte more", 0, fields(0, "x="+strings.Repeat("y", 1001)), []http2.Setting{{ID: http2.SettingMaxHeaderListSize, Val: pseudo + 1033}}, false},
		{"large, and no limit is known", 0, fields(0, "x="+strings.Repeat("y", 100_000)), noSettings, true},
	} {
		k := newTestClient(t, &Options{MaxHeaderCount: c.count}, c.settings...)
		r := k.open(c.h, true)
		if got := strings.HasPrefix(k.frames(), "HEADERS"); got != c.sent || (r.reset == message.HeaderTooLarge) == c.sent || k.c.Active() > 1 {
			t.Errorf("%s: sent %v, %v", c.name, got, r.reset)
		}
		// Another request finds the connection as it was.
		if r := k.open(get, true); r.reset != 0 {
			t.Errorf("%s: the next request ends with %v", c.name, r.reset)
		}
	}

	k := newTestClient(t, nil, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 1000})
	r := k.open(get, false)
	k.frames()
	r.s.Trailers(head("x=" + strings.Repeat("y", 1000)))
	if k.want("RST_STREAM 1 CANCEL"); r.reset != message.HeaderTooLarge {
		t.Error(r.reset)
	}
}
