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
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '\\' && m.NormalizePath {
			c = '/'
		}
		if c != '%' {
			dst = append(dst, c)
			continue
		}
		if i+2 >= len(path) {
			if m.NormalizePath {
				return dst, false, false
			}
			dst = append(dst, c)
			continue
		}
		hi, lo := unhex(path[i+1]), unhex(path[i+2])
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
				dst = append(dst, path[i:i+3]...)
			}
		case d == 0 && m.NormalizePath:
			return dst, false, false
		case m.NormalizePath && unreserved(d):
			dst = append(dst, d)
		default:
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
		segment := p[i:j]
		last := j == len(p)
		switch {
		case len(segment) == 2 && segment[1] == '.':
			if last {
				out = append(out, '/')
			}
		case len(segment) == 3 && segment[1] == '.' && segment[2] == '.':
			for len(out) > 0 && out[len(out)-1] != '/' {
				out = out[:len(out)-1]
			}
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, '/')
			}
		default:
			out = append(out, segment...)
		}
		i = j
	}
	if len(out) == 0 {
		out = append(out, '/')
	}
	return b[:base+len(out)]
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
