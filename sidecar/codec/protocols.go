package codec

import (
	"strings"
	"time"

	"sallyport/sidecar/http1"
	"sallyport/sidecar/http2"
	"sallyport/sidecar/message"
)

// ID is a protocol: its place in the table, and in whatever is kept for each of them.
type ID uint8

const (
	HTTP1 ID = iota // HTTP/1.1, and 1.0
	HTTP2
	N // how many there are

	// Auto, in a configuration, stands for none of them: ALPN or the first bytes tell.
	Auto = N
)

// Options are the limits and permissions of every protocol; immutable once used.
type Options struct {
	HTTP1 http1.Options
	HTTP2 http2.Options
}

// ServerOptions are what a connection adds to them.
type ServerOptions struct {
	*Options
	// Scheme of the requests, where they do not say.
	Scheme string
	// Shared, BufferLimit, FlushTimeout and LingerTimeout are those of http2.Options.
	Shared                      bool
	BufferLimit                 int
	FlushTimeout, LingerTimeout time.Duration
}

// Protocol is an entry of the table.
type Protocol struct {
	// ALPN is its name in TLS (RFC 7301).
	ALPN string
	// Preface is what a client sends first, by which it is told from the others on plaintext; "": it has none.
	Preface string
	// Version of messages, the highest one.
	Version message.Version
	// Multiplexed says that a connection carries more than one stream at a time.
	Multiplexed bool
	// NewServer and NewClient begin on a connection that is established.
	NewServer func(out Output, o ServerOptions, owner ServerOwner) Server
	NewClient func(out Output, o *Options, bufferLimit int, owner ClientOwner) Client
}

// Protocols is the table.
var Protocols = [N]Protocol{
	HTTP1: {
		ALPN: "http/1.1", Version: message.HTTP11,
		NewServer: func(out Output, o ServerOptions, owner ServerOwner) Server {
			c := http1.NewServer(out, &o.HTTP1, owner)
			c.Scheme, c.Turn.Limit = o.Scheme, message.TurnCost
			return c
		},
		NewClient: func(out Output, o *Options, _ int, owner ClientOwner) Client {
			c := http1.NewClient(out, &o.HTTP1, owner)
			c.Turn.Limit = message.TurnCost
			return c
		},
	},
	HTTP2: {
		ALPN: "h2", Preface: http2.Preface, Version: message.HTTP2, Multiplexed: true,
		NewServer: func(out Output, o ServerOptions, owner ServerOwner) Server {
			p := o.HTTP2
			p.Shared, p.BufferLimit, p.FlushTimeout, p.LingerTimeout = o.Shared, o.BufferLimit, o.FlushTimeout, o.LingerTimeout
			c := http2.NewServer(out, &p, owner)
			c.Turn.Limit = message.TurnCost
			c.Start()
			return c
		},
		NewClient: func(out Output, o *Options, bufferLimit int, owner ClientOwner) Client {
			p := o.HTTP2
			p.BufferLimit = bufferLimit
			c := http2.NewClient(out, &p, owner)
			c.Turn.Limit = message.TurnCost
			c.Start()
			return c
		},
	},
}

// InputLimit is how many bytes a Feed may leave unconsumed while it waits for
// more: the reader of the connection must be able to keep them.
func (o *Options) InputLimit() int { return max(o.HTTP1.InputLimit(), o.HTTP2.InputLimit()) }

// Negotiated is the protocol of that name in TLS; false where it is none of ours, or none was negotiated.
func Negotiated(alpn string) (ID, bool) {
	for id := range N {
		if Protocols[id].ALPN == alpn {
			return id, true
		}
	}
	return 0, false
}

// Of is the protocol that messages of that version come in.
func Of(v message.Version) ID {
	for id := range N {
		if Protocols[id].Version == v {
			return id
		}
	}
	return HTTP1
}

// Sniff is the protocol of a client whose first bytes are p: false where they may become a preface.
func Sniff(p []byte) (ID, bool) {
	open := false
	for id := range N {
		switch preface := Protocols[id].Preface; {
		case preface == "":
		case len(p) >= len(preface) && string(p[:len(preface)]) == preface:
			return id, true
		case strings.HasPrefix(preface, string(p)):
			open = true
		}
	}
	return HTTP1, !open
}
