package message

// Rest is what the bytes that a codec's Feed did not consume wait for.
type Rest uint8

const (
	ForBytes Rest = iota // more bytes
	ForTurn              // the next turn of the loop
	ForOwner             // the codec's word to its owner that it goes on; nothing is read before
)

// End is where a server's codec stands with its connection.
type End uint8

const (
	Open   End = iota
	Close      // it is over: what waits is sent, and the connection closed
	Linger     // the same, for a client that may be sending still: it must get to read the answer
	Abort      // a response was cut off, which must not look whole: the connection is reset
)
