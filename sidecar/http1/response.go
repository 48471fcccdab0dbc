package http1

import (
	"bytes"

	"sallyport/sidecar/message"
)

// statusLine reads HTTP-version SP 3DIGIT SP [ reason-phrase ] CRLF (RFC 9112
// §4). The space before an absent reason may be missing, as many servers have
// it; nothing else is lenient. The reason is checked and dropped.
func (d *reader) statusLine(p []byte) (n int, err *Error) {
	const pattern = "HTTP/1.1 "
	for i := 0; i < len(p) && i < len(pattern); i++ {
		if c := p[i]; c != pattern[i] && !(i == 7 && c == '0') {
			return 0, errStatusLine
		}
	}
	i := len(pattern)
	for ; i < len(p) && i < len(pattern)+3; i++ {
		if c := p[i]; c < '0' || c > '9' || i == len(pattern) && c == '0' {
			return 0, errStatusLine
		}
	}
	if i >= len(p) {
		return 0, nil
	}
	code := p[i-3 : i]
	if p[i] != ' ' && p[i] != '\r' {
		return 0, errStatusLine
	}
	j := i + message.ValueEnd(p[i:])
	if j == len(p) {
		return 0, nil
	}
	if p[j] != '\r' {
		return 0, valueError(p[j])
	}
	if j+1 == len(p) {
		return 0, nil
	}
	if p[j+1] != '\n' {
		return 0, errBareCR
	}
	d.started = true
	d.minor = p[7] - '0'
	d.status = int(code[0]-'0')*100 + int(code[1]-'0')*10 + int(code[2]-'0')
	d.head.AddName(message.Status, code)
	return j + 2, nil
}

// finishResponse checks a whole response head and says what follows it
// (RFC 9112 §6.3). head and connect tell the method of the request, upgrade which
// protocol it asked for, nil for none.
func (d *reader) finishResponse(head, connect bool, upgrade []byte) (b bodyKind, err *Error) {
	h := &d.head
	if err := d.finishFraming(); err != nil {
		return 0, err
	}
	asked := h.Has(message.Upgrade)
	if asked && d.status != 101 && d.status != 426 {
		h.RemoveName(message.Upgrade) // an offer (RFC 9110 §7.8) to this hop alone
	}
	switch {
	case d.status == 101:
		// RFC 9110 §15.2.2: only when asked for, and it says to which protocol;
		// §7.8: to none that was not asked for.
		if len(upgrade) == 0 || d.minor == 0 || !bytes.EqualFold(h.OnlyElement(message.Upgrade), upgrade) {
			return 0, errSwitch
		}
		d.long = h.JoinElements(message.Upgrade, d.long)
		h.RemoveName(message.ContentLength)
		return bodyTunnel, nil
	case connect && d.status/100 == 2:
		h.RemoveName(message.ContentLength) // §6.3: both framing fields are ignored
		return bodyTunnel, nil
	case d.status < 200 || d.status == 204:
		h.RemoveName(message.ContentLength) // RFC 9110 §8.6: none is allowed
		return bodyNone, nil
	case head || d.status == 304:
		return bodyNone, nil
	case d.flags&sawCoding != 0:
		return bodyChunked, nil
	case d.length > 0:
		return bodyFixed, nil
	case d.length == 0:
		return bodyNone, nil
	}
	return bodyUntilClose, nil
}
