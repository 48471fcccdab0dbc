package hpack

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"sallyport/sidecar/message"
)

// FuzzHPACK decodes blocks, cut at zero-length markers, on one table, and
// compares with x/net: what one takes the other takes, with the same fields
// and the same table. Where we are stricter, it is by a rule that is checked here.
func FuzzHPACK(f *testing.F) {
	for _, s := range []string{
		"\x82\x86\x84\x41\x0fwww.example.com", "\x82\x86\x84\xbe\x58\x08no-cache", "\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
		"\x20\x3f\xe1\x1f\x82", "\x40\x01x\x01y\xbe\xbe", "\x10\x01x\x01y", "\x00\x01X\x01y", "\x82\x82", "\xff\x80\x80\x80\x80\x01",
	} {
		f.Add([]byte(s), []byte("\xbe\x82"))
	}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		d := NewDecoder(4096, 1<<20, 1000)
		var fields []hpack.HeaderField
		x := hpack.NewDecoder(4096, func(hf hpack.HeaderField) { fields = append(fields, hf) })
		for _, block := range [][]byte{one, two} {
			var h message.Head
			err := d.Decode(block, &h)
			fields = fields[:0]
			_, xerr := x.Write(block)
			if xerr == nil {
				xerr = x.Close()
			}
			lost := err != nil && !errors.Is(err, ErrField) && !errors.Is(err, ErrLimit)
			if lost {
				// Integers beyond 28 bits, and a size change after a field or
				// larger than allowed, are what x/net may let pass.
				if xerr == nil && !errors.Is(err, ErrInteger) && !errors.Is(err, ErrTableSize) {
					t.Fatalf("refused: %v; x/net reads %v", err, fields)
				}
				return
			}
			if xerr != nil {
				t.Fatalf("x/net refuses %v; read as\n%s", xerr, text(&h))
			}
			if err == nil {
				compare(t, &h, fields)
				roundTrip(t, &h)
			} else if errors.Is(err, ErrField) && allowed(fields) {
				t.Fatalf("refused without a reason: %v", fields)
			}
		}
	})
}

func compare(t *testing.T, h *message.Head, fields []hpack.HeaderField) {
	t.Helper()
	if h.Len() != len(fields) {
		t.Fatalf("%d fields, want %d", h.Len(), len(fields))
	}
	for i, f := range fields {
		if name, value := h.At(i); name != f.Name || string(value) != f.Value || h.Sensitive(i) != f.Sensitive {
			t.Fatalf("field %d is %q: %q, want %v", i, name, value, f)
		}
	}
}

// roundTrip encodes what was decoded, three times, and has x/net read it.
func roundTrip(t *testing.T, h *message.Head) {
	e := NewEncoder(4096)
	x := hpack.NewDecoder(4096, nil)
	for range 3 {
		fields, err := x.DecodeFull(encode(e, h))
		if err != nil || len(fields) != h.Len() {
			t.Fatalf("x/net reads what was encoded as %v, %v", fields, err)
		}
		for i, f := range fields {
			if name, value := h.At(i); name != f.Name || string(value) != f.Value || h.Sensitive(i) && !f.Sensitive {
				t.Fatalf("field %d, %q: %q, is encoded as %v", i, name, value, f)
			}
		}
	}
}

// allowed is RFC 9113 §8.2 and §8.3 in the plainest words.
func allowed(fields []hpack.HeaderField) bool {
	regular := false
	seen := map[string]bool{}
	for _, f := range fields {
		switch f.Name {
		case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "":
			return false
		case "te":
			if f.Value != "trailers" {
				return false
			}
		case ":method", ":path", ":authority", ":scheme", ":protocol", ":status":
			if regular || seen[f.Name] {
				return false
			}
			seen[f.Name] = true
		default:
			for _, c := range []byte(f.Name) {
				if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~", rune(c)) {
					return false
				}
			}
		}
		regular = regular || f.Name[0] != ':'
		if strings.Trim(f.Value, " \t") != f.Value {
			return false
		}
		for _, c := range []byte(f.Value) {
			if c < ' ' && c != '\t' || c == 0x7f {
				return false
			}
		}
	}
	return true
}

// TestAgainstXNet sends random heads over long-lived tables in both directions.
func TestAgainstXNet(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	e, d := NewEncoder(4096), NewDecoder(4096, 1<<20, 1000)
	x := hpack.NewDecoder(4096, nil)
	var wire bytes.Buffer
	xe := hpack.NewEncoder(&wire)
	names := []string{"accept", "cookie", "x-request-id", "authorization", "x-a", "x-b", "user-agent", "content-length", "x-long-" + strings.Repeat("n", 300)}
	for range 5000 {
		if r.IntN(50) == 0 {
			n := uint32(r.IntN(6000))
			xe.SetMaxDynamicTableSize(min(n, 4096))
			e.SetTableSize(n)
		}
		var h, back message.Head
		h.AddNameString(message.Method, []string{"GET", "POST", "PUT"}[r.IntN(3)])
		h.AddNameString(message.Path, strings.Repeat("/p", 1+r.IntN(4)))
		for range r.IntN(12) {
			h.AddString(names[r.IntN(len(names))], strings.Repeat(string(rune('a'+r.IntN(4))), r.IntN(1<<r.IntN(11))))
		}
		fields, err := x.DecodeFull(encode(e, &h))
		if err != nil {
			t.Fatal(err)
		}
		for i := range fields {
			fields[i].Sensitive = false // ours to choose
		}
		compare(t, &h, fields)
		wire.Reset()
		for _, f := range fields {
			_ = xe.WriteField(f)
		}
		if err := d.Decode(wire.Bytes(), &back); err != nil {
			t.Fatal(err)
		}
		compare(t, &back, fields)
	}
}

func benchmarkHead() *message.Head {
	h := new(message.Head)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":path", "/api/v1/orders?page=2"}, {":authority", "shop.example.com"},
		{"user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"}, {"accept", "*/*"},
		{"accept-language", "en-US,en;q=0.5"}, {"accept-encoding", "gzip, deflate, br, zstd"}, {"x-forwarded-proto", "https"},
		{"cookie", "session=9f8e7d6c5b4a39281706f5e4d3c2b1a0; theme=dark"}} {
		h.AddString(f[0], f[1])
	}
	return h
}

func BenchmarkEncodeRepeated(b *testing.B) {
	e, h, out := NewEncoder(4096), benchmarkHead(), make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		out = e.Begin(out[:0])
		for i := range h.Len() {
			name, value := h.At(i)
			out = e.Field(out, h.NameAt(i), name, value, false)
		}
	}
}

func benchmarkDecode(b *testing.B, block []byte, d *Decoder) {
	var h message.Head
	b.ReportAllocs()
	for b.Loop() {
		h.Reset()
		if err := d.Decode(block, &h); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeRepeated(b *testing.B) {
	e, h, d := NewEncoder(4096), benchmarkHead(), NewDecoder(4096, 60<<10, 100)
	for range 2 {
		var out message.Head
		if err := d.Decode(encode(e, h), &out); err != nil {
			b.Fatal(err)
		}
	}
	benchmarkDecode(b, encode(e, h), d)
}

func BenchmarkDecodeLiterals(b *testing.B) {
	benchmarkDecode(b, encode(NewEncoder(4096), benchmarkHead()), NewDecoder(4096, 60<<10, 100))
}

func BenchmarkDecodeHuffman(b *testing.B) {
	var wire bytes.Buffer
	xe := hpack.NewEncoder(&wire)
	xe.SetMaxDynamicTableSize(0)
	h := benchmarkHead()
	for i := range h.Len() {
		name, value := h.At(i)
		_ = xe.WriteField(hpack.HeaderField{Name: name, Value: string(value)})
	}
	benchmarkDecode(b, wire.Bytes(), NewDecoder(4096, 60<<10, 100))
}
