package hpack

import (
	"encoding/binary"
	"slices"
)

// huffmanNode decodes eight bits: for each byte either the symbol that it
// begins with, or the node where the code goes on.
type huffmanNode [256]huffmanStep

type huffmanStep struct {
	next uint8 // where bits is 0: a node, or 0 where no code goes on so
	sym  byte
	bits uint8 // of the symbol's code that lie in this byte
}

// huffmanNodes has the root first. Only prefixes of codes longer than 8, 16
// and 24 bits need a node, which are far fewer than 256.
var huffmanNodes = func() []huffmanNode {
	nodes := make([]huffmanNode, 1)
	for sym := range 256 {
		code, left, at := huffmanCodes[sym], int(huffmanLens[sym]), 0
		for left > 8 {
			b := byte(code >> (left - 8))
			next := nodes[at][b].next
			if next == 0 {
				nodes = append(nodes, huffmanNode{})
				next = uint8(len(nodes) - 1)
				nodes[at][b].next = next
			}
			at = int(next)
			left -= 8
		}
		first := int(byte(code << (8 - left)))
		for i := range 1 << (8 - left) {
			nodes[at][first+i] = huffmanStep{sym: byte(sym), bits: uint8(left)}
		}
	}
	return nodes
}()

const (
	shortestCode = 5
	longestCode  = 32 // 30 bits, in whole bytes
)

// appendHuffman appends the decoded string (RFC 7541 §5.2). ok is false where
// a code does not exist (EOS included), and where the padding is not made of
// fewer than eight ones.
func appendHuffman(dst, src []byte) (out []byte, ok bool) {
	dst = slices.Grow(dst, len(src)*8/shortestCode)
	to, at := dst[:cap(dst)], len(dst)
	root := &huffmanNodes[0]
	var acc uint64 // the low n bits are not decoded yet
	n := uint(0)
	for {
		if n <= 32 && len(src) >= 4 {
			acc = acc<<32 | uint64(binary.BigEndian.Uint32(src))
			src = src[4:]
			n += 32
		}
		if n < longestCode {
			break
		}
		for n >= longestCode {
			s := root[byte(acc>>(n-8))]
			n -= 8
			for s.bits == 0 {
				if s.next == 0 {
					return dst, false
				}
				s = huffmanNodes[s.next][byte(acc>>(n-8))]
				n -= 8
			}
			n += 8 - uint(s.bits)
			to[at] = s.sym
			at++
		}
	}
	for _, b := range src {
		acc = acc<<8 | uint64(b)
		n += 8
	}
	// The last codes, fewer than 56 bits: a code may be cut off by the end,
	// where ones stand in for what is missing.
	for n > 0 {
		s, k := root[tailByte(acc, n)], uint(0)
		for s.bits == 0 && s.next != 0 && n > k+8 {
			k += 8
			s = huffmanNodes[s.next][tailByte(acc, n-k)]
		}
		if s.bits == 0 || k+uint(s.bits) > n {
			break
		}
		to[at] = s.sym
		at++
		n -= k + uint(s.bits)
	}
	// What is left is padding: a prefix of EOS, so all ones.
	mask := uint64(1)<<n - 1
	return to[:at], n < 8 && acc&mask == mask
}

// tailByte is the first eight of the low n bits of acc, filled up with ones.
func tailByte(acc uint64, n uint) byte {
	if n >= 8 {
		return byte(acc >> (n - 8))
	}
	return byte(acc<<(8-n)) | (1<<(8-n) - 1)
}
