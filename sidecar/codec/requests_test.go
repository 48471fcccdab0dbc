package codec

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"sallyport/sidecar/buffer"
	"sallyport/sidecar/failure"
	"sallyport/sidecar/hpack"
	"sallyport/sidecar/http1"
	"sallyport/sidecar/http2"
	"sallyport/sidecar/message"
)

// taker is the owner of both codecs; it notes the request that it is given.
type taker struct {
	pool  buffer.Pool
	out   *buffer.Buffer
	taken bool
	head  message.Head
}

func newTaker() *taker {
	k := new(taker)
	k.out = buffer.New(&k.pool)
	return k
}

func (k *taker) Buffer() *buffer.Buffer        { return k.out }
func (k *taker) Flush()                        {}
func (k *taker) Full() bool                    { return false }
func (k *taker) NowMono() int64                { return 1 }
func (k *taker) StreamClosed()                 {}
func (k *taker) Refused(failure.Kind, int)     {}
func (k *taker) SweepIn(time.Duration)         {}
func (k *taker) Resumed()                      {}
func (k *taker) SendEOF()                      {}
func (k *taker) RefusalFields(b []byte) []byte { return b }
func (k *taker) Head(h *message.Head, _ bool)  { k.taken = true; k.head.CopyFrom(h) }
func (k *taker) Data([]byte, bool)             {}
func (k *taker) Trailers(*message.Head)        {}
func (k *taker) Reset(message.Reason)          {}
func (k *taker) Drained()                      {}

func (k *taker) NewStream(message.Sender, message.Version) message.Receiver { return k }

// asked is a request in the terms of both versions.
type asked struct{ method, authority, path, name, value string }

// over1 says whether the HTTP/1 codec takes the request.
func (a asked) over1() *taker {
	k := newTaker()
	target := a.path
	if a.method == "CONNECT" {
		target = a.authority
	}
	raw := a.method + " " + target + " HTTP/1.1\r\nhost: " + a.authority + "\r\n" + a.name + ": " + a.value + "\r\n\r\n"
	c := http1.NewServer(k, &http1.Options{AllowCustomMethods: true}, k)
	if n, err := c.Feed([]byte(raw)); err != nil || n != len(raw) {
		k.taken = false
	}
	return k
}

// over2 says whether the HTTP/2 codec does.
func (a asked) over2() *taker {
	k := newTaker()
	enc := hpack.NewEncoder(4096)
	b := enc.Begin(nil)
	add := func(name, value string) {
		b = enc.Field(b, message.NameOf([]byte(name)), name, []byte(value), false)
	}
	add(":method", a.method)
	if a.method != "CONNECT" {
		add(":scheme", "http")
		add(":path", a.path)
	}
	add(":authority", a.authority)
	add(a.name, a.value)
	raw := http2.Preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	raw += string(binary.BigEndian.AppendUint32(nil, uint32(len(b)))[1:]) + "\x01\x05\x00\x00\x00\x01" + string(b)
	c := http2.NewServer(k, nil, k)
	c.Start()
	if n, err := c.Feed([]byte(raw)); err != nil || n != len(raw) {
		k.taken = false
	}
	return k
}

// TestBothVersionsTakeTheSameRequests puts every byte at every place of a request
// where the versions have the same rule: what policy sees must not depend on the version.
func TestBothVersionsTakeTheSameRequests(t *testing.T) {
	plain := asked{"GET", "h.example:80", "/a/b", "x-name", "value"}
	places := []struct {
		name string
		put  func(a *asked, s string)
	}{
		{"the method", func(a *asked, s string) { a.method = "GE" + s + "T" }},
		{"the method's end", func(a *asked, s string) { a.method = "GET" + s }},
		{"the authority", func(a *asked, s string) { a.authority = "h" + s + "i" }},
		{"the authority's end", func(a *asked, s string) { a.authority = "h" + s }},
		{"the authority's beginning", func(a *asked, s string) { a.authority = s + "h" }},
		{"the port", func(a *asked, s string) { a.authority = "h:8" + s }},
		{"behind a bracket", func(a *asked, s string) { a.authority = "[::1]" + s + "8" }},
		{"the authority of CONNECT", func(a *asked, s string) { a.method, a.authority = "CONNECT", "h"+s+"1" }},
		{"the path", func(a *asked, s string) { a.path = "/a" + s + "b" }},
		{"the path's beginning", func(a *asked, s string) { a.path = s + "ab" }},
		{"the path's end", func(a *asked, s string) { a.path = "/ab" + s }},
		{"an escape", func(a *asked, s string) { a.path = "/%" + s + "0" }},
		{"the query", func(a *asked, s string) { a.path = "/?%" + s + "b" }},
		{"OPTIONS", func(a *asked, s string) { a.method, a.path = "OPTIONS", s }},
		{"a name", func(a *asked, s string) { a.name = "x" + s + "y" }},
		{"a value", func(a *asked, s string) { a.value = "x" + s + "y" }},
		{"a long value", func(a *asked, s string) { a.value = strings.Repeat("x", 13) + s + strings.Repeat("y", 9) }},
	}
	for _, p := range places {
		taken := 0
		for n := range 256 {
			c := byte(n)
			a := plain
			p.put(&a, string([]byte{c}))
			switch {
			case p.name == "a name" && 'A' <= c && c <= 'Z':
				continue // HTTP/2 has no capitals in names (RFC 9113 §8.2.1), HTTP/1 has names without case
			case (c == ' ' || c == '\t') && a.authority != plain.authority && a.method != "CONNECT":
				continue // around the value of Host it is not of the value (RFC 9110 §5.5)
			case p.name == "a name" && c == ':':
				continue // in HTTP/1 it ends the name
			case p.name == "the path's beginning" && a.path != "/ab":
				continue // HTTP/1 has targets of other forms
			}
			one, two := a.over1(), a.over2()
			if one.taken != two.taken {
				t.Errorf("%#02x in %s: HTTP/1 takes it: %v, HTTP/2: %v", c, p.name, one.taken, two.taken)
				continue
			}
			if one.taken {
				taken++
				for i, name := range []message.Name{message.Method, message.Authority, message.Path} {
					if got, other := one.head.Get(name), two.head.Get(name); string(got) != string(other) {
						t.Errorf("%#02x in %s: %v is %q over HTTP/1, %q over HTTP/2 (%d)", c, p.name, name, got, other, i)
					}
				}
			}
		}
		if taken == 0 {
			t.Errorf("%s: nothing was taken: the test compares nothing", p.name)
		}
	}
}
