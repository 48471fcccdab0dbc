package http1

import (
	"strconv"

	"sallyport/sidecar/buffer"
	"sallyport/sidecar/message"
)

// framing is how an outgoing message shows its end.
type framing uint8

const (
	frameNone    framing = iota // no content is sent; what is given is dropped
	frameFixed                  // Content-Length
	frameChunked                // chunked
	frameClose                  // the end of the connection
	frameTunnel                 // no message: bytes as they are
)

// writer frames the content of one outgoing message.
type writer struct {
	framing framing
	left    int64 // of frameFixed
}

// data writes a piece of content; false where it breaks the length announced.
func (w *writer) data(b *buffer.Buffer, p []byte, end bool) bool {
	switch w.framing {
	case frameNone:
	case frameFixed:
		if w.left -= int64(len(p)); w.left < 0 || end && w.left != 0 {
			return false
		}
		b.Append(p)
	case frameChunked:
		if len(p) > 0 {
			f := b.Tail(len(p) + 24)
			f = strconv.AppendUint(f, uint64(len(p)), 16)
			f = append(f, '\r', '\n')
			f = append(f, p...)
			f = append(f, '\r', '\n')
			b.SetTail(f)
		}
		if end {
			b.AppendString("0\r\n\r\n")
		}
	default:
		b.Append(p)
	}
	return true
}

// trailers ends the message; false where it breaks the length announced or a
// field cannot be sent. Only chunked content can carry them.
func (w *writer) trailers(b *buffer.Buffer, h *message.Head, enabled bool) bool {
	if w.framing != frameChunked || !enabled {
		return w.data(b, nil, true)
	}
	f := b.Tail(headRoom(h))
	f = append(f, "0\r\n"...)
	for i := range h.Len() {
		switch n := h.NameAt(i); {
		case own[n], n == message.ContentLength, n == message.TE, n == message.Upgrade, n == message.Trailer, n == message.Expect:
			continue // RFC 9110 §6.5.1
		}
		var ok bool
		if f, ok = appendField(f, h, i); !ok {
			b.SetTail(f[:0])
			return false
		}
	}
	b.SetTail(append(f, '\r', '\n'))
	return true
}

// own marks the names that never leave as they came: pseudo-header fields, and
// those of one hop, which the codec writes itself (RFC 9110 §7.6.1).
var own = [256]bool{
	message.Method: true, message.Path: true, message.Authority: true, message.Scheme: true, message.Protocol: true,
	message.Status: true, message.Connection: true, message.Host: true, message.HTTP2Settings: true, message.KeepAlive: true,
	message.ProxyConnection: true, message.TransferEncoding: true,
}

// headRoom is about what h takes on the wire. CONNECT has its authority twice, and takes more.
func headRoom(h *message.Head) int { return h.Size() + 4*h.Len() + 192 }

// appendField writes one field; false where a name or value could be read as
// something else (RFC 9110 §5.5): a Head may come from HPACK or configuration.
func appendField(f []byte, h *message.Head, i int) ([]byte, bool) {
	name, value := h.At(i)
	if h.NameAt(i) == message.Unknown && !message.IsLowerName(name) || message.ValueEnd(value) != len(value) {
		return f, false
	}
	f = append(f, name...)
	f = append(f, ':', ' ')
	f = append(f, value...)
	return append(f, '\r', '\n'), true
}

// fieldRules say which of the fields with a condition are sent.
type fieldRules struct {
	length, upgrade, te bool
}

func appendFields(f []byte, h *message.Head, r fieldRules) ([]byte, bool) {
	for i := range h.Len() {
		n := h.NameAt(i)
		if own[n] {
			continue
		}
		switch n {
		case message.ContentLength:
			if !r.length {
				continue
			}
		case message.Upgrade:
			if !r.upgrade {
				continue
			}
		case message.TE:
			if !r.te || !h.Is(n, "trailers") {
				continue
			}
		}
		var ok bool
		if f, ok = appendField(f, h, i); !ok {
			return f, false
		}
	}
	return f, true
}

// requestHead writes a request head and sets w up for its content. upgrade
// says that the request asks to leave HTTP: CONNECT, or an Upgrade. Nothing
// is written where ok is false.
func (w *writer) requestHead(b *buffer.Buffer, h *message.Head, end bool) (upgrade, ok bool) {
	method, path, authority := h.Get(message.Method), h.Get(message.Path), h.Get(message.Authority)
	if authority == nil {
		authority = h.Get(message.Host)
	}
	length, lengthOK := h.ContentLength()
	if !message.IsToken(method) || !message.ValidAuthority(authority, false) || !lengthOK || h.Has(message.Protocol) {
		return false, false
	}
	connect := string(method) == "CONNECT"
	if connect {
		if !message.ValidAuthority(authority, true) || h.Has(message.Path) {
			return false, false
		}
		path = authority
	} else if message.TargetEnd(path) != len(path) || len(path) == 0 || path[0] != '/' && !(string(path) == "*" && string(method) == "OPTIONS") {
		return false, false
	}
	asks := !connect && h.Has(message.Upgrade) && !end
	protocol := h.OnlyElement(message.Upgrade)
	if asks && !message.IsProtocol(protocol) {
		return false, false // the server is to choose among what was allowed, which is one
	}
	rules := fieldRules{length: true, te: true}
	zero, chunked := false, false
	switch {
	case connect, asks:
		w.framing = frameTunnel
		rules.length = false
		if length > 0 {
			return false, false
		}
	case end:
		w.framing = frameNone
		if length > 0 {
			return false, false
		}
		// RFC 9110 §8.6: say 0 where the method makes content likely.
		if length < 0 {
			switch string(method) {
			case "GET", "HEAD", "DELETE", "TRACE":
			default:
				zero = true
			}
		}
	case length >= 0:
		w.framing, w.left = frameFixed, length
	default:
		w.framing, chunked = frameChunked, true
	}

	f := b.Tail(headRoom(h))
	f = append(f, method...)
	f = append(f, ' ')
	f = append(f, path...)
	f = append(f, " HTTP/1.1\r\nhost: "...)
	f = append(f, authority...)
	f = append(f, '\r', '\n')
	if f, ok = appendFields(f, h, rules); !ok {
		b.SetTail(f[:0])
		return false, false
	}
	te := h.Is(message.TE, "trailers")
	if asks {
		f = append(f, "upgrade: "...)
		f = append(f, protocol...)
		f = append(f, '\r', '\n')
	}
	switch {
	case asks && te:
		f = append(f, "connection: upgrade, te\r\n"...)
	case asks:
		f = append(f, "connection: upgrade\r\n"...)
	case te:
		f = append(f, "connection: te\r\n"...) // RFC 9110 §10.1.4
	}
	if zero {
		f = append(f, "content-length: 0\r\n"...)
	}
	if chunked {
		f = append(f, "transfer-encoding: chunked\r\n"...)
	}
	b.SetTail(append(f, '\r', '\n'))
	return connect || asks, true
}

// exchange is what a response depends on besides its own head.
type exchange struct {
	head, connect, upgrade bool // the request: HEAD, CONNECT, or one with Upgrade
	http10                 bool
	keepAlive10            bool // the HTTP/1.0 client asked to keep the connection
	close                  bool // the connection ends with this response
}

// responseHead writes a response head and sets w up for its content. Nothing
// is written where it answers false. It sets x.close where the framing needs it.
func (w *writer) responseHead(b *buffer.Buffer, h *message.Head, end bool, x *exchange) bool {
	code := h.StatusCode()
	length, ok := h.ContentLength()
	if code < 100 || !ok {
		return false
	}
	var rules fieldRules
	zero, chunked := false, false
	switch {
	case code == 101:
		if !x.upgrade || !message.IsProtocol(h.OnlyElement(message.Upgrade)) {
			return false
		}
		w.framing, rules.upgrade = frameTunnel, true
	case x.connect && code/100 == 2:
		w.framing = frameTunnel // RFC 9110 §9.3.6: neither framing field
	case code < 200:
		if end {
			return false
		}
		w.framing = frameNone
	case code == 204:
		w.framing = frameNone // RFC 9110 §8.6: no Content-Length
	case code == 304:
		w.framing, rules.length = frameNone, true
	case x.head:
		w.framing, rules.length = frameNone, true
		chunked = length < 0 && !end && !x.http10
	case end:
		w.framing, rules.length = frameNone, true
		if length > 0 {
			return false
		}
		zero = length < 0
	case length >= 0:
		w.framing, w.left, rules.length = frameFixed, length, true
	case x.http10:
		w.framing, x.close = frameClose, true
	default:
		w.framing, chunked = frameChunked, true
	}
	// RFC 9110 §15.5.22: 426 says in Upgrade what it wants.
	if code == 426 {
		rules.upgrade = true
	}

	f := b.Tail(headRoom(h))
	f = append(f, "HTTP/1.1 "...)
	f = append(f, h.Get(message.Status)...)
	f = append(f, ' ')
	f = append(f, reason(code)...)
	f = append(f, '\r', '\n')
	if f, ok = appendFields(f, h, rules); !ok {
		b.SetTail(f[:0])
		return false
	}
	if zero {
		f = append(f, "content-length: 0\r\n"...)
	}
	if chunked {
		f = append(f, "transfer-encoding: chunked\r\n"...)
	}
	switch {
	case code == 101, code == 426 && h.Has(message.Upgrade) && !x.close:
		f = append(f, "connection: upgrade\r\n"...)
	case w.framing == frameTunnel || code < 200:
	case x.close:
		f = append(f, "connection: close\r\n"...)
	case x.http10 && x.keepAlive10:
		f = append(f, "connection: keep-alive\r\n"...)
	}
	b.SetTail(append(f, '\r', '\n'))
	return true
}

// reason is the reason phrase of a status (RFC 9110 §15).
func reason(code int) string {
	if code < len(reasons) && reasons[code] != "" {
		return reasons[code]
	}
	return "Unknown"
}

var reasons = [...]string{
	100: "Continue", 101: "Switching Protocols", 102: "Processing", 103: "Early Hints",
	200: "OK", 201: "Created", 202: "Accepted", 203: "Non-Authoritative Information", 204: "No Content",
	205: "Reset Content", 206: "Partial Content", 207: "Multi-Status", 208: "Already Reported", 226: "IM Used",
	300: "Multiple Choices", 301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified",
	305: "Use Proxy", 307: "Temporary Redirect", 308: "Permanent Redirect",
	400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
	405: "Method Not Allowed", 406: "Not Acceptable", 407: "Proxy Authentication Required", 408: "Request Timeout",
	409: "Conflict", 410: "Gone", 411: "Length Required", 412: "Precondition Failed", 413: "Payload Too Large",
	414: "URI Too Long", 415: "Unsupported Media Type", 416: "Range Not Satisfiable", 417: "Expectation Failed",
	421: "Misdirected Request", 422: "Unprocessable Entity", 423: "Locked", 424: "Failed Dependency", 425: "Too Early",
	426: "Upgrade Required", 428: "Precondition Required", 429: "Too Many Requests",
	431: "Request Header Fields Too Large", 451: "Unavailable For Legal Reasons",
	500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
	504: "Gateway Timeout", 505: "HTTP Version Not Supported", 506: "Variant Also Negotiates",
	507: "Insufficient Storage", 508: "Loop Detected", 510: "Not Extended", 511: "Network Authentication Required",
}
