package http1

import "sallyport/sidecar/message"

// form is the form of a request target (RFC 9112 §3.2).
type form uint8

const (
	originForm form = iota
	absoluteForm
	authorityForm
	asteriskForm
)

// authorityIndex is the place of :authority in every request head: after
// :method and :scheme. It is filled when the authority is known.
const authorityIndex = 2

// maxMethod bounds a method: the longest registered one has 17 bytes.
const maxMethod = 64

// registered are the methods that Envoy accepts by default: RFC 9110 §9.3, QUERY
// (RFC 10008), WebDAV and its kin. Any of them may have content, however it is framed.
func registered(m []byte) bool {
	switch string(m) {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
		"ACL", "BIND", "CHECKOUT", "COPY", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE",
		"M-SEARCH", "MSEARCH", "NOTIFY", "PROPFIND", "PROPPATCH", "PURGE", "QUERY", "REBIND", "REPORT", "SEARCH", "SOURCE",
		"SUBSCRIBE", "UNBIND", "UNLINK", "UNLOCK", "UNSUBSCRIBE":
		return true
	}
	return false
}

// requestLine reads method SP request-target SP HTTP-version CRLF (RFC 9112
// §3) with single spaces, and the one empty line before it that §2.2 lets a
// server skip. It consumes nothing until the line is whole.
func (d *reader) requestLine(p []byte) (n int, err *Error) {
	if len(p) == 0 {
		return 0, nil
	}
	if p[0] == '\r' {
		switch {
		case d.blank:
			return 0, errEmptyLines
		case len(p) == 1:
			return 0, nil
		case p[1] != '\n':
			return 0, errBareCR
		}
		d.blank = true
		return 2, nil
	}
	i := 0
	for i < len(p) && message.LowerToken(p[i]) != 0 {
		i++
	}
	if i > maxMethod {
		return 0, errMethod
	}
	if i == len(p) {
		return 0, nil
	}
	if i == 0 || p[i] != ' ' {
		if p[i] == '\n' {
			return 0, errBareLF
		}
		return 0, errMethod
	}
	method := p[:i]
	if !d.custom && !registered(method) {
		return 0, errMethodName
	}
	i++
	j := i + message.TargetEnd(p[i:])
	if j == len(p) {
		return 0, nil
	}
	if p[j] != ' ' {
		switch p[j] {
		case '\r', '\n':
			return 0, errRequestLine // HTTP/0.9
		case '#':
			return 0, errFragment
		}
		return 0, errTarget
	}
	if i == j {
		return 0, errRequestLine
	}
	target := p[i:j]
	if err := d.checkTarget(method, target); err != nil {
		return 0, err
	}
	version := p[j+1:]
	if len(version) >= 10 && string(version[:10]) == "HTTP/1.1\r\n" {
		d.minor = 1
	} else if whole, err := d.version(version); err != nil || !whole {
		return 0, err
	}
	d.started = true
	d.pseudo(method, target)
	return j + 1 + len("HTTP/1.1\r\n"), nil
}

// version reads HTTP-version CRLF (RFC 9112 §2.3) that is not HTTP/1.1, or not whole.
func (d *reader) version(p []byte) (whole bool, err *Error) {
	const pattern = "HTTP/1.1\r\n"
	for i := 0; i < len(p) && i < len(pattern); i++ {
		c := p[i]
		switch {
		case c == pattern[i]:
		case (i == 5 || i == 7) && '0' <= c && c <= '9':
		case i == 8 && c == '\n':
			return false, errBareLF
		case i == 9:
			return false, errBareCR
		default:
			return false, errVersion
		}
	}
	if len(p) < len(pattern) {
		return false, nil
	}
	switch {
	case p[5] != '1':
		return false, errMajor
	case p[7] == '0' && !d.http10:
		return false, errHTTP10
	case p[7] > '1':
		return false, errMinor
	}
	d.minor = p[7] - '0'
	return true, nil
}

// checkTarget finds the form of target and whether method may have it (RFC 9112 §3.2).
func (d *reader) checkTarget(method, target []byte) *Error {
	if string(method) == "CONNECT" {
		// §3.2.3: authority-form is for CONNECT, which has no other; the port is required.
		d.form = authorityForm
		if !message.ValidAuthority(target, true) {
			return errTargetForm
		}
		return nil
	}
	switch target[0] {
	case '/':
		d.form = originForm
		if !message.ValidEscapes(target) {
			return errEscape
		}
		return nil
	case '*':
		// §3.2.4: asterisk-form is for OPTIONS.
		d.form = asteriskForm
		if len(target) != 1 || string(method) != "OPTIONS" {
			return errTargetForm
		}
		return nil
	}
	// §3.2.2: absolute-form.
	d.form = absoluteForm
	authority, path, ok := splitAbsolute(target)
	switch {
	case !ok && hasScheme(target):
		return errScheme
	case !ok:
		return errTargetForm
	case !message.ValidAuthority(authority, false):
		return errAuthority
	case !message.ValidEscapes(path):
		return errEscape
	case d.noAbsolute:
		return errAbsolute
	}
	return nil
}

// splitAbsolute takes an http or https URI apart (RFC 9110 §4.2).
func splitAbsolute(target []byte) (authority, path []byte, ok bool) {
	n := 0
	switch {
	case len(target) > 7 && message.EqualFold(target[:7], "http://"):
		n = 7
	case len(target) > 8 && message.EqualFold(target[:8], "https://"):
		n = 8
	default:
		return nil, nil, false
	}
	rest := target[n:]
	for i, c := range rest {
		if c == '/' || c == '?' {
			return rest[:i], rest[i:], true
		}
	}
	return rest, nil, true
}

// hasScheme says whether target begins as an absolute URI with an authority does.
func hasScheme(target []byte) bool {
	for i, c := range target {
		if c == ':' {
			return i > 0 && len(target) > i+2 && target[i+1] == '/' && target[i+2] == '/'
		}
		if message.LowerToken(c) == 0 {
			break
		}
	}
	return false
}

// pseudo adds the pseudo-header fields (RFC 9113 §8.3.1): :method, :scheme,
// :authority (empty until Host is read) and :path, which CONNECT has not. The
// scheme is that of the connection: a client does not choose it by writing
// https:// into a plaintext request.
func (d *reader) pseudo(method, target []byte) {
	h := &d.head
	h.AddName(message.Method, method)
	h.AddNameString(message.Scheme, d.scheme)
	h.AddName(message.Authority, nil)
	switch d.form {
	case originForm, asteriskForm:
		h.AddName(message.Path, target)
	case authorityForm:
		h.SetAt(authorityIndex, target)
	case absoluteForm:
		// RFC 9112 §3.2.2: the target's authority counts, Host is ignored.
		authority, path, _ := splitAbsolute(target)
		h.SetAt(authorityIndex, authority)
		switch {
		case len(path) == 0 && string(method) == "OPTIONS":
			h.AddNameString(message.Path, "*") // §3.2.4
		case len(path) == 0:
			h.AddNameString(message.Path, "/") // §3.2.1
		case path[0] == '?':
			h.AddNameString(message.Path, "/")
			d.long = append(append(d.long[:0], '/'), path...)
			h.SetAt(authorityIndex+1, d.long)
		default:
			h.AddName(message.Path, path)
		}
	}
}

// finishRequest checks a whole request head and says what follows it.
func (d *reader) finishRequest() (b bodyKind, err *Error) {
	h := &d.head
	if d.flags&sawHost == 0 {
		switch {
		case d.minor > 0:
			return 0, errNoHost
		case d.form == originForm || d.form == asteriskForm:
			if d.defaultHost == "" {
				return 0, errNoHost
			}
			h.SetNameString(message.Authority, d.defaultHost)
		}
	}
	if err := d.finishFraming(); err != nil {
		return 0, err
	}
	if d.minor == 0 {
		h.RemoveName(message.Expect) // RFC 9110 §10.1.1: ignored in HTTP/1.0
	}
	upgrade := h.Has(message.Upgrade)
	if upgrade {
		// One line, so that nobody reads the first alone: whether a list of
		// protocols may pass is for policy, which knows single ones.
		d.long = h.JoinElements(message.Upgrade, d.long)
	}
	if d.form == authorityForm {
		if d.flags&sawCoding != 0 || d.length > 0 {
			return 0, errConnectBody
		}
		h.RemoveName(message.ContentLength)
		if upgrade {
			h.RemoveName(message.Upgrade)
		}
		return bodyTunnel, nil
	}
	if upgrade {
		// RFC 9110 §7.8: it needs the connection option, does not exist in
		// HTTP/1.0, and a server may ignore it: with content, because where
		// the content ends and the protocol begins is a smuggler's question;
		// h2c, because a tunnel would carry requests past every policy.
		h2c := message.EqualFold(h.OnlyElement(message.Upgrade), "h2c")
		if d.minor > 0 && d.flags&sawUpgradeOption != 0 && d.flags&sawCoding == 0 && !h2c && d.length <= 0 {
			h.RemoveName(message.ContentLength)
			return bodyTunnel, nil
		}
		h.RemoveName(message.Upgrade)
	}
	switch {
	case d.flags&sawCoding != 0:
		return bodyChunked, nil
	case d.length > 0:
		return bodyFixed, nil
	}
	return bodyNone, nil
}
