package listener

import (
	"time"

	"sallyport/sidecar/codec"
	"sallyport/sidecar/conn"
	"sallyport/sidecar/loop"
	"sallyport/sidecar/message"
)

// maxInspect bounds what inspection waits for: a ClientHello fits in a record.
const maxInspect = 16<<10 + 512

// inspects says whether a connection's first bytes decide anything.
func (c *Config) inspects() bool { return c.Inspect || c.HTTPInspect || c.ProxyHeader }

// inspectLimit is the limit of what may wait unconsumed while the first bytes are
// inspected: per_connection_buffer_limit_bytes is for what comes after, and a
// ClientHello may be longer.
func inspectLimit(limit int) int {
	if limit <= 0 {
		return limit // the default, which is more
	}
	return max(limit, maxInspect)
}

// inspect looks at the first bytes and returns how many of them are nobody's: a PROXY header.
func (k *connection) inspect(p []byte) int {
	n := 0
	if k.cfg.ProxyHeader && !k.proxied {
		src, dst, used, more, err := conn.ParseProxyHeader(p)
		switch {
		case err != nil && k.cfg.ProxyOption:
			// Not a PROXY header, and the listener takes connections without one.
		case err != nil:
			k.local.count(statProxyError)
			k.conn.Reset()
			return len(p)
		case more && len(p) < maxInspect:
			return 0
		default:
			if src.IsValid() {
				k.Remote, k.Direct = src, src
				k.Local = dst
				k.conn.SetRemoteAddr(src)
			}
			n = used
		}
		k.proxied = true
		p = p[n:]
	}
	if k.cfg.Inspect {
		if len(p) == 0 {
			return n
		}
		hello, more, err := conn.ParseClientHello(p)
		if more && len(p) < maxInspect {
			return n
		}
		if err == nil && !more {
			k.transport, k.SNI, k.alpn = "tls", hello.ServerName, hello.ALPN
		}
	}
	if k.cfg.HTTPInspect && k.transport == "raw_buffer" {
		if more := k.inspectHTTP(p); more && len(p) < maxInspect {
			return n
		}
	}
	stop(k.timer)
	k.choose()
	return n
}

// inspectFor bounds the waiting for more.
func (k *connection) inspectFor(d time.Duration) {
	if k.timer == nil {
		k.timer = new(loop.Timer)
		k.timer.Init(k.inspectTimeout)
	}
	k.Worker.Schedule(k.timer, d)
}

// inspectTimeout ends the waiting for more.
func (k *connection) inspectTimeout() {
	defer k.Worker.Guard(k.conn)
	if k.phase != inspecting {
		return
	}
	k.local.count(statFilterTimeout)
	if k.cfg.ContinueTime {
		k.decide()
		return
	}
	k.conn.Close()
}

// cutOff is for a client that ended its sending before inspection had enough. It
// may still want an answer: a server that speaks first has one, and so may one to
// which what came is a whole request. Only a PROXY header is not done without,
// and not in part: it says whose connection this is.
func (k *connection) cutOff() {
	if k.cfg.ProxyHeader && !k.proxied && (!k.cfg.ProxyOption || k.conn.BytesRead() > 0) {
		k.local.count(statProxyError)
		k.conn.Close()
		return
	}
	k.ended = true
	k.decide()
}

// decide ends the inspection with what is known. What was looked at is presented
// again, and the end of the client's sending after it.
func (k *connection) decide() {
	stop(k.timer)
	k.choose()
	k.conn.SetHandler(k)
}

// As inspection names what it found.
var (
	alpnHTTP10 = []string{"http/1.0"}
	alpnHTTP11 = []string{"http/1.1"}
	alpnH2C    = []string{"h2c"}
)

// inspectHTTP finds the version of plaintext HTTP for matching by application protocol.
//
// Envoy's inspector calls a request HTTP whatever the form of its target, and so
// does this one where the client speaks to this listener. A client that was
// redirected means somebody else: CONNECT and absolute-form (RFC 9112 §3.2.2,
// §3.2.3) are then for the forward proxy that it was connecting to, which needs
// them as they are. A connection manager would refuse the one, and rewrite the
// other to the origin-form that a proxy does not take. They are no HTTP to us.
func (k *connection) inspectHTTP(p []byte) (more bool) {
	switch id, ok := codec.Sniff(p); {
	case !ok:
		return true
	case id == codec.HTTP2:
		k.alpn = alpnH2C
		return false
	}
	switch k.line.scan(p, k.redirected) {
	case lineGoesOn:
		return true
	case lineHTTP10:
		k.alpn = alpnHTTP10
	case lineHTTP11:
		k.alpn = alpnHTTP11
	}
	return false
}

// requestLine tells a request line of HTTP/1 (RFC 9112 §3) from the beginning of
// another protocol, at the first byte that it cannot have: who speaks another
// protocol may be waiting for an answer. It looks at each byte once, however few
// come at a time.
type requestLine struct {
	part  linePart
	size  int8 // of the part, where that is bounded
	minor byte // of the version
	read  int  // bytes looked at
}

type linePart uint8

const (
	partMethod linePart = iota
	partTarget          // its first byte
	partScheme
	partSlashes // behind a scheme
	partRest    // of the target
	partVersion
)

// What a line is.
type lineIs uint8

const (
	lineGoesOn lineIs = iota
	lineNotHTTP
	lineHTTP10
	lineHTTP11
)

// maxMethod is longer than any method of the registry (RFC 9110 §16.1).
const maxMethod = 32

// scan goes on in p, which begins with the line.
func (l *requestLine) scan(p []byte, originOnly bool) lineIs {
	for l.read < len(p) {
		c := p[l.read]
		if l.part == partVersion {
			if is := l.version(c); is != lineGoesOn {
				return is
			}
		} else if !l.fits(c, p[:l.read], originOnly) {
			return lineNotHTTP
		}
		l.read++
	}
	return lineGoesOn
}

// fits says whether c can follow before in a method or target.
func (l *requestLine) fits(c byte, before []byte, originOnly bool) bool {
	switch l.part {
	case partMethod:
		if c == ' ' {
			l.part = partTarget
			return l.size > 0
		}
		l.size++
		return l.size <= maxMethod && message.IsTokenByte(c)
	case partTarget:
		switch {
		case c == '/' || c == '*': // origin-form and asterisk-form
			l.part = partRest
		case c == ' ': // RFC 9112 §3 lets a server take more than one; whether it does is the codec's affair
			return true
		case originOnly:
			return false
		case string(before) == "CONNECT ":
			l.part = partRest
		default:
			l.part = partScheme
			return isAlpha(c)
		}
	case partScheme: // RFC 3986 §3.1
		if c == ':' {
			l.part, l.size = partSlashes, 0
			return true
		}
		return isAlpha(c) || isDigit(c) || c == '+' || c == '-' || c == '.'
	case partSlashes:
		if l.size++; l.size == 2 {
			l.part = partRest
		}
		return c == '/'
	case partRest:
		if c == ' ' {
			l.part, l.size = partVersion, 0
			return true
		}
	}
	return c > ' ' && c < 0x7f
}

// version reads on in HTTP-version and the line's end.
func (l *requestLine) version(c byte) lineIs {
	const pattern = "HTTP/1.x\r\n"
	switch {
	case pattern[l.size] == 'x' && (c == '0' || c == '1'):
		l.minor = c
	case pattern[l.size] == 'x' || c != pattern[l.size]:
		return lineNotHTTP
	}
	if l.size++; int(l.size) < len(pattern) {
		return lineGoesOn
	}
	if l.minor == '0' {
		return lineHTTP10
	}
	return lineHTTP11
}

func isAlpha(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }
