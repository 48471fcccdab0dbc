package hpack

// huffmanNode decodes eight bits at a time: for each byte either the symbol
// that it begins with, or the node that the code goes on in.
type huffmanNode [256]huffmanStep

type huffmanStep struct {
	next uint8 // node, where bits is 0; 0 there means that no code goes on so
	sym  byte
	bits uint8 // of the symbol's code that lie in this byte
}

// huffmanNodes is built once; node 0 is the root. There are fewer than 256
// nodes, since only the prefixes of codes longer than 8, 16 and 24 bits need one.
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

// appendHuffman appends the decoded string (RFC 7541 §5.2). ok is false where
// a code does not exist (EOS included), and where the padding is not made of
// fewer than eight ones.
func appendHuffman(dst, src []byte) (out []byte, ok bool) {
	var acc uint32 // the low n bits are not decoded yet
	n, node := 0, 0
	for _, b := range src {
		acc = acc<<8 | uint32(b)
		n += 8
		for n >= 8 {
			s := &huffmanNodes[node][byte(acc>>(n-8))]
			switch {
			case s.bits != 0:
				dst = append(dst, s.sym)
				n -= int(s.bits)
				node = 0
			case s.next != 0:
				node = int(s.next)
				n -= 8
			default:
				return dst, false
			}
		}
	}
	for n > 0 {
		s := &huffmanNodes[node][byte(acc<<(8-n))]
		if s.bits == 0 || int(s.bits) > n {
			break
		}
		dst = append(dst, s.sym)
		n -= int(s.bits)
		node = 0
	}
	// What is left is padding: a prefix of EOS, so all ones, and none of a
	// longer code that was begun.
	mask := uint32(1)<<n - 1
	return dst, node == 0 && n < 8 && acc&mask == mask
}
