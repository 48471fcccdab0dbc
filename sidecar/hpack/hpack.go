// Package hpack is HPACK (RFC 7541), straight between the wire and a
// message.Head: names of the static table are known without looking them up,
// and the bytes of a dynamic table lie in one arena. A Decoder or Encoder
// belongs to one direction of one connection and is used on that connection's
// worker by the HTTP/2 codec. Neither allocates once its table has grown.
package hpack

import "errors"

// Errors of Decode. After ErrLimit and ErrField the tables of both sides still
// agree, and the connection goes on. All others are the connection error
// COMPRESSION_ERROR (RFC 9113 §4.3).
var (
	ErrTruncated = errors.New("a header block ends in the middle of a representation")
	ErrIndex     = errors.New("a header block refers to an entry that no table has")
	ErrInteger   = errors.New("an integer in a header block is larger than anything it can mean")
	ErrHuffman   = errors.New("a Huffman string holds a code of no symbol, or padding that is not a prefix of EOS shorter than a byte")
	ErrTableSize = errors.New("a table size update is above the limit, missing after the limit was lowered, or not at the start of its block")
	ErrLimit     = errors.New("a header list is larger than allowed")
	ErrField     = errors.New("a header list has a field that HTTP/2 forbids")
)

const (
	// defaultTableSize holds before SETTINGS_HEADER_TABLE_SIZE is known (RFC 9113 §6.5.2).
	defaultTableSize = 4096
	// entryOverhead is what an entry counts beside its bytes (RFC 7541 §4.1).
	entryOverhead = 32
)
