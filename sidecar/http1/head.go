package http1

import (
	"bytes"
	"sync"

	"sallyport/sidecar/message"
)

// kind is what a reader reads.
type kind uint8

const (
	request kind = iota
	response
	trailers
)

// connection options and other facts that a head told (reader.flags).
const (
	sawHost = 1 << iota
	sawCoding
	sawClose
	sawKeepAlive
	sawUpgradeOption
	sawNominated
	sawTrailersTE
)

// maxConnectionOptions bounds what Connection may list, in all its lines: each
// option costs a pass over the fields.
const (
	maxConnectionOptions = 16
	maxNominated         = 128 // bytes of a field name among them
)

// reader reads one head, or the trailers of one message, line by line. It
// consumes whole lines only; a partial line stays with the caller. A reader is
// borrowed while a head is being read, so that an idle connection has none.
type reader struct {
	head    message.Head
	kind    kind
	limits  limits
	under   Underscores
	size    int // bytes consumed
	scanned int // bytes of the current line known to have no line feed
	count   int

	started bool // the start line was read
	blank   bool // an empty line before it was skipped
	flags   uint8
	minor   uint8
	options uint8 // of Connection
	form    form
	status  int
	length  int64 // Content-Length, -1 where there is none

	requestRules

	long []byte // a lower-case name that is too long for the stack
}

// requestRules are what Options say of request lines.
type requestRules struct {
	custom, http10, noAbsolute bool
	defaultHost, scheme        string
}

// readers is a free list; no state passes from one user to the next.
var readers = sync.Pool{New: func() any { return new(reader) }}

func newReader(k kind, l limits, u Underscores) *reader {
	d := readers.Get().(*reader)
	d.kind, d.limits, d.under = k, l, u
	d.size, d.scanned, d.count = 0, 0, 0
	d.started, d.blank = k == trailers, false
	d.flags, d.minor, d.options, d.form, d.status, d.length = 0, 0, 0, originForm, 0, -1
	return d
}

// keptName is the memory for a long name that a reader keeps.
const keptName = 1 << 10

func (d *reader) free() {
	d.head.Reset() // also gives up what is large
	if cap(d.long) > keptName {
		d.long = nil
	}
	readers.Put(d)
}

// read consumes lines of p up to the empty one. What it does not consume must
// be the beginning of p at the next call. The outcome does not depend on how
// the bytes were split: every check looks at bytes from left to right.
func (d *reader) read(p []byte) (n int, done bool, err *Error) {
	for {
		q := p[n:]
		left := d.limits.bytes - d.size
		cut := len(q) > left
		if cut {
			q = q[:left]
		}
		// A line that came in many pieces is parsed again only when it is
		// whole, or a slow sender could make the work quadratic.
		if d.scanned > 0 && !cut {
			from := min(d.scanned, len(q))
			if bytes.IndexByte(q[from:], '\n') < 0 {
				d.scanned = len(q)
				return n, false, nil
			}
		}
		var k int
		if d.started {
			k, done, err = d.fields(q)
		} else if d.kind == request {
			k, err = d.requestLine(q)
		} else {
			k, err = d.statusLine(q)
		}
		n += k
		d.size += k
		switch {
		case err != nil:
			return n, false, err
		case done:
			return n, true, nil
		case k > 0:
			d.scanned = 0 // a line more; what is behind it is looked at afresh
		case cut:
			return n, false, errTooLarge
		default:
			d.scanned = len(p) - n
			return n, false, nil
		}
	}
}

// fields consumes whole field lines (RFC 9112 §5) and the empty line that ends them.
func (d *reader) fields(p []byte) (n int, done bool, err *Error) {
	for {
		k, end, err := d.field(p[n:])
		n += k
		if err != nil || end || k == 0 {
			return n, end, err
		}
	}
}

// field reads one line; 0 where it is not complete.
func (d *reader) field(p []byte) (n int, end bool, err *Error) {
	var low [64]byte
	i := 0
	for ; i < len(p) && i < len(low); i++ {
		c := message.LowerToken(p[i])
		if c == 0 {
			break
		}
		low[i] = c
	}
	name := low[:i]
	if i == len(low) {
		name = d.longName(p)
		i = len(name)
	}
	if i == len(p) {
		return 0, false, nil
	}
	if i == 0 || p[i] != ':' {
		if i == 0 && p[0] == '\r' {
			switch {
			case len(p) == 1:
				return 0, false, nil
			case p[1] == '\n':
				return 2, true, nil
			}
		}
		return 0, false, nameError(p[i], i)
	}
	if i > 1<<16-1 { // a Head cannot hold it
		return 0, false, errTooLarge
	}
	i++
	for i < len(p) && (p[i] == ' ' || p[i] == '\t') {
		i++
	}
	j := i + message.ValueEnd(p[i:])
	if j == len(p) {
		return 0, false, nil
	}
	if p[j] != '\r' {
		return 0, false, valueError(p[j])
	}
	if j+1 == len(p) {
		return 0, false, nil
	}
	if p[j+1] != '\n' {
		return 0, false, errBareCR
	}
	n = j + 2
	for j > i && (p[j-1] == ' ' || p[j-1] == '\t') {
		j--
	}
	if d.count++; d.count > d.limits.count {
		return 0, false, errTooMany
	}
	if d.under != AllowUnderscores && bytes.IndexByte(name, '_') >= 0 {
		if d.under == RejectUnderscores {
			return 0, false, errUnderscore
		}
		return n, false, nil
	}
	return n, false, d.add(message.NameOf(name), name, p[i:j])
}

// longName lower-cases the token at the start of p.
func (d *reader) longName(p []byte) []byte {
	d.long = d.long[:0]
	for _, c := range p {
		c = message.LowerToken(c)
		if c == 0 {
			break
		}
		d.long = append(d.long, c)
	}
	return d.long
}

// nameError says what c is doing after i bytes of a field name.
func nameError(c byte, i int) *Error {
	switch {
	case c == '\n':
		return errBareLF
	case c == '\r':
		if i == 0 {
			return errBareCR
		}
		return errName
	case i == 0 && (c == ' ' || c == '\t'):
		return errFold
	case i == 0 && c == ':':
		return errEmptyName
	case c == ' ' || c == '\t':
		return errNameSpace
	}
	return errName
}

func valueError(c byte) *Error {
	switch c {
	case '\n':
		return errBareLF
	case 0:
		return errNUL
	}
	return errControl
}

// special marks the names that mean something to the codec.
var special = [256]bool{
	message.Connection: true, message.ContentLength: true, message.Host: true, message.HTTP2Settings: true,
	message.KeepAlive: true, message.ProxyConnection: true, message.TE: true, message.TransferEncoding: true,
	message.Upgrade: true, message.Trailer: true, message.Expect: true,
}

// add takes a field into the head. Fields of one hop (RFC 9110 §7.6.1) end
// here, except Upgrade, and TE where it allows trailers.
func (d *reader) add(n message.Name, name, value []byte) *Error {
	if !special[n] {
		d.head.AddField(n, name, value)
		return nil
	}
	if d.kind == trailers {
		switch n {
		case message.ContentLength, message.TransferEncoding, message.Host, message.Trailer, message.Expect:
			return errTrailer
		}
		return nil
	}
	switch n {
	case message.Host:
		if d.kind == response {
			return nil
		}
		if d.flags&sawHost != 0 {
			return errHosts
		}
		d.flags |= sawHost
		if !message.ValidAuthority(value, false) {
			return errHost
		}
		if d.form == originForm || d.form == asteriskForm {
			d.head.SetAt(authorityIndex, value)
		}
	case message.ContentLength:
		if d.length >= 0 {
			return errLengths
		}
		if d.length = message.Decimal(value); d.length < 0 {
			return errLength
		}
		d.head.AddName(n, value)
	case message.TransferEncoding:
		if d.flags&sawCoding != 0 {
			return errCodings
		}
		d.flags |= sawCoding
		if !message.EqualFold(value, "chunked") {
			return errCoding
		}
	case message.Connection:
		return d.connection(value)
	case message.TE:
		for len(value) > 0 {
			var e []byte
			e, value = message.CutElement(value)
			if message.EqualFold(e, "trailers") && d.flags&sawTrailersTE == 0 {
				d.flags |= sawTrailersTE
				d.head.AddNameString(n, "trailers")
			}
		}
	case message.Trailer:
		for rest := value; len(rest) > 0; {
			var e []byte
			e, rest = message.CutElement(rest)
			if message.EqualFold(e, "content-length") || message.EqualFold(e, "transfer-encoding") ||
				message.EqualFold(e, "trailer") || message.EqualFold(e, "host") {
				return errTrailer
			}
		}
		d.head.AddName(n, value)
	case message.Upgrade, message.Expect:
		d.head.AddName(n, value)
	}
	return nil
}

// connection reads connection options (RFC 9110 §7.6.1).
func (d *reader) connection(value []byte) *Error {
	for rest := value; len(rest) > 0; {
		var e []byte
		e, rest = message.CutElement(rest)
		if len(e) == 0 {
			continue // RFC 9110 §5.6.1.2: empty elements are ignored
		}
		if d.options++; d.options > maxConnectionOptions || !message.IsToken(e) {
			return errConnOptions
		}
		switch {
		case message.EqualFold(e, "close"):
			d.flags |= sawClose
		case message.EqualFold(e, "keep-alive"):
			d.flags |= sawKeepAlive
		case message.EqualFold(e, "upgrade"):
			d.flags |= sawUpgradeOption
		case message.EqualFold(e, "te"), message.EqualFold(e, "transfer-encoding"), message.EqualFold(e, "proxy-connection"),
			message.EqualFold(e, "http2-settings"), message.EqualFold(e, "connection"):
			// Of one hop anyway.
		case message.EqualFold(e, "host"), message.EqualFold(e, "content-length"), message.EqualFold(e, "expect"),
			message.EqualFold(e, "x-forwarded-for"), message.EqualFold(e, "x-forwarded-host"), message.EqualFold(e, "x-forwarded-proto"):
			// The last three, as Envoy: a client would have what a proxy in front of us said of it removed.
			return errConnNominate
		default:
			d.flags |= sawNominated
			if len(e) > maxNominated {
				return errConnOptions
			}
			// One Connection field for each nominated name, until the end of the head.
			d.head.AddName(message.Connection, e)
		}
	}
	return nil
}

// dropNominated removes the fields that Connection named: they were for this
// hop (RFC 9110 §7.6.1). It runs before anything else sees the head, so it
// never removes what this proxy added.
func (d *reader) dropNominated() {
	var low [maxNominated]byte
	for d.head.Has(message.Connection) {
		e := d.head.Get(message.Connection)
		for i, c := range e {
			low[i] = message.LowerToken(c)
		}
		at := 0
		for d.head.NameAt(at) != message.Connection {
			at++
		}
		d.head.RemoveAt(at)
		name := string(low[:len(e)])
		d.head.Remove(name)
	}
}

// finishFraming checks what no single field can tell (RFC 9112 §6.1, §6.3).
func (d *reader) finishFraming() *Error {
	if d.flags&sawCoding != 0 {
		if d.minor == 0 {
			return errCoding10
		}
		if d.length >= 0 {
			return errLengthCoding
		}
	}
	if d.flags&sawNominated != 0 {
		d.dropNominated()
	}
	return nil
}

// persistent says whether the sender keeps the connection open (RFC 9112 §9.3).
func (d *reader) persistent() bool {
	if d.flags&sawClose != 0 {
		return false
	}
	return d.minor > 0 || d.flags&sawKeepAlive != 0
}
