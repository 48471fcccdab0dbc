package hpack

import "sallyport/sidecar/message"

const (
	// maxName bounds a field name, which a Head counts in 16 bits.
	maxName = 1 << 15
	// keptString is the memory for Huffman strings that is kept from one block to the next.
	keptString = 4 << 10
)

// Decoder decodes the header blocks that one peer sends on one connection.
type Decoder struct {
	table   table
	allowed uint32 // the largest size that the peer may choose
	// mustShrink: the limit was lowered below what the peer uses, which it has to say first (§4.2).
	mustShrink         bool
	maxBytes, maxCount int
	name, value        []byte // what Huffman strings are decoded into
}

// NewDecoder returns a decoder of header lists of at most maxCount fields and
// maxBytes bytes: names and values and 32 bytes for each field, as
// SETTINGS_MAX_HEADER_LIST_SIZE counts. tableSize is what our SETTINGS say;
// until they are acknowledged the peer may still use the default.
func NewDecoder(tableSize uint32, maxBytes, maxCount int) *Decoder {
	return &Decoder{
		table:    table{max: defaultTableSize},
		allowed:  max(tableSize, defaultTableSize),
		maxBytes: maxBytes,
		maxCount: maxCount,
	}
}

// Acknowledged takes the peer's word that our SETTINGS_HEADER_TABLE_SIZE is in force.
func (d *Decoder) Acknowledged(tableSize uint32) {
	d.allowed = tableSize
	d.mustShrink = d.table.max > tableSize
}

// list is what must be known of the fields of one block that came so far.
type list struct {
	h           *message.Head
	left, count int // bytes and fields that the limits leave
	over, bad   bool
	regular     bool                     // a field that is no pseudo-header field came
	cookie      bool                     // a Cookie field came
	seen        [message.Status + 1]bool // pseudo-header fields that came
}

// Decode appends the fields of a complete header block to h, with the names
// and values, the order and the number of pseudo-header fields checked as RFC
// 9113 §8.2 and §8.3 say. After ErrLimit and ErrField h holds a part of them.
func (d *Decoder) Decode(p []byte, h *message.Head) error {
	err := d.decode(p, h)
	if cap(d.name) > keptString {
		d.name = nil
	}
	if cap(d.value) > keptString {
		d.value = nil
	}
	return err
}

func (d *Decoder) decode(p []byte, h *message.Head) error {
	l := list{h: h, left: d.maxBytes, count: d.maxCount}
	first := true
	for len(p) > 0 {
		b := p[0]
		if b&0xe0 == 0x20 { // §6.3
			n, rest, err := integer(p, 5)
			if err != nil {
				return err
			}
			if !first || n > d.allowed {
				return ErrTableSize
			}
			d.table.resize(n)
			d.mustShrink = false
			p = rest
			continue
		}
		if first {
			if d.mustShrink {
				return ErrTableSize
			}
			first = false
		}
		var err error
		if b&0x80 != 0 { // §6.1
			if p, err = d.indexed(p, &l); err != nil {
				return err
			}
			continue
		}
		if p, err = d.literal(p, &l); err != nil {
			return err
		}
	}
	d.name, d.value = small(d.name), small(d.value)
	switch {
	case l.over:
		return ErrLimit
	case l.bad:
		return ErrField
	}
	return nil
}

// scratchKept is the memory for strings of Huffman code that is kept from one block to the next.
const scratchKept = 4 << 10

func small(b []byte) []byte {
	if cap(b) > scratchKept {
		return nil
	}
	return b
}

// indexed is §6.1: a whole field by its index.
func (d *Decoder) indexed(p []byte, l *list) ([]byte, error) {
	i := uint32(p[0] & 0x7f)
	p = p[1:]
	if i == 0x7f {
		n, rest, err := more(p, i)
		if err != nil {
			return nil, err
		}
		i, p = n, rest
	}
	if i-1 < staticLen-1 {
		e := &staticTable[i]
		l.add(e.known, nameClass[e.known], view(e.name), e.value)
		return p, nil
	}
	age := i - staticLen
	if i == 0 || age >= d.table.n {
		return nil, ErrIndex
	}
	e := d.table.at(age)
	l.add(e.known, e.class, d.table.name(e), d.table.value(e))
	return p, nil
}

// literal is §6.2: with incremental indexing, without, and never indexed.
func (d *Decoder) literal(p []byte, l *list) ([]byte, error) {
	b := p[0]
	bits := 4
	if b&0x40 != 0 {
		bits = 6
	}
	i, p, err := integer(p, bits)
	if err != nil {
		return nil, err
	}
	var known message.Name
	var c class
	var name, value []byte
	switch {
	case i == 0:
		if name, p, err = str(p, &d.name); err != nil {
			return nil, err
		}
		known = message.NameOf(name)
		c = classOfName(known, name)
	case i < staticLen:
		e := &staticTable[i]
		known, name, c = e.known, view(e.name), nameClass[e.known]
	case i-staticLen < d.table.n:
		e := d.table.at(i - staticLen)
		known, name = e.known, d.table.name(e)
		c = classOfName(known, name)
	default:
		return nil, ErrIndex
	}
	if value, p, err = str(p, &d.value); err != nil {
		return nil, err
	}
	c |= classOfValue(known, value)
	if l.add(known, c, name, value) && b&0xf0 == 0x10 {
		l.h.MarkSensitive() // §6.2.3
	}
	if b&0x40 != 0 {
		d.table.add(known, c, name, value)
	}
	return p, nil
}

// add takes one field, and says whether it is in the head.
func (l *list) add(known message.Name, c class, name, value []byte) bool {
	l.left -= len(name) + len(value) + entryOverhead
	// Crumbs of a cookie count as the one field that they are put together to (RFC 9113 §8.2.3); their bytes count each.
	if known != message.Cookie || !l.cookie {
		l.count--
		l.cookie = l.cookie || known == message.Cookie
	}
	// Beyond the limit fields are decoded for the table's sake alone:
	// nothing is stored that a byte on the wire could multiply.
	if l.left < 0 || l.count < 0 || len(name) > maxName || l.h.Len() == message.MaxFields {
		l.over = true
	}
	if l.over {
		return false
	}
	switch {
	case c&(forbidden|unknownPseudo) != 0:
		l.bad = true
		return false
	case c&pseudo == 0:
		l.regular = true
	case l.regular || l.seen[known]:
		l.bad = true // §8.3: all come first, and once
		return false
	default:
		l.seen[known] = true
	}
	l.h.AddField(known, name, value)
	return true
}

// integer is §5.1, with the prefix in the first byte of p.
func integer(p []byte, prefix int) (uint32, []byte, error) {
	mask := uint32(1)<<prefix - 1
	n := uint32(p[0]) & mask
	if n < mask {
		return n, p[1:], nil
	}
	return more(p[1:], n)
}

// more reads what follows a prefix of all ones. Four bytes, 28 bits, hold
// every index, length and size that can be right here; padding with zeros
// beyond that is an error too, as §5.1 allows.
func more(p []byte, n uint32) (uint32, []byte, error) {
	for shift := 0; shift < 28; shift += 7 {
		if len(p) == 0 {
			return 0, nil, ErrTruncated
		}
		b := p[0]
		p = p[1:]
		n += uint32(b&0x7f) << shift
		if b < 0x80 {
			return n, p, nil
		}
	}
	return 0, nil, ErrInteger
}

// str is §5.2. The result is a view of the block, or of the scratch.
func str(p []byte, scratch *[]byte) (s, rest []byte, err error) {
	if len(p) == 0 {
		return nil, nil, ErrTruncated
	}
	huffman := p[0]&0x80 != 0
	n, p, err := integer(p, 7)
	if err != nil {
		return nil, nil, err
	}
	if uint(n) > uint(len(p)) {
		return nil, nil, ErrTruncated
	}
	s, rest = p[:n], p[n:]
	if huffman {
		out, ok := appendHuffman((*scratch)[:0], s)
		*scratch = out
		if !ok {
			return nil, nil, ErrHuffman
		}
		s = out
	}
	return s, rest, nil
}
