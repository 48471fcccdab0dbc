package conn

import (
	"errors"
	"strings"
)

// ClientHelloInfo is what a listener chooses a filter chain by, read from the
// first bytes of a connection without taking part in the handshake.
type ClientHelloInfo struct {
	ServerName string   // in lower case; "" where the client sent none
	ALPN       []string // in the client's order of preference
}

// MaxClientHello is how long a ClientHello may be, as in Envoy's TLS
// inspector. Post-quantum key shares make it about 2 KiB.
const MaxClientHello = 16 << 10

var (
	// ErrNotTLS says that the first bytes are of another protocol.
	ErrNotTLS = errors.New("not a TLS ClientHello")
	// ErrBadClientHello says that it is TLS, but broken.
	ErrBadClientHello = errors.New("malformed TLS ClientHello")
)

const (
	// Of a record, RFC 8446 §5.1.
	typeChangeCipherSpec = 20
	typeHandshake        = 22
	typeApplicationData  = 23

	typeClientHello = 1 // of a handshake message, RFC 8446 §4

	extServerName = 0  // RFC 6066 §3
	extALPN       = 16 // RFC 7301 §3.1
)

// ParseClientHello looks for a ClientHello at the beginning of p, which may be
// spread over several records. needMore asks for more bytes; it is never set
// when MaxClientHello bytes of it are there.
func ParseClientHello(p []byte) (info ClientHelloInfo, needMore bool, err error) {
	// What can be told from few bytes is told at once: a client that
	// speaks another protocol may be waiting for an answer.
	if len(p) > 0 && p[0] != typeHandshake || len(p) > 1 && p[1] != 3 || len(p) > 5 && p[5] != typeClientHello {
		return info, false, ErrNotTLS
	}
	hello, needMore, err := clientHello(p)
	if needMore || err != nil {
		return info, needMore, err
	}
	if !info.parse(hello) {
		return ClientHelloInfo{}, false, ErrBadClientHello
	}
	return info, false, nil
}

// clientHello returns the body of the message, put together from its records.
func clientHello(p []byte) (body []byte, needMore bool, err error) {
	var message []byte
	for {
		if len(p) < recordHeader {
			return nil, true, nil
		}
		n := int(p[3])<<8 | int(p[4])
		// A record of a handshake message is never empty, RFC 8446 §5.1.
		if p[0] != typeHandshake || p[1] != 3 || n == 0 || n > maxPlain {
			return nil, false, ErrBadClientHello
		}
		part := p[recordHeader:]
		whole := len(part) >= n
		if whole {
			part = part[:n]
		}
		if message == nil {
			message = part[:len(part):len(part)]
		} else {
			message = append(message, part...)
		}
		if len(message) >= 4 {
			size := int(message[1])<<16 | int(message[2])<<8 | int(message[3])
			if size > MaxClientHello {
				return nil, false, ErrBadClientHello
			}
			if len(message) >= 4+size {
				return message[4 : 4+size], false, nil
			}
		}
		if !whole {
			return nil, true, nil
		}
		p = p[recordHeader+n:]
	}
}

// parse reads the body, RFC 8446 §4.1.2, of which versions before are a subset.
func (i *ClientHelloInfo) parse(b []byte) bool {
	r := reader{b: b, ok: true}
	r.take(2 + 32) // legacy_version, random
	if len(r.vector(1)) > 32 {
		return false // legacy_session_id
	}
	if n := len(r.vector(2)); n == 0 || n%2 != 0 {
		return false // cipher_suites
	}
	if len(r.vector(1)) == 0 {
		return false // legacy_compression_methods
	}
	if r.ok && len(r.b) == 0 {
		return true // no extensions
	}
	ext := reader{b: r.vector(2), ok: true}
	if !r.ok || len(r.b) != 0 {
		return false
	}
	var seenName, seenALPN bool
	for len(ext.b) > 0 && ext.ok {
		typ := ext.uint16()
		body := reader{b: ext.vector(2), ok: true}
		if !ext.ok {
			return false
		}
		// No extension may be there twice, RFC 8446 §4.2: otherwise the
		// chain could be chosen by one name and the certificate by another.
		switch typ {
		case extServerName:
			if seenName || !i.serverName(body) {
				return false
			}
			seenName = true
		case extALPN:
			if seenALPN || !i.protocols(body) {
				return false
			}
			seenALPN = true
		}
	}
	return ext.ok
}

func (i *ClientHelloInfo) serverName(r reader) bool {
	list := reader{b: r.vector(2), ok: true}
	if !r.ok || len(r.b) != 0 || len(list.b) == 0 {
		return false
	}
	for len(list.b) > 0 {
		typ := list.take(1)
		name := list.vector(2)
		if !list.ok || len(name) == 0 {
			return false
		}
		if typ[0] != 0 {
			continue // only host_name exists
		}
		if i.ServerName != "" || !hostName(name) {
			return false
		}
		i.ServerName = strings.ToLower(string(name))
	}
	return true
}

// hostName accepts what can be part of a DNS name, as text without surprises
// for logs and match tables. crypto/tls refuses a final dot in the same way.
func hostName(b []byte) bool {
	if len(b) > 255 || b[len(b)-1] == '.' {
		return false
	}
	for _, c := range b {
		if c <= ' ' || c >= 0x7f || c == '/' || c == '\\' || c == '"' {
			return false
		}
	}
	return true
}

func (i *ClientHelloInfo) protocols(r reader) bool {
	list := reader{b: r.vector(2), ok: true}
	if !r.ok || len(r.b) != 0 || len(list.b) == 0 {
		return false
	}
	for len(list.b) > 0 {
		name := list.vector(1)
		if !list.ok || len(name) == 0 {
			return false
		}
		i.ALPN = append(i.ALPN, string(name))
	}
	return true
}

// reader takes fields from the front of b; ok is false once one was not there.
type reader struct {
	b  []byte
	ok bool
}

func (r *reader) take(n int) []byte {
	if !r.ok || len(r.b) < n {
		r.ok = false
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) uint16() int {
	b := r.take(2)
	if !r.ok {
		return 0
	}
	return int(b[0])<<8 | int(b[1])
}

// vector takes a vector with a length of that many bytes, RFC 8446 §3.4.
func (r *reader) vector(lengthBytes int) []byte {
	n := 0
	for _, c := range r.take(lengthBytes) {
		n = n<<8 | int(c)
	}
	return r.take(n)
}
