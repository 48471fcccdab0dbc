package stream

// normalize brings a path into the one form that routes and policies are
// matched against, and that goes upstream (RFC 3986 §6.2.2): unreserved
// characters are decoded, "\" becomes "/", dot segments are resolved, and, as
// configured, slashes are merged and escaped slashes unescaped or refused. A
// path is normalized before anything looks at it, so that "/x/%2e%2e/admin"
// cannot pass a rule on "/admin". The query stays as it is. ok is false for a
// path that must be answered 400; redirect asks the client to come again with the result.
func normalize(dst, p []byte, m *Manager) (out []byte, redirect, ok bool) {
	path, query := p, []byte(nil)
	for i, c := range p {
		if c == '?' {
			path, query = p[:i], p[i:]
			break
		}
	}
	base := len(dst)
	escaped := false // something may hide what it is
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '\\' && m.NormalizePath {
			c = '/'
		}
		if c != '%' {
			escaped = escaped || c >= 0xc0 || c == ';'
			dst = append(dst, c)
			continue
		}
		hi, lo := -1, -1
		if i+2 < len(path) {
			hi, lo = unhex(path[i+1]), unhex(path[i+2])
		}
		if hi < 0 || lo < 0 {
			if m.NormalizePath {
				return dst, false, false
			}
			dst = append(dst, c)
			continue
		}
		d := byte(hi<<4 | lo)
		switch {
		case d == '/' || d == '\\':
			switch m.Slashes {
			case SlashReject:
				return dst, false, false
			case SlashRedirect:
				redirect = true
				dst = append(dst, '/')
			case SlashUnescapeForward:
				dst = append(dst, '/')
			default:
				escaped = true
				dst = append(dst, path[i:i+3]...)
			}
		case d == 0 && m.NormalizePath:
			return dst, false, false
		case m.NormalizePath && unreserved(d):
			dst = append(dst, d)
		default:
			escaped = true
			dst = append(dst, path[i:i+3]...)
		}
		i += 2
	}
	if m.NormalizePath {
		dst = removeDots(dst, base)
	}
	if m.MergeSlashes {
		dst = mergeSlashes(dst, base)
	}
	if m.NormalizePath && escaped && hidesDots(dst[base:]) {
		return dst, false, false
	}
	if redirect {
		dst = oneSlash(dst, base)
	}
	return append(dst, query...), redirect, true
}

// unreserved is RFC 3986 §2.3.
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// dots says whether a segment, without its slash, is "." or "..", by their
// number; 0 means that it is neither. Parameters do not make it a name
// (RFC 3986 §3.3): servers written in Java drop them, "/..;x/admin" is "/admin"
// to those, and Envoy 1.40 resolves it, too.
func dots(segment []byte) int {
	n := 0
	for n < len(segment) && segment[n] == '.' {
		n++
	}
	if n <= 2 && (n == len(segment) || segment[n] == ';') {
		return n
	}
	return 0
}

// removeDots resolves "." and ".." segments in place (RFC 3986 §5.2.4). ".."
// at the root stays at the root.
func removeDots(b []byte, base int) []byte {
	p := b[base:]
	out := p[:0]
	for i := 0; i < len(p); {
		// A segment is the slash and what follows up to the next one.
		j := i + 1
		for j < len(p) && p[j] != '/' {
			j++
		}
		switch n := dots(p[i+1 : j]); n {
		case 0:
			out = append(out, p[i:j]...)
		default:
			if n == 2 {
				for len(out) > 0 && out[len(out)-1] != '/' {
					out = out[:len(out)-1]
				}
				if len(out) > 0 {
					out = out[:len(out)-1]
				}
			}
			if j == len(p) {
				out = append(out, '/')
			}
		}
		i = j
	}
	if len(out) == 0 {
		out = append(out, '/')
	}
	return b[:base+len(out)]
}

// hidesDots says whether a path has a segment that is no dot segment as it
// stands and would be one to somebody who decodes once more, or what is no
// UTF-8: "..%3b", "%252e%252e", "%c0%ae". Nobody needs such a name, so nothing is
// lost where the path is refused. Neither is with a segment that has parameters
// and no name: without them "/;x/admin" is "//admin".
func hidesDots(path []byte) bool {
	for i := 0; i < len(path); {
		c, n, plain := glyph(path[i:])
		i += n
		if c != '/' && c != '\\' {
			continue
		}
		hidden, count := !plain, 0
		for {
			if c, n, plain = glyph(path[i:]); c != '.' {
				break
			}
			hidden = hidden || !plain
			count++
			i += n
		}
		switch ends := n == 0 || c == '/' || c == '\\'; {
		case count > 2 || !ends && c != ';':
			// A name.
		case count > 0 && (hidden || !plain), count == 0 && c == ';' && moreSegments(path[i:]):
			return true
		}
	}
	return false
}

// moreSegments says whether a slash follows.
func moreSegments(p []byte) bool {
	for len(p) > 0 {
		c, n, _ := glyph(p)
		if c == '/' || c == '\\' {
			return true
		}
		p = p[n:]
	}
	return false
}

// glyph is the character that p begins with, read as leniently as anybody
// reads it, and how long it is (0 at the end). It is plain where it stands for itself.
func glyph(p []byte) (c byte, n int, plain bool) {
	if len(p) == 0 {
		return 0, 0, true
	}
	c, n = octet(p)
	if c < 0xc0 {
		return c, n, n == 1
	}
	// An overlong form: ASCII in more bytes than one (RFC 3629 §10).
	more := 1
	if c >= 0xe0 {
		more++
	}
	if c >= 0xf0 {
		more++
	}
	r, at := rune(c)&(0x3f>>more), n
	for range more {
		d, k := octet(p[at:])
		if d&0xc0 != 0x80 {
			return c, n, true
		}
		r, at = r<<6|rune(d)&0x3f, at+k
	}
	if r < 0x80 {
		return byte(r), at, false
	}
	return c, n, true
}

// octet is the first byte of p, decoded as often as it is encoded.
func octet(p []byte) (d byte, n int) {
	if len(p) == 0 {
		return 0, 0
	}
	n = 1
	for p[0] == '%' && len(p) >= n+2 {
		hi, lo := unhex(p[n]), unhex(p[n+1])
		if hi < 0 || lo < 0 {
			break
		}
		if n += 2; hi<<4|lo != '%' {
			return byte(hi<<4 | lo), n
		}
	}
	return p[0], 1
}

func mergeSlashes(b []byte, base int) []byte {
	out := b[:base]
	for _, c := range b[base:] {
		if c == '/' && len(out) > base && out[len(out)-1] == '/' {
			continue
		}
		out = append(out, c)
	}
	return out
}

// oneSlash makes a path begin with exactly one slash, of either kind: a client
// takes the Location "//host" or "/\host" for another host (RFC 3986 §4.2).
func oneSlash(b []byte, base int) []byte {
	i := base
	for i < len(b) && (b[i] == '/' || b[i] == '\\') {
		i++
	}
	if i == base {
		return b
	}
	b[base] = '/'
	return append(b[:base+1], b[i:]...)
}
