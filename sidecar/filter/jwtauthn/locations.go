package jwtauthn

import (
	"bytes"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
)

// found is what stands in a request where a token may.
type found struct {
	raw    []byte // the token
	header string // name of the header, or
	param  string // of the query parameter; neither for a cookie
}

// maxTokens bounds how many tokens of one request a provider looks at. One
// more, and the request is refused: none may go upstream that was not looked at.
const maxTokens = 8

// places are where tokens of a provider may stand. Providers with the same
// places have the same *places.
type places struct {
	headers []headerLocation
	params  []string
	cookies []string
}

// extract appends what stands at the places to list, up to one token more than
// are looked at: all lines of a header, all values of a parameter, all cookies of
// a name. Nobody knows which of them the application will take, so that each must
// be good. What it returns is valid until the head changes.
func (p *places) extract(list []found, h *message.Head) []found {
	most := len(list) + maxTokens + 1
	for i := range p.headers {
		list = p.headers[i].extract(list, most, h)
	}
	if len(p.params) > 0 {
		_, query, _ := bytes.Cut(h.Get(message.Path), []byte("?"))
		list = p.inQuery(list, most, query)
	}
	for _, name := range p.cookies {
		for v := range route.Cookies(h, name) {
			if len(list) == most {
				return list
			}
			list = append(list, found{raw: v})
		}
	}
	return list
}

// headerLocation is an entry of from_headers.
type headerLocation struct {
	name   string
	known  message.Name
	prefix string
	// scheme says that the prefix is an auth-scheme, which has no case (RFC 9110 §11.1).
	scheme bool
}

func newHeaderLocation(name, prefix string) headerLocation {
	known := message.NameOf([]byte(name))
	return headerLocation{name: name, known: known, prefix: prefix, scheme: known == message.Authorization}
}

func (l *headerLocation) extract(list []found, most int, h *message.Head) []found {
	if l.known != message.Unknown && !h.Has(l.known) {
		return list
	}
	lines, before := 0, len(list)
	for i := range h.Len() {
		if h.NameAt(i) != l.known {
			continue
		}
		name, v := h.At(i)
		if name != l.name {
			continue
		}
		lines++
		if raw, there := l.token(v); there && len(list) < most {
			list = append(list, found{raw: raw, header: l.name})
		}
	}
	if l.known == message.Authorization && lines > 1 && len(list) > before {
		// There is one Authorization (RFC 9110 §11.6.2, §5.3), whatever its scheme: this one is not well-formed.
		return append(list[:before], found{header: l.name})
	}
	return list
}

// token is what follows the prefix, from the first character on that a token
// can have, up to the end. As in Envoy the prefix may stand anywhere, and a
// value without it holds no token.
func (l *headerLocation) token(v []byte) (raw []byte, there bool) {
	at := l.index(v)
	if at < 0 {
		return nil, false
	}
	v = v[at:]
	for len(v) > 0 && l.prefix != "" && !tokenChar(v[0]) {
		v = v[1:]
	}
	return v, true
}

// index is where v goes on after the prefix, or -1.
func (l *headerLocation) index(v []byte) int {
	if !l.scheme {
		if at := bytes.Index(v, []byte(l.prefix)); at >= 0 {
			return at + len(l.prefix)
		}
		return -1
	}
	for at := 0; at+len(l.prefix) <= len(v); at++ {
		if isScheme(v[at:at+len(l.prefix)], l.prefix) {
			return at + len(l.prefix)
		}
	}
	return -1
}

// isScheme says whether b is the prefix, in any case and with any blank.
func isScheme(b []byte, prefix string) bool {
	for i, c := range b {
		w := prefix[i]
		if c == '\t' {
			c = ' '
		}
		if lower(c) != lower(w) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

func tokenChar(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.'
}

// inQuery appends the values of the provider's parameters. Names are compared
// decoded, as the application reads them: "access%5Ftoken" is access_token. An
// application that takes ";" for "&" would find a token where others see a part of
// a value, so that one there counts as malformed.
func (p *places) inQuery(list []found, most int, query []byte) []found {
	for item := range bytes.SplitSeq(query, []byte("&")) {
		if len(list) == most {
			break
		}
		name, value, _ := bytes.Cut(item, []byte("="))
		for _, want := range p.params {
			if len(list) < most && isParam(name, want) {
				list = append(list, found{raw: decoded(value), param: want})
			}
		}
		_, rest, more := bytes.Cut(item, []byte(";"))
		for more {
			item, rest, more = bytes.Cut(rest, []byte(";"))
			name, _, _ := bytes.Cut(item, []byte("="))
			for _, want := range p.params {
				if len(list) < most && isParam(name, want) {
					list = append(list, found{param: want})
				}
			}
		}
	}
	return list
}

// isParam says whether a parameter's name, as it stands in a query, is want.
func isParam(name []byte, want string) bool {
	for i := 0; i < len(want); i++ {
		if len(name) == 0 {
			return false
		}
		c, n := character(name)
		if c != want[i] {
			return false
		}
		name = name[n:]
	}
	return len(name) == 0
}

// decoded is a value without escapes. A "+" stays: no token has one, nor a blank.
func decoded(v []byte) []byte {
	if bytes.IndexByte(v, '%') < 0 {
		return v
	}
	out := make([]byte, 0, len(v))
	for len(v) > 0 {
		c, n := character(v)
		out, v = append(out, c), v[n:]
	}
	return out
}

// character is the first character of b, decoded (RFC 3986 §2.1), and its length.
func character(b []byte) (c byte, n int) {
	if b[0] == '%' && len(b) > 2 {
		if hi, lo := unhex(b[1]), unhex(b[2]); hi >= 0 && lo >= 0 {
			return byte(hi<<4 | lo), 3
		}
	}
	return b[0], 1
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= lower(c) && lower(c) <= 'f':
		return int(lower(c)-'a') + 10
	}
	return -1
}

// removeParam takes all values of a parameter out of the path's query.
func removeParam(h *message.Head, want string) {
	path, query, has := bytes.Cut(h.Get(message.Path), []byte("?"))
	if !has {
		return
	}
	out := append(make([]byte, 0, len(path)+1+len(query)), path...)
	sep := byte('?')
	for item := range bytes.SplitSeq(query, []byte("&")) {
		if name, _, _ := bytes.Cut(item, []byte("=")); isParam(name, want) {
			continue
		}
		out = append(append(out, sep), item...)
		sep = '&'
	}
	h.SetName(message.Path, out)
}
