package hpack

import (
	"hash/maphash"

	"sallyport/sidecar/message"
)

// Encoder encodes the header blocks that one side sends on one connection. It
// spends no Huffman code: between two proxies what repeats is a byte or two by
// the dynamic table, and the rest is not worth the cycles.
type Encoder struct {
	table  table
	limit  uint32 // the most that this side wants to keep
	resize bool   // a table size update is due
	least  uint32 // the smallest size since the last block (§4.2)

	// sightings are found by a hash of name and value. A field enters the
	// table when it is seen a second time, so that ids and dates do not wash
	// out what repeats. The next field of the same slot forgets the one
	// before, and costs at most a field that is sent as a literal again.
	sightings [256]sighting
}

type sighting struct {
	tag   uint32 // of the hash; 0 in an empty slot
	entry uint32 // table.added after it was inserted, 0 where it was not
}

// seed makes the slots of a process unpredictable to its peers.
var seed = maphash.MakeSeed()

// NewEncoder returns an encoder that keeps at most limit bytes of table.
func NewEncoder(limit uint32) *Encoder {
	e := &Encoder{limit: limit}
	e.table.max = defaultTableSize
	if limit < defaultTableSize {
		e.SetTableSize(defaultTableSize)
	}
	return e
}

// SetTableSize takes the peer's SETTINGS_HEADER_TABLE_SIZE.
func (e *Encoder) SetTableSize(n uint32) {
	n = min(n, e.limit)
	if n == e.table.max {
		return // nothing new since the last change
	}
	if !e.resize || n < e.least {
		e.least = n
	}
	e.resize = true
	e.table.resize(n)
}

// sensitive values must not be found out by someone who can add fields to the
// same connection and sees lengths (RFC 7541 §7.1.3): credentials, and cookies
// so short that guessing pays.
func sensitive(n message.Name, value []byte) bool {
	switch n {
	case message.Authorization, message.ProxyAuthorization, message.SetCookie:
		return true
	case message.Cookie:
		return len(value) < 20
	}
	return false
}

// Begin starts a header block: what the peer must know of the table's size comes first.
func (e *Encoder) Begin(dst []byte) []byte {
	if e.resize {
		e.resize = false
		if e.least < e.table.max {
			dst = appendInt(dst, 0x20, 5, e.least)
		}
		dst = appendInt(dst, 0x20, 5, e.table.max)
	}
	return dst
}

// Field appends one field: known is its name where there is a number for it,
// and never says that it came as never to be indexed.
func (e *Encoder) Field(dst []byte, known message.Name, name string, value []byte, never bool) []byte {
	index := uint32(staticIndex[known])
	if index != 0 {
		for i := index; i < staticLen && staticTable[i].known == known; i++ {
			if string(staticTable[i].value) == string(value) {
				return append(dst, 0x80|byte(i))
			}
		}
	}
	if never || sensitive(known, value) {
		return appendLiteral(dst, 0x10, 4, index, name, value)
	}
	hash := maphash.Bytes(seed, value)
	if known != message.Unknown {
		hash ^= uint64(known) * 0x9e3779b97f4a7c15
	} else {
		hash ^= maphash.String(seed, name)
	}
	s, tag := &e.sightings[hash%uint64(len(e.sightings))], uint32(hash>>32)|1
	if s.tag != tag {
		*s = sighting{tag: tag}
		return appendLiteral(dst, 0, 4, index, name, value)
	}
	if s.entry != 0 {
		// The oldest are evicted first: it is there if not too many came after it.
		if age := e.table.added - s.entry; age < e.table.n {
			d := e.table.at(age)
			if string(e.table.value(d)) == string(value) && string(e.table.name(d)) == name {
				return appendInt(dst, 0x80, 7, staticLen+age)
			}
		}
		s.entry = 0
	}
	if len(name)+len(value)+entryOverhead > int(e.table.max)/2 {
		return appendLiteral(dst, 0, 4, index, name, value) // it would evict most of what repeats
	}
	dst = appendLiteral(dst, 0x40, 6, index, name, value)
	e.table.add(known, 0, view(name), value)
	s.entry = e.table.added
	return dst
}

// appendInt is §5.1.
func appendInt(dst []byte, pattern byte, prefix int, n uint32) []byte {
	mask := uint32(1)<<prefix - 1
	if n < mask {
		return append(dst, pattern|byte(n))
	}
	dst = append(dst, pattern|byte(mask))
	for n -= mask; n >= 0x80; n >>= 7 {
		dst = append(dst, byte(n)|0x80)
	}
	return append(dst, byte(n))
}

func appendLiteral(dst []byte, pattern byte, prefix int, index uint32, name string, value []byte) []byte {
	dst = appendInt(dst, pattern, prefix, index)
	if index == 0 {
		dst = append(appendInt(dst, 0, 7, uint32(len(name))), name...)
	}
	return append(appendInt(dst, 0, 7, uint32(len(value))), value...)
}
