// Package message is the vocabulary that codecs, streams and filters share:
// the head of an HTTP message (an ordered list of fields in one arena), the
// events that a message consists of, and the reasons for which it can end
// early. It owns no I/O and no goroutine; every value belongs to the worker of
// the connection it came from.
package message

import (
	"slices"
	"strconv"
	"unsafe"
)

// Head is the head (or the trailers) of a message: an ordered list of fields,
// names in lower case, with pseudo-header fields among them. Bytes are copied
// once, from the wire into the arena; what Get and At return is valid until
// the next change of the Head. The zero value is empty and ready to use.
//
// A Head belongs to one worker. It is reused by Reset, so that a request
// allocates nothing in the steady state.
type Head struct {
	arena  []byte
	fields []field
	// first is 1 + the index in fields of the first field of each known
	// name, 0 where there is none: Get is one load and one index.
	first [nameCount]uint16
}

type field struct {
	name      Name
	sensitive bool
	nameLen   uint16 // of an unknown name, which stands in the arena right before the value
	off       uint32 // where the value starts in the arena
	len       uint32
}

// MaxFields bounds what first can index; codecs enforce far lower limits.
const MaxFields = 1 << 15

// What a Head keeps for its next use. Heads are kept in free lists by the
// thousand: a burst of large ones must not stay in memory for good. Nearly all
// heads are smaller; one that is not costs a few allocations.
const (
	keptArena  = 8 << 10
	keptFields = 256
	startArena = 1 << 10
)

// Reset empties h and keeps its memory, unless that is large.
func (h *Head) Reset() {
	if h.arena = h.arena[:0]; cap(h.arena) > keptArena {
		h.arena = make([]byte, 0, startArena)
	}
	if h.fields = h.fields[:0]; cap(h.fields) > keptFields {
		h.fields = nil
	}
	h.first = [nameCount]uint16{}
}

// Len is the number of fields, pseudo-header fields included.
func (h *Head) Len() int { return len(h.fields) }

// Size is the number of bytes that names and values take, as the limits on
// header sizes count them.
func (h *Head) Size() int {
	n := 0
	for i := range h.fields {
		f := &h.fields[i]
		n += int(f.len) + int(f.nameLen) + len(names[f.name])
	}
	return n
}

// longestName is the length of the longest known name, which no arena holds.
var longestName = len(slices.MaxFunc(names[:], func(a, b string) int { return len(a) - len(b) }))

// SizeAtMost is no less than Size, and costs no look at each field.
func (h *Head) SizeAtMost() int { return len(h.arena) + longestName*len(h.fields) }

// At returns the i-th field. The name of an unknown field is a view of the arena.
func (h *Head) At(i int) (name string, value []byte) {
	f := &h.fields[i]
	return h.nameString(f), h.value(f)
}

// NameAt returns the known name of the i-th field, or Unknown.
func (h *Head) NameAt(i int) Name { return h.fields[i].name }

func (h *Head) value(f *field) []byte { return h.arena[f.off : f.off+f.len : f.off+f.len] }

func (h *Head) nameString(f *field) string {
	if f.name != Unknown {
		return names[f.name]
	}
	b := h.arena[f.off-uint32(f.nameLen) : f.off]
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// Get returns the first value of a known name, nil where there is none. An
// empty value is non-nil.
func (h *Head) Get(n Name) []byte {
	i := h.first[n]
	if i == 0 {
		return nil
	}
	return h.value(&h.fields[i-1])
}

// Has says whether a field of that name is present.
func (h *Head) Has(n Name) bool { return h.first[n] != 0 }

// Is says whether the first value of n equals v.
func (h *Head) Is(n Name, v string) bool { return h.first[n] != 0 && string(h.Get(n)) == v }

// Lookup returns the first value of the field with that lower-case name, nil where there is none.
func (h *Head) Lookup(name string) []byte {
	if i := h.index(name, 0); i >= 0 {
		return h.value(&h.fields[i])
	}
	return nil
}

// index returns the first field called name at or after from, or -1.
func (h *Head) index(name string, from int) int {
	for i := from; i < len(h.fields); i++ {
		if h.nameString(&h.fields[i]) == name {
			return i
		}
	}
	return -1
}

// Count is the number of fields with that lower-case name.
func (h *Head) Count(name string) int {
	n := 0
	for i := h.index(name, 0); i >= 0; i = h.index(name, i+1) {
		n++
	}
	return n
}

// Joined returns all values of the field with that lower-case name, joined by
// "," as RFC 9110 §5.3 allows, and whether there is any. Authorization must
// look at every value, not at the first (CVE-2020-25017). It copies only
// where there is more than one value.
func (h *Head) Joined(name string) ([]byte, bool) {
	i := h.index(name, 0)
	if i < 0 {
		return nil, false
	}
	v := h.value(&h.fields[i])
	for i = h.index(name, i+1); i >= 0; i = h.index(name, i+1) {
		v = append(append(v[:len(v):len(v)], ','), h.value(&h.fields[i])...)
	}
	return v, true
}

// Add appends a field. name must be in lower case.
func (h *Head) Add(name, value []byte) {
	if n := NameOf(name); n != Unknown {
		h.AddName(n, value)
		return
	}
	h.arena = append(h.arena, name...)
	h.push(field{nameLen: uint16(len(name)), off: uint32(len(h.arena)), len: uint32(len(value))})
	h.arena = append(h.arena, value...)
}

// AddField is Add for a caller that resolved the name already: n is NameOf(name).
func (h *Head) AddField(n Name, name, value []byte) {
	if n != Unknown {
		h.AddName(n, value)
		return
	}
	h.arena = append(h.arena, name...)
	h.push(field{nameLen: uint16(len(name)), off: uint32(len(h.arena)), len: uint32(len(value))})
	h.arena = append(h.arena, value...)
}

// MarkSensitive marks the last field as one that came as never to be indexed,
// which holds for everyone who sends it on (RFC 7541 §7.1.3).
func (h *Head) MarkSensitive() { h.fields[len(h.fields)-1].sensitive = true }

// Sensitive says whether the i-th field was marked so.
func (h *Head) Sensitive(i int) bool { return h.fields[i].sensitive }

// SetAt replaces the value of the i-th field, which must have a known name:
// the name of an unknown one stands in the arena before its value.
func (h *Head) SetAt(i int, value []byte) {
	f := &h.fields[i]
	f.off, f.len = uint32(len(h.arena)), uint32(len(value))
	h.arena = append(h.arena, value...)
}

// AddString is Add for strings.
func (h *Head) AddString(name, value string) { h.Add(view(name), view(value)) }

// AddName appends a field with a known name.
func (h *Head) AddName(n Name, value []byte) {
	h.push(field{name: n, off: uint32(len(h.arena)), len: uint32(len(value))})
	h.arena = append(h.arena, value...)
}

// AddNameString is AddName for a string value.
func (h *Head) AddNameString(n Name, value string) { h.AddName(n, view(value)) }

func (h *Head) push(f field) {
	h.fields = append(h.fields, f)
	if f.name != Unknown && h.first[f.name] == 0 {
		h.first[f.name] = uint16(len(h.fields))
	}
}

// SetName replaces all fields of a known name by one, at the place of the
// first, or at the end where there was none.
func (h *Head) SetName(n Name, value []byte) {
	i := h.first[n]
	if i == 0 {
		h.AddName(n, value)
		return
	}
	f := &h.fields[i-1]
	off := uint32(len(h.arena))
	h.arena = append(h.arena, value...)
	f.off, f.len = off, uint32(len(value))
	h.removeFrom(names[n], int(i))
}

// SetNameString is SetName for a string value.
func (h *Head) SetNameString(n Name, value string) { h.SetName(n, view(value)) }

// SetNameInt is SetName for a decimal number.
func (h *Head) SetNameInt(n Name, value int64) {
	var b [20]byte
	h.SetName(n, strconv.AppendInt(b[:0], value, 10))
}

// Set replaces all fields called name, in lower case, by one.
func (h *Head) Set(name, value string) {
	if n := NameOf(view(name)); n != Unknown {
		h.SetName(n, view(value))
		return
	}
	h.Remove(name)
	h.AddString(name, value)
}

// RemoveName removes all fields of a known name.
func (h *Head) RemoveName(n Name) {
	if h.first[n] != 0 {
		h.removeFrom(names[n], int(h.first[n])-1)
	}
}

// Remove removes all fields with that lower-case name.
func (h *Head) Remove(name string) { h.removeFrom(name, 0) }

// RemoveAt removes the i-th field.
func (h *Head) RemoveAt(i int) {
	h.fields = append(h.fields[:i], h.fields[i+1:]...)
	h.reindex()
}

func (h *Head) removeFrom(name string, from int) {
	i := h.index(name, from)
	if i < 0 {
		return
	}
	kept := h.fields[:i]
	for ; i < len(h.fields); i++ {
		if f := h.fields[i]; h.nameString(&f) != name {
			kept = append(kept, f)
		}
	}
	h.fields = kept
	h.reindex()
}

func (h *Head) reindex() {
	h.first = [nameCount]uint16{}
	for i := range h.fields {
		if n := h.fields[i].name; n != Unknown && h.first[n] == 0 {
			h.first[n] = uint16(i + 1)
		}
	}
}

// CopyFrom makes h a copy of o.
func (h *Head) CopyFrom(o *Head) {
	h.arena = append(h.arena[:0], o.arena...)
	h.fields = append(h.fields[:0], o.fields...)
	h.first = o.first
}

// StatusCode returns the value of :status, 0 where it is missing or not three digits.
func (h *Head) StatusCode() int {
	v := h.Get(Status)
	if len(v) != 3 {
		return 0
	}
	n := 0
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// SetStatus sets :status.
func (h *Head) SetStatus(code int) { h.SetNameInt(Status, int64(code)) }

// view is s as bytes that must not be written to; Head only copies from it.
func view(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
