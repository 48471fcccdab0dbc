package harness

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Field is a header or trailer field as it was on the wire: the name in its case, the value without its padding.
type Field struct{ Name, Value string }

// Message is an HTTP message as it was on the wire. HTTP/2 messages have their pseudo-header fields among the others.
type Message struct {
	Start    string // request or status line; "" for HTTP/2
	Fields   []Field
	Body     []byte
	Framing  Framing
	Trailers []Field
	Reset    string // HTTP/2: the error code with which the stream was reset, if it was
	Raw      []byte // HTTP/1: all its bytes
}

// Framing is how a message showed its end.
type Framing string

// The ways of RFC 9112 §6.3, and HTTP/2's.
const (
	None    Framing = "none"
	Length  Framing = "content-length"
	Chunked Framing = "chunked"
	Close   Framing = "close"
	Stream  Framing = "stream"
)

// Get returns the values of a field, joined as RFC 9110 §5.3 says, without regard to the case of its name.
func (m *Message) Get(name string) string {
	var all []string
	for _, f := range m.Fields {
		if strings.EqualFold(f.Name, name) {
			all = append(all, f.Value)
		}
	}
	return strings.Join(all, ", ")
}

// Trailer is Get of the trailer section.
func (m *Message) Trailer(name string) string {
	t := Message{Fields: m.Trailers}
	return t.Get(name)
}

// Status is the (final) status code of a response, and 0 for anything else.
func (m *Message) Status() int {
	text := ""
	for _, f := range m.Fields {
		if f.Name == ":status" {
			text = f.Value
		}
	}
	if part := strings.SplitN(m.Start, " ", 3); text == "" && len(part) > 1 && strings.HasPrefix(part[0], "HTTP/") {
		text = part[1]
	}
	n, _ := strconv.Atoi(text)
	return n
}

// Method and Target are of a request.
func (m *Message) Method() string { return m.part(0, ":method") }

// Target is the request target, in HTTP/2 the path.
func (m *Message) Target() string { return m.part(1, ":path") }

func (m *Message) part(i int, pseudo string) string {
	if v := m.Get(pseudo); v != "" {
		return v
	}
	part := strings.Split(m.Start, " ")
	if i < len(part) {
		return part[i]
	}
	return ""
}

// String shows the message in a stable form: fields sorted by name, which is what two proxies must agree on. (The order
// of fields of different names has no meaning, RFC 9110 §5.3; that of one name stays.)
func (m *Message) String() string {
	var s strings.Builder
	if m.Start != "" {
		fmt.Fprintf(&s, "%s\n", m.Start)
	}
	for _, f := range sorted(m.Fields) {
		fmt.Fprintf(&s, "%s: %s\n", f.Name, f.Value)
	}
	fmt.Fprintf(&s, "[%s] %q\n", m.Framing, clip(m.Body))
	for _, f := range sorted(m.Trailers) {
		fmt.Fprintf(&s, "trailer %s: %s\n", f.Name, f.Value)
	}
	if m.Reset != "" {
		fmt.Fprintf(&s, "reset %s\n", m.Reset)
	}
	return s.String()
}

func sorted(fields []Field) []Field {
	out := slices.Clone(fields)
	slices.SortStableFunc(out, func(a, b Field) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// clip keeps a long body readable; its length and sum stay, so that the whole is compared.
func clip(body []byte) string {
	const most = 200
	if len(body) <= most {
		return string(body)
	}
	return fmt.Sprintf("%s… (%d bytes, CRC %08x)", body[:most], len(body), crc32.ChecksumIEEE(body))
}

// reader reads messages and keeps their bytes.
type reader struct {
	*bufio.Reader
	seen *bytes.Buffer // what the bufio.Reader took from the connection
	used int           // of seen, by messages returned
}

func newReader(r io.Reader) *reader {
	seen := new(bytes.Buffer)
	return &reader{Reader: bufio.NewReaderSize(io.TeeReader(r, seen), 64<<10), seen: seen}
}

// take returns the bytes read since the last take.
func (r *reader) take() []byte {
	end := r.seen.Len() - r.Buffered()
	raw := slices.Clone(r.seen.Bytes()[r.used:end])
	r.used = end
	return raw
}

// response reads one response to a request of the method. Its Raw is what came, complete or not.
func (r *reader) response(method string) (m Message, err error) {
	defer func() { m.Raw = r.take() }()
	if err = r.head(&m); err != nil {
		return m, err
	}
	code := m.Status()
	if method == "HEAD" || code < 200 || code == 204 || code == 304 {
		m.Framing = None
		return m, nil
	}
	return m, r.body(&m, Close)
}

// requestHead reads the head of a request, and requestBody what follows it.
func (r *reader) requestHead() (m Message, err error) { return m, r.head(&m) }

func (r *reader) requestBody(m *Message) error {
	err := r.body(m, None)
	m.Raw = r.take()
	return err
}

func (r *reader) line() (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		if line != "" && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

func (r *reader) head(m *Message) (err error) {
	if m.Start, err = r.line(); err != nil {
		return err
	}
	m.Fields, err = r.fields()
	return err
}

func (r *reader) fields() (fields []Field, err error) {
	for {
		line, err := r.line()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil || line == "" {
			return fields, err
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return fields, fmt.Errorf("no colon in %q", line)
		}
		fields = append(fields, Field{name, strings.Trim(value, " \t")})
	}
}

// body reads the content; otherwise says how a message without a length ends.
func (r *reader) body(m *Message, otherwise Framing) (err error) {
	switch te, cl := m.Get("transfer-encoding"), m.Get("content-length"); {
	case te != "" && cl != "":
		return fmt.Errorf("both Transfer-Encoding %q and Content-Length %q", te, cl)
	case strings.EqualFold(te, "chunked"):
		m.Framing = Chunked
		return r.chunks(m)
	case te != "":
		return fmt.Errorf("unknown Transfer-Encoding %q", te)
	case cl != "":
		m.Framing = Length
		n, err := strconv.ParseUint(cl, 10, 32)
		if err != nil {
			return fmt.Errorf("content-length: %w", err)
		}
		m.Body = make([]byte, n)
		read, err := io.ReadFull(r, m.Body)
		m.Body = m.Body[:read]
		return err
	case otherwise == Close:
		m.Framing = Close
		m.Body, err = io.ReadAll(r)
		return err
	}
	m.Framing = None
	return nil
}

func (r *reader) chunks(m *Message) error {
	for {
		line, err := r.line()
		if err != nil {
			return err
		}
		size, _, _ := strings.Cut(line, ";")
		n, err := strconv.ParseUint(strings.TrimSpace(size), 16, 32)
		if err != nil {
			return fmt.Errorf("chunk size: %w", err)
		}
		if n == 0 {
			m.Trailers, err = r.fields()
			return err
		}
		chunk := make([]byte, n)
		read, err := io.ReadFull(r, chunk)
		m.Body = append(m.Body, chunk[:read]...)
		if err != nil {
			return err
		}
		if line, err = r.line(); err != nil || line != "" {
			return fmt.Errorf("after a chunk: %q, %v", line, err)
		}
	}
}
