// Package hpack is HPACK (RFC 7541), straight between the wire and a
// message.Head: static names are known without looking them up, and dynamic
// tables live in one arena. A Decoder or Encoder belongs to one direction of
// one connection and is used on that connection's worker.
package hpack

import (
	"errors"

	"sallyport/sidecar/message"
)

// Errors of Decode. All but ErrLimit mean that the two tables no longer agree:
// a connection error COMPRESSION_ERROR (RFC 9113 §4.3).
var (
	ErrTruncated = errors.New("hpack: header block ends in the middle of a representation")
	ErrIndex     = errors.New("hpack: index of no entry")
	ErrInteger   = errors.New("hpack: integer is too large")
	ErrHuffman   = errors.New("hpack: Huffman code of no symbol, or padding that is not its prefix")
	ErrTableSize = errors.New("hpack: table size update above the limit, or not at the start of a block")
	ErrLimit     = errors.New("hpack: header list is larger than allowed")
)

// Decoder decodes header blocks of one connection.
type Decoder struct {
	table   dynamic
	allowed uint32 // what our SETTINGS_HEADER_TABLE_SIZE promises
	// MaxBytes and MaxCount bound a decoded header list: names and values
	// with 32 bytes overhead each, as SETTINGS_MAX_HEADER_LIST_SIZE counts.
	MaxBytes, MaxCount int
	name, value        []byte // scratch for Huffman
}

// NewDecoder returns a decoder whose peer may use a table of that size.
func NewDecoder(tableSize uint32, maxBytes, maxCount int) *Decoder {
	d := &Decoder{allowed: tableSize, MaxBytes: maxBytes, MaxCount: maxCount}
	d.table.max = tableSize
	return d
}

// Decode appends the fields of a complete header block to h. After ErrLimit
// the tables are still right and h holds the fields up to the limit; after any
// other error the connection is lost.
func (d *Decoder) Decode(p []byte, h *message.Head) error {
	size, count := 0, 0
	over := false
	first := true
	for len(p) > 0 {
		b := p[0]
		var known message.Name
		var name, value []byte
		var err error
		index := false
		switch {
		case b&0x80 != 0: // §6.1 indexed field
			var i uint64
			if i, p, err = integer(p, 7); err != nil {
				return err
			}
			if known, name, value, err = d.entry(i); err != nil {
				return err
			}
		case b&0xe0 == 0x20: // §6.3 table size update, only before the first field (§4.2)
			var n uint64
			if n, p, err = integer(p, 5); err != nil {
				return err
			}
			if !first || n > uint64(d.allowed) {
				return ErrTableSize
			}
			d.table.resize(uint32(n))
			continue
		default: // §6.2 literals: with indexing, without, never
			bits := 4
			if index = b&0x40 != 0; index {
				bits = 6
			}
			var i uint64
			if i, p, err = integer(p, bits); err != nil {
				return err
			}
			if i > 0 {
				if known, name, _, err = d.entry(i); err != nil {
					return err
				}
			} else {
				if name, p, err = d.str(p, &d.name); err != nil {
					return err
				}
				known = message.NameOf(name)
			}
			if value, p, err = d.str(p, &d.value); err != nil {
				return err
			}
		}
		first = false
		size += len(name) + len(value) + entryOverhead
		count++
		// Beyond the limit fields are decoded for the table's sake alone:
		// nothing is stored that a few bytes on the wire could multiply.
		over = over || size > d.MaxBytes || count > d.MaxCount || len(name) > 1<<15
		if !over {
			if known != message.Unknown {
				h.AddName(known, value)
			} else {
				h.Add(name, value)
			}
		}
		if index {
			d.table.add(known, name, value)
		}
	}
	if over {
		return ErrLimit
	}
	return nil
}

// entry is §2.3.3: the static table, then the dynamic one from its newest entry.
func (d *Decoder) entry(i uint64) (message.Name, []byte, []byte, error) {
	switch {
	case i == 0:
		return 0, nil, nil, ErrIndex
	case i < uint64(len(staticTable)):
		e := &staticTable[i]
		return e.known, view(e.name), view(e.value), nil
	}
	i -= uint64(len(staticTable))
	if i >= uint64(d.table.len()) {
		return 0, nil, nil, ErrIndex
	}
	e := d.table.at(int(i))
	return e.known, d.table.name(e), d.table.value(e), nil
}

// integer is §5.1. Six bytes hold all that is of use here; more is an error.
func integer(p []byte, prefix int) (uint64, []byte, error) {
	mask := byte(1<<prefix - 1)
	n := uint64(p[0] & mask)
	p = p[1:]
	if n < uint64(mask) {
		return n, p, nil
	}
	for shift := 0; shift < 35; shift += 7 {
		if len(p) == 0 {
			return 0, nil, ErrTruncated
		}
		b := p[0]
		p = p[1:]
		n += uint64(b&0x7f) << shift
		if b&0x80 == 0 {
			return n, p, nil
		}
	}
	return 0, nil, ErrInteger
}

// str is §5.2. The result is a view of the block, or of the scratch.
func (d *Decoder) str(p []byte, scratch *[]byte) (s, rest []byte, err error) {
	if len(p) == 0 {
		return nil, nil, ErrTruncated
	}
	huffman := p[0]&0x80 != 0
	n, p, err := integer(p, 7)
	if err != nil {
		return nil, nil, err
	}
	if n > uint64(len(p)) {
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
