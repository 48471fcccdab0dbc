package message

// Version is the version of HTTP that a message came or went in.
type Version uint8

const (
	HTTP10 Version = iota
	HTTP11
	HTTP2
)

// Multiplexed says that a message shares its connection with others, and may be
// given up without them.
func (v Version) Multiplexed() bool { return v >= HTTP2 }

// String is the version as logs print it.
func (v Version) String() string { return [...]string{"HTTP/1.0", "HTTP/1.1", "HTTP/2"}[v] }
