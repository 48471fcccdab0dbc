package hpack

import (
	"unsafe"

	"github.com/cespare/xxhash/v2"

	"sallyport/sidecar/message"
)

// Encoder encodes header blocks of one connection. It spends no Huffman code:
// between two proxies what repeats is one byte by the dynamic table, and the
// rest is not worth the cycles.
type Encoder struct {
	table  dynamic
	limit  uint32 // the most that this side wants to keep
	resize bool   // a table size update is due
	least  uint32 // the smallest size since the last block (§4.2)

	// slots remember, by a hash of the name, the last value and, if it is in
	// the table, which entry it is: the one candidate that a field is
	// compared with. A value enters the table when it comes a second
	// time in a row, so that ids and dates do not wash out what repeats.
	slots [64]slot
}

type slot struct {
	entry uint32 // dynamic.added when it was inserted, 0: not in the table
	hash  uint64 // of name and value
}

// defaultTable is SETTINGS_HEADER_TABLE_SIZE before any SETTINGS (RFC 9113 §6.5.2).
const defaultTable = 4096

// NewEncoder returns an encoder that keeps at most limit bytes of table.
func NewEncoder(limit uint32) *Encoder {
	e := &Encoder{limit: limit}
	e.table.max = defaultTable
	e.least = defaultTable
	if limit < defaultTable {
		e.SetTableSize(defaultTable)
	}
	return e
}

// SetTableSize takes the peer's SETTINGS_HEADER_TABLE_SIZE.
func (e *Encoder) SetTableSize(n uint32) {
	n = min(n, e.limit)
	if n == e.table.max {
		return
	}
	e.resize = true
	e.least = min(e.least, n)
	e.table.resize(n)
}

// sensitive values must not be found out by an attacker who shares the
// connection and sees its lengths (RFC 7541 §7.1.3).
func sensitive(n message.Name, value []byte) bool {
	switch n {
	case message.Authorization, message.ProxyAuthorization, message.SetCookie:
		return true
	case message.Cookie:
		return len(value) < 20
	}
	return false
}

// Begin starts a header block.
func (e *Encoder) Begin(dst []byte) []byte {
	if e.resize {
		e.resize = false
		if e.least < e.table.max {
			dst = appendInt(dst, 0x20, 5, uint64(e.least))
		}
		dst = appendInt(dst, 0x20, 5, uint64(e.table.max))
		e.least = e.table.max
	}
	return dst
}

// Field appends one field.
func (e *Encoder) Field(dst []byte, known message.Name, name string, value []byte) []byte {
	index := uint64(0)
	if at := staticName[known]; at != 0 {
		index = uint64(at)
		for i := int(at); i < len(staticTable) && staticTable[i].known == known; i++ {
			if staticTable[i].value == string(value) {
				return appendInt(dst, 0x80, 7, uint64(i))
			}
		}
	}
	if sensitive(known, value) {
		return appendLiteral(dst, 0x10, 4, index, name, value)
	}
	s, hash := e.slot(known, name, value)
	if s.entry != 0 {
		// Older entries are evicted first: one is there if not too many came after it.
		if age := int(e.table.added - s.entry); age < e.table.len() {
			d := e.table.at(age)
			if string(e.table.value(d)) == string(value) && string(e.table.name(d)) == name {
				return appendInt(dst, 0x80, 7, uint64(len(staticTable)+age))
			}
			if index == 0 && string(e.table.name(d)) == name {
				index = uint64(len(staticTable) + age)
			}
		} else {
			s.entry = 0
		}
	}
	if s.hash != hash {
		s.hash = hash
		return appendLiteral(dst, 0x00, 4, index, name, value)
	}
	dst = appendLiteral(dst, 0x40, 6, index, name, value)
	e.table.add(known, view(name), value)
	s.entry = e.table.added
	return dst
}

func (e *Encoder) slot(known message.Name, name string, value []byte) (*slot, uint64) {
	hash := xxhash.Sum64(value)
	if known != message.Unknown {
		hash += uint64(known)
		return &e.slots[known%64], hash
	}
	n := xxhash.Sum64String(name)
	return &e.slots[n%64], hash + n
}

// appendInt is §5.1.
func appendInt(dst []byte, pattern byte, prefix int, n uint64) []byte {
	mask := uint64(1<<prefix - 1)
	if n < mask {
		return append(dst, pattern|byte(n))
	}
	dst = append(dst, pattern|byte(mask))
	for n -= mask; n >= 0x80; n >>= 7 {
		dst = append(dst, byte(n)|0x80)
	}
	return append(dst, byte(n))
}

func appendLiteral(dst []byte, pattern byte, prefix int, index uint64, name string, value []byte) []byte {
	dst = appendInt(dst, pattern, prefix, index)
	if index == 0 {
		dst = append(appendInt(dst, 0, 7, uint64(len(name))), name...)
	}
	return append(appendInt(dst, 0, 7, uint64(len(value))), value...)
}

func view(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
