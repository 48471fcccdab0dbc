package stream

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"

	"sallyport/sidecar/loop"
	"sallyport/sidecar/upstream"
)

// Connection is what streams, filters and logs may know of a downstream
// connection. It belongs to the connection's worker.
type Connection struct {
	Worker *loop.Worker
	ID     uint64
	// Remote is the client as the connection or the PROXY protocol says;
	// Direct is the peer of the socket.
	Remote, Direct, Local netip.AddrPort
	// OriginalDst is where the client meant to go, if the listener looked.
	OriginalDst netip.AddrPort
	// BufferLimit is per_connection_buffer_limit_bytes of the listener; 0 is the default.
	BufferLimit int
	// TLS is nil for plaintext.
	TLS *tls.ConnectionState
	// SNI as the ClientHello had it, also where TLS is passed through.
	SNI string
	// Peer is the client's identity, nil without a client certificate.
	Peer *Peer
	// Source is set where hosts are to see the client's address as their peer's (original_src).
	Source *upstream.Source
	// Attached is what filters keep for the life of the connection, by a key
	// of their own; nil until one does.
	Attached map[any]any
	// Listener and Chain by name, for logs.
	Listener, Chain string
}

// Peer is a verified client certificate, taken apart once per connection.
type Peer struct {
	Cert *x509.Certificate
	URI  []string // subject alternative names
	DNS  []string
	// Subject as RFC 2253 writes it, the certificate's SHA-256 in hex.
	Subject, Hash string
	// PEM and ChainPEM are URL-encoded, as x-forwarded-client-cert has them.
	PEM, ChainPEM string
	// LocalURI is the URI name of this side's certificate, for By= in x-forwarded-client-cert.
	LocalURI string
}

// Principal is the SPIFFE ID of the peer: its URI name, or "".
func (c *Connection) Principal() string {
	if c.Peer != nil && len(c.Peer.URI) > 0 {
		return c.Peer.URI[0]
	}
	return ""
}
