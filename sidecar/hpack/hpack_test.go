package hpack

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"sallyport/sidecar/message"
)

// text writes a head as lines "name: value".
func text(h *message.Head) string {
	var b strings.Builder
	for i := range h.Len() {
		name, value := h.At(i)
		fmt.Fprintf(&b, "%s: %s\n", name, value)
	}
	return b.String()
}

// entries writes the dynamic table, newest first, in the same form.
func (t *table) text() string {
	var b strings.Builder
	for age := range t.n {
		e := t.at(age)
		fmt.Fprintf(&b, "%s: %s\n", t.name(e), t.value(e))
	}
	return b.String()
}

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func lines(l ...string) string {
	if len(l) == 0 {
		return ""
	}
	return strings.Join(l, "\n") + "\n"
}

// TestExamplesOfTheRFC is RFC 7541 Appendix C.3 to C.6: sequences of blocks on one table.
func TestExamplesOfTheRFC(t *testing.T) {
	type block struct{ wire, fields, table string }
	req1 := lines(":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com")
	req2 := lines(":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com", "cache-control: no-cache")
	req3 := lines(":method: GET", ":scheme: https", ":path: /index.html", ":authority: www.example.com", "custom-key: custom-value")
	reqTables := []string{
		lines(":authority: www.example.com"),
		lines("cache-control: no-cache", ":authority: www.example.com"),
		lines("custom-key: custom-value", "cache-control: no-cache", ":authority: www.example.com"),
	}
	resp1 := lines(":status: 302", "cache-control: private", "date: Mon, 21 Oct 2013 20:13:21 GMT", "location: https://www.example.com")
	resp2 := lines(":status: 307", "cache-control: private", "date: Mon, 21 Oct 2013 20:13:21 GMT", "location: https://www.example.com")
	resp3 := lines(":status: 200", "cache-control: private", "date: Mon, 21 Oct 2013 20:13:22 GMT", "location: https://www.example.com",
		"content-encoding: gzip", "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1")
	respTables := []string{
		lines("location: https://www.example.com", "date: Mon, 21 Oct 2013 20:13:21 GMT", "cache-control: private", ":status: 302"),
		lines(":status: 307", "location: https://www.example.com", "date: Mon, 21 Oct 2013 20:13:21 GMT", "cache-control: private"),
		lines("set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1", "content-encoding: gzip", "date: Mon, 21 Oct 2013 20:13:22 GMT"),
	}
	for name, c := range map[string]struct {
		max    uint32
		blocks []block
	}{
		"C.3 requests without Huffman": {4096, []block{
			{"8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", req1, reqTables[0]},
			{"8286 84be 5808 6e6f 2d63 6163 6865", req2, reqTables[1]},
			{"8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", req3, reqTables[2]}}},
		"C.4 requests with Huffman": {4096, []block{
			{"8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", req1, reqTables[0]},
			{"8286 84be 5886 a8eb 1064 9cbf", req2, reqTables[1]},
			{"8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", req3, reqTables[2]}}},
		"C.5 responses without Huffman": {256, []block{
			{"4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 54" +
				"6e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", resp1, respTables[0]},
			{"4803 3330 37c1 c0bf", resp2, respTables[1]},
			{"88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f 6f3d" +
				"4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572" +
				"7369 6f6e 3d31", resp3, respTables[2]}}},
		"C.6 responses with Huffman": {256, []block{
			{"4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b" +
				"97c8 e9ae 82ae 43d3", resp1, respTables[0]},
			{"4883 640e ffc1 c0bf", resp2, respTables[1]},
			{"88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf" +
				"cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07", resp3, respTables[2]}}},
	} {
		t.Run(name, func(t *testing.T) {
			d := NewDecoder(c.max, 1<<20, 100)
			d.table.resize(c.max)
			for i, b := range c.blocks {
				var h message.Head
				if err := d.Decode(unhex(t, b.wire), &h); err != nil {
					t.Fatal(err)
				}
				if text(&h) != b.fields || d.table.text() != b.table {
					t.Errorf("block %d:\n%s-- table:\n%s", i, text(&h), d.table.text())
				}
			}
		})
	}
}

func TestBlocksThatAreNotWellFormed(t *testing.T) {
	long := strings.Repeat("a", 200)
	for name, c := range map[string]struct {
		wire string
		want error
	}{
		"index 0":                                 {"80", ErrIndex},
		"an index above both tables":              {"be", ErrIndex},
		"a name of no entry":                      {"7f00 0161", ErrIndex},
		"an index cut off":                        {"ff", ErrTruncated},
		"an index without end":                    {"ffffffffffff", ErrInteger},
		"an integer padded with zeros":            {"ff80808080808001", ErrInteger},
		"a literal cut off after its index":       {"41", ErrTruncated},
		"a name cut off":                          {"400161", ErrTruncated},
		"a value cut off":                         {"4103 6161", ErrTruncated},
		"a length of 2^28":                        {"417f 8180 8080 01", ErrInteger},
		"a length beyond the block":               {"417f ff7f", ErrTruncated},
		"Huffman with EOS":                        {"4184 ffff fffc", ErrHuffman},
		"Huffman padding of a byte":               {"4182 1fff", ErrHuffman},
		"Huffman padding of zeros":                {"4181 18", ErrHuffman},
		"Huffman padding that begins a code":      {"4182 ffff", ErrHuffman},
		"a size above the limit":                  {"3fe2 1f", ErrTableSize},
		"a size after a field":                    {"82 20", ErrTableSize},
		"a size at the start":                     {"3fe1 1f 82", nil},
		"two sizes at the start":                  {"20 3fe1 1f 82", nil},
		"a name with a capital":                   {"0001 41 0161", ErrField},
		"an empty name":                           {"0000 0161", ErrField},
		"a name with a space":                     {"0003 612062 0161", ErrField},
		"a name with a byte above ASCII":          {"0002 61e9 0161", ErrField},
		"a value with LF":                         {"0001 78 03 610a62", ErrField},
		"a value with NUL":                        {"0001 78 03 610062", ErrField},
		"a value with DEL":                        {"0001 78 03 617f62", ErrField},
		"a value with CR after eight":             {"0001 78 0a 61626364656667680d61", ErrField},
		"a value with CR within eight":            {"0001 78 0a 6162630d656667686161", ErrField},
		"a value with a tab within":               {"0001 78 0a 61620963646566676861", nil},
		"a value with bytes above ASCII":          {"0001 78 09 ffe9ffe980818283a1", nil},
		"a value with a blank before":             {"0001 78 02 2061", ErrField},
		"a value with a tab after":                {"0001 78 02 6109", ErrField},
		"connection":                              {"000a 636f6e6e656374696f6e 0161", ErrField},
		"transfer-encoding by the static table":   {"0f2a 0161", ErrField},
		"te: trailers":                            {"0002 7465 08 747261696c657273", nil},
		"te: gzip":                                {"0002 7465 04 677a6970", ErrField},
		"a pseudo-header field twice":             {"8282", ErrField},
		"a pseudo-header field after another":     {"90 82", ErrField},
		"a pseudo-header field of no RFC":         {"0002 3a78 0161", ErrField},
		"an indexed literal that stays forbidden": {"4001 41 0161 be", ErrField},
		"a long value":                            {"0001 78 7f49" + hex.EncodeToString([]byte(long)), nil},
	} {
		var h message.Head
		if err := NewDecoder(4096, 1<<20, 100).Decode(unhex(t, c.wire), &h); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// TestEveryHuffmanCode decodes each symbol by itself and among others, and no shorter part of its code.
func TestEveryHuffmanCode(t *testing.T) {
	for sym := range 256 {
		for _, s := range []string{string([]byte{byte(sym)}), string([]byte{'a', byte(sym), 'b'}), strings.Repeat(string([]byte{byte(sym)}), 9)} {
			code := hpack.AppendHuffmanString(nil, s)
			got, ok := appendHuffman([]byte("x"), code)
			if !ok || string(got) != "x"+s {
				t.Errorf("%q is read as %q, %v", s, got, ok)
			}
		}
	}
}

func TestLimitsCountWhatIsDecoded(t *testing.T) {
	// One byte on the wire is a field of 4000 bytes: a bomb of 2 MB.
	d := NewDecoder(4096, 60<<10, 100)
	var h message.Head
	if err := d.Decode(append(appendLiteral(nil, 0x40, 6, 0, "x", make4000()), bytes.Repeat([]byte{0xbe}, 500)...), &h); !errors.Is(err, ErrLimit) {
		t.Fatal(err)
	}
	if h.Size() > 60<<10 {
		t.Errorf("%d bytes are kept", h.Size())
	}
	// The table is what it must be.
	h.Reset()
	if err := d.Decode([]byte{0xbe}, &h); err != nil || h.Len() != 1 || len(h.Lookup("x")) != 4000 {
		t.Error(err, h.Len())
	}
	h.Reset()
	if err := d.Decode(bytes.Repeat([]byte{0x90}, 101), &h); !errors.Is(err, ErrLimit) || h.Len() != 100 {
		t.Errorf("101 fields: %v, %d are kept", err, h.Len())
	}
}

// TestCrumbsOfACookieCountOnce, however many; other fields, and the bytes of crumbs, count each.
func TestCrumbsOfACookieCountOnce(t *testing.T) {
	crumb := appendLiteral(nil, 0, 4, 0, "cookie", []byte("k=v"))
	other := appendLiteral(nil, 0, 4, 0, "x", []byte("y"))
	for _, c := range []struct {
		name           string
		crumbs, others int
		maxBytes       int
		want           error
	}{
		{"110 crumbs", 110, 0, 60 << 10, nil},
		{"110 crumbs and as many other fields as may be", 110, 99, 60 << 10, nil},
		{"110 crumbs and one field too many", 110, 100, 60 << 10, ErrLimit},
		{"crumbs of too many bytes", 110, 0, 4000, ErrLimit},
		{"more crumbs than a head can hold", message.MaxFields + 1, 0, 1 << 30, ErrLimit},
	} {
		block := append(bytes.Repeat(crumb, c.crumbs/2), bytes.Repeat(other, c.others)...)
		block = append(block, bytes.Repeat(crumb, c.crumbs-c.crumbs/2)...)
		var h message.Head
		if err := NewDecoder(4096, c.maxBytes, 100).Decode(block, &h); !errors.Is(err, c.want) || h.Len() > message.MaxFields {
			t.Errorf("%s: %v, %d fields", c.name, err, h.Len())
		}
	}
}

func TestMemoryOfALongStringIsNotKept(t *testing.T) {
	d := NewDecoder(4096, 1<<20, 100)
	b := appendInt([]byte{0, 0x81, 0xf3}, 0x80, 7, 50000) // "x" in Huffman code, and a value of zeros
	b = append(b, hpack.AppendHuffmanString(nil, strings.Repeat("0", 80000))...)
	var h message.Head
	if err := d.Decode(b, &h); err != nil || len(h.Lookup("x")) != 80000 {
		t.Fatal(err)
	}
	if n := cap(d.name) + cap(d.value); n > 2*scratchKept {
		t.Errorf("%d bytes are kept", n)
	}
}

func make4000() []byte { return bytes.Repeat([]byte("v"), 4000) }

func TestALoweredTableSizeMustBeSaid(t *testing.T) {
	d := NewDecoder(100, 1<<20, 100)
	var h message.Head
	if err := d.Decode(unhex(t, "8286"), &h); err != nil {
		t.Errorf("before the acknowledgment: %v", err)
	}
	d.Acknowledged(100)
	if err := d.Decode(unhex(t, "84"), &h); !errors.Is(err, ErrTableSize) {
		t.Errorf("a block that does not shrink the table: %v", err)
	}
	d = NewDecoder(100, 1<<20, 100)
	d.Acknowledged(100)
	h.Reset()
	if err := d.Decode(append(appendInt(nil, 0x20, 5, 100), 0x82), &h); err != nil {
		t.Errorf("a block that does: %v", err)
	}
}

func TestTheEncoderSaysItsTableSize(t *testing.T) {
	e := NewEncoder(4096)
	if b := e.Begin(nil); len(b) != 0 {
		t.Errorf("the default is said: %x", b)
	}
	e.SetTableSize(0)
	e.SetTableSize(1 << 20)
	if b := e.Begin(nil); !bytes.Equal(b, []byte{0x20, 0x3f, 0xe1, 0x1f}) {
		t.Errorf("the least and the last: %x", b)
	}
	if b := e.Begin(nil); len(b) != 0 {
		t.Errorf("twice: %x", b)
	}
	if b := NewEncoder(10).Begin(nil); !bytes.Equal(b, []byte{0x2a}) {
		t.Errorf("a limit below the default: %x", b)
	}
}

// TestWhatRepeatsIsShort: the third head of a kind takes a byte for each field, unless two of its fields meet in one
// slot of the sightings, of which one in 25 heads has the bad luck.
func TestWhatRepeatsIsShort(t *testing.T) {
	const kinds = 40
	long := 0
	for k := range kinds {
		e, d := NewEncoder(4096), NewDecoder(4096, 60<<10, 100)
		for i := range 4 {
			var in, out message.Head
			in.AddNameString(message.Method, "GET")
			in.AddNameString(message.Scheme, "https")
			in.AddNameString(message.Authority, fmt.Sprintf("orders%d.mesh.example", k))
			in.AddNameString(message.Path, fmt.Sprintf("/api/v%d/orders", k))
			in.AddNameString(message.UserAgent, fmt.Sprintf("curl/8.%d.0", k))
			in.AddString("x-tenant", fmt.Sprintf("blue%d", k))
			in.AddNameString(message.Cookie, fmt.Sprintf("session=9f8e7d6c5b4a3928%d", k))
			b := encode(e, &in)
			if i == 3 && len(b) != in.Len() {
				long++
			}
			if err := d.Decode(b, &out); err != nil || text(&in) != text(&out) {
				t.Errorf("%v\n%s", err, text(&out))
			}
		}
	}
	if long > kinds/4 {
		t.Errorf("%d of %d heads take more than a byte for each field", long, kinds)
	}
}

func TestSecretsAreNeverIndexed(t *testing.T) {
	e := NewEncoder(4096)
	var h message.Head
	h.AddNameString(message.Authorization, "Bearer abc")
	h.AddNameString(message.Cookie, "a=short")
	h.AddString("x-key", "k")
	h.MarkSensitive()
	for range 3 {
		b := encode(e, &h)
		fields, err := hpack.NewDecoder(4096, nil).DecodeFull(b)
		if err != nil || len(fields) != 3 {
			t.Fatal(err)
		}
		for _, f := range fields {
			if !f.Sensitive {
				t.Errorf("%s may be indexed", f.Name)
			}
		}
		// And it stays so through us.
		var again message.Head
		if err := NewDecoder(4096, 60<<10, 100).Decode(b, &again); err != nil || !again.Sensitive(2) {
			t.Errorf("the mark is lost: %v", err)
		}
	}
	if e.table.n != 0 {
		t.Error("a secret is in the table")
	}
}

func encode(e *Encoder, h *message.Head) []byte {
	b := e.Begin(nil)
	for i := range h.Len() {
		name, value := h.At(i)
		b = e.Field(b, h.NameAt(i), name, value, h.Sensitive(i))
	}
	return b
}

// TestTableAgainstModel adds and resizes at random and compares with a plain list.
func TestTableAgainstModel(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var d table
	d.max = 4096
	var model []string // oldest first
	size := 0
	trim := func() {
		for size > int(d.max) {
			size -= len(model[0]) - 3 + 32
			model = model[1:]
		}
	}
	for step := range 50000 {
		if r.IntN(200) == 0 {
			d.resize(uint32(r.IntN(8192)))
			trim()
		} else {
			name, value := bytes.Repeat([]byte{'n'}, r.IntN(40)), bytes.Repeat([]byte{byte(step)}, r.IntN(1<<r.IntN(13)))
			if d.n > 0 && r.IntN(3) == 0 { // a name that lies in the table
				name = d.name(d.at(uint32(r.IntN(int(d.n)))))
			}
			line := fmt.Sprintf("%s: %s\n", name, value)
			d.add(0, 0, name, value)
			if len(line)-3+32 > int(d.max) {
				model, size = nil, 0
			} else {
				size += len(line) - 3 + 32
				trim2 := size > int(d.max)
				if trim2 {
					trim()
				}
				model = append(model, line)
			}
		}
		if int(d.n) != len(model) || int(d.size) != size {
			t.Fatalf("step %d: %d entries of %d bytes, want %d of %d", step, d.n, d.size, len(model), size)
		}
		for i, want := range model {
			e := d.at(uint32(len(model) - 1 - i))
			if got := fmt.Sprintf("%s: %s\n", d.name(e), d.value(e)); got != want {
				t.Fatalf("step %d: entry %d is %q, want %q", step, i, got, want)
			}
		}
		if len(d.arena) > 2*8192 {
			t.Fatalf("the arena has %d bytes", len(d.arena))
		}
	}
}

func TestNothingIsAllocatedPerHead(t *testing.T) {
	e, d := NewEncoder(4096), NewDecoder(4096, 60<<10, 100)
	var in, out message.Head
	in.AddNameString(message.Method, "GET")
	in.AddNameString(message.Path, "/x")
	in.AddString("x-a", "1")
	in.SetNameInt(message.XRequestID, 0)
	b := make([]byte, 0, 1024)
	i := int64(0)
	if n := testing.AllocsPerRun(1000, func() {
		i++
		in.SetNameInt(message.XRequestID, i/3)
		if in.Size() > 1000 {
			t.Fatal("the head grows")
		}
		b = e.Begin(b[:0])
		for i := range in.Len() {
			name, value := in.At(i)
			b = e.Field(b, in.NameAt(i), name, value, false)
		}
		out.Reset()
		if err := d.Decode(b, &out); err != nil {
			t.Fatal(err)
		}
		in.CopyFrom(&out)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
