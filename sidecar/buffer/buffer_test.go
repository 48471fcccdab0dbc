package buffer

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestBufferAgainstModel appends and consumes at random and compares with a plain slice.
func TestBufferAgainstModel(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var p Pool
	b := New(&p)
	var model []byte
	for i := range 20000 {
		if r.IntN(2) == 0 {
			chunk := bytes.Repeat([]byte{byte(i)}, r.IntN(3000))
			if r.IntN(2) == 0 { // appended in two pieces, with a wrong guess of how much it will be
				tail := b.Tail(r.IntN(2 * (len(chunk) + 1)))
				half := len(chunk) / 2
				b.SetTail(append(append(tail, chunk[:half]...), chunk[half:]...))
			} else {
				b.Append(chunk)
			}
			model = append(model, chunk...)
		} else if len(model) > 0 {
			n := r.IntN(len(model) + 1)
			b.Consume(n)
			model = model[n:]
		}
		if b.Len() != len(model) || !bytes.Equal(b.Bytes(), model) {
			t.Fatalf("step %d: %d bytes, want %d", i, b.Len(), len(model))
		}
	}
	b.Release()
	if b.b != nil {
		t.Error("an empty buffer holds memory")
	}
}

func TestATailMayBecomeLongerThanItsRoom(t *testing.T) {
	var p Pool
	for before := range 3 {
		for _, n := range []int{0, 1, 4095, 4096, 4097, 1 << 20, 3 << 20} {
			b := New(&p)
			want := strings.Repeat("a", before*4095)
			b.AppendString(want)
			tail := b.Tail(1)
			for range n {
				tail = append(tail, 'b')
			}
			b.SetTail(tail)
			if want += strings.Repeat("b", n); string(b.Bytes()) != want {
				t.Errorf("%d bytes behind %d: %d bytes are there", n, before*4095, b.Len())
			}
			b.Release()
		}
	}
}

func TestATailThatIsNotUsedHoldsNoMemory(t *testing.T) {
	var p Pool
	b := New(&p)
	b.SetTail(b.Tail(100)[:0])
	if b.b != nil {
		t.Error("memory is held")
	}
	b.AppendString("hello")
	b.SetTail(b.Tail(100)[:0])
	if string(b.Bytes()) != "hello" {
		t.Errorf("%q is left", b.Bytes())
	}
}

func TestAnEmptyBufferHoldsNoMemory(t *testing.T) {
	var p Pool
	b := New(&p)
	b.AppendString("hello")
	b.Consume(5)
	if b.b != nil {
		t.Error("memory is held after the last byte was consumed")
	}
}

func TestAPoolKeepsABoundedAmount(t *testing.T) {
	var p Pool
	for range 10000 {
		p.Put(make([]byte, 0, 64<<10))
	}
	kept := 0
	for _, list := range p.free {
		for _, b := range list {
			kept += cap(b)
		}
	}
	if kept > classes*keepBytes {
		t.Errorf("%d bytes kept", kept)
	}
	if n := cap(p.Get(2 << 20)); n < 2<<20 {
		t.Errorf("asked for 2 MiB, got %d", n)
	}
}

func BenchmarkAppendConsume(b *testing.B) {
	var p Pool
	buf := New(&p)
	chunk := make([]byte, 300)
	b.ReportAllocs()
	for b.Loop() {
		buf.Append(chunk)
		buf.Append(chunk)
		buf.Consume(buf.Len())
	}
}
