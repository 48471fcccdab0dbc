package load

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What the backends answer to each path; any other path is answered like "/".
var bodies = map[string]int{"/": 100, "/1k": 1 << 10, "/64k": 64 << 10, "/1m": 1 << 20}

// Flaky is the path at which a backend of HTTP/1.1 fails in turn: it answers, resets instead of an answer, resets in
// the middle of one, closes instead of an answer.
const Flaky = "/flaky"

// body is text of a size.
func body(n int) []byte {
	return bytes.Repeat([]byte("a reply of the backend, padded to its size; "), n/44+1)[:n]
}

// maxHead bounds a message's head.
const maxHead = 64 << 10

var headEnd = []byte("\r\n\r\n")

// message reads HTTP/1.1 messages whose body has a content-length: of the head only the first line and that field.
type message struct {
	first []byte // the first line; valid inside the function that feed calls
	part  []byte // a head that is not yet whole
	left  int    // of the body
	open  bool   // a head was seen and its body has not ended
}

// feed takes bytes that have arrived. At the end of a head it calls begun, and at the end of a message ended.
func (m *message) feed(b []byte, begun func() error, ended func()) error {
	for len(b) > 0 {
		if !m.open {
			head := b
			if len(m.part) > 0 {
				m.part = append(m.part, b...)
				head = m.part
			}
			end := bytes.Index(head, headEnd)
			if end < 0 {
				if len(head) > maxHead {
					return errors.New("a head without an end")
				}
				if len(m.part) == 0 {
					m.part = append(m.part, b...)
				}
				return nil
			}
			rest := len(head) - end - len(headEnd)
			b = b[len(b)-rest:]
			n, err := contentLength(head[:end])
			if err != nil {
				return err
			}
			m.first, _, _ = bytes.Cut(head[:end], headEnd[:2])
			m.open, m.left = true, n
			err = begun()
			m.part, m.first = m.part[:0], nil
			if err != nil {
				return err
			}
		}
		n := min(m.left, len(b))
		m.left -= n
		b = b[n:]
		if m.left == 0 {
			m.open = false
			ended()
		}
	}
	return nil
}

// contentLength finds the field in a head; 0 where there is none, as in a request without a body (RFC 9112 §6.3).
func contentLength(head []byte) (int, error) {
	for {
		i := bytes.IndexByte(head, '\n')
		if i < 0 {
			return 0, nil
		}
		head = head[i+1:]
		if len(head) < 16 || head[0]|0x20 != 'c' && head[0]|0x20 != 't' {
			continue
		}
		switch name, value, _ := bytes.Cut(head, []byte(":")); {
		case len(name) == 14 && bytes.EqualFold(name, []byte("content-length")):
			line, _, _ := bytes.Cut(value, []byte("\r\n"))
			n, err := strconv.Atoi(string(bytes.TrimSpace(line)))
			if err != nil || n < 0 {
				return 0, fmt.Errorf("content-length %q", line)
			}
			return n, nil
		case len(name) == 17 && bytes.EqualFold(name, []byte("transfer-encoding")):
			return 0, errors.New("transfer-encoding is not understood here")
		}
	}
}

// answerer is a backend's end of one connection.
type answerer struct {
	*answers
	m message
	s *sock
	// what to do at the end of the request
	reply []byte
	flaky bool
}

// answers is made once and shared by the connections of a backend.
type answers struct {
	replies map[string][]byte
	turn    int
}

func response(n int) []byte {
	return append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", n), body(n)...)
}

func http1Backend(_ Spec, ready func(string)) error {
	l, err := newLoop()
	if err != nil {
		return err
	}
	all := &answers{replies: map[string][]byte{}}
	for path, n := range bodies {
		all.replies[path] = response(n)
	}
	address, err := l.listen(func() peer { return &answerer{answers: all} })
	if err != nil {
		return err
	}
	ready(address)
	return l.run(time.Now().Add(24*time.Hour), nil)
}

func (a *answerer) data(s *sock, b []byte) {
	a.s = s
	if err := a.m.feed(b, a.begun, a.ended); err != nil {
		s.reset()
	}
}

func (a *answerer) begun() error {
	_, rest, _ := bytes.Cut(a.m.first, []byte(" "))
	path, _, _ := bytes.Cut(rest, []byte(" "))
	a.flaky = string(path) == Flaky
	if a.reply = a.replies[string(path)]; a.reply == nil {
		a.reply = a.replies["/"]
	}
	return nil
}

func (a *answerer) ended() {
	if !a.flaky {
		a.s.send(a.reply)
		return
	}
	a.turn++
	switch long := a.replies["/64k"]; a.turn % 4 {
	case 0:
		a.s.send(a.reply)
	case 1:
		a.s.reset()
	case 2:
		a.s.send(long[:len(long)/2])
		a.s.reset()
	default:
		a.s.close()
	}
}

func (a *answerer) gone(*sock, string) {}

// request makes the bytes of a Spec's request.
func (s Spec) request() []byte {
	method, length := "GET", ""
	if s.Body > 0 {
		method, length = "POST", fmt.Sprintf("Content-Length: %d\r\n", s.Body)
	}
	var fields strings.Builder
	for _, f := range s.Fields {
		fields.WriteString(f + "\r\n")
	}
	return append(fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: bench.local\r\nUser-Agent: bench\r\nAccept: */*\r\n%s%s\r\n", method, s.path(), fields.String(), length),
		body(s.Body)...)
}

func (s Spec) path() string {
	if s.Path == "" {
		return "/"
	}
	return s.Path
}

// asker is a generator's end of one connection of HTTP/1.1: a request at a time.
type asker struct {
	l       *loop
	address string
	request []byte
	s       *sock
	m       message
	status  string // what was wrong with the status of the response, if anything
	done    func(*asker)
	failed  func(*asker, string)
}

// open connects, or tries again in a moment.
func (a *asker) open(then func()) {
	a.m = message{}
	s, err := a.l.dial(a.address, a)
	if err != nil {
		a.failed(a, err.Error())
		a.l.later(20*time.Millisecond, func() { a.open(then) })
		return
	}
	a.s = s
	then()
}

func (a *asker) ask() { a.s.send(a.request) }

func (a *asker) data(s *sock, b []byte) {
	if err := a.m.feed(b, a.begun, a.ended); err != nil {
		s.reset()
		a.gone(s, err.Error())
	}
}

var ok = []byte("HTTP/1.1 200")

func (a *asker) begun() error {
	a.status = ""
	if !bytes.HasPrefix(a.m.first, ok) {
		a.status = "answered " + string(a.m.first)
	}
	return nil
}

func (a *asker) ended() {
	if a.status != "" {
		a.failed(a, a.status)
		return
	}
	a.done(a)
}

func (a *asker) gone(_ *sock, why string) { a.failed(a, why) }

// closedLoop sends on each connection the next request when the answer to the last has come: as much as there is to be had.
func closedLoop(s Spec) (Result, error) {
	l, err := newLoop()
	if err != nil {
		return Result{}, err
	}
	var r Result
	request := s.request()
	for range max(s.Connections, 1) {
		a := &asker{l: l, address: s.Address, request: request}
		a.done = func(a *asker) {
			r.Done++
			a.ask()
		}
		a.failed = func(a *asker, why string) {
			r.fail(why)
			if a.s == nil {
				return // open tries again
			}
			if !a.s.closed {
				a.ask()
				return
			}
			a.s = nil
			l.later(time.Millisecond, func() { a.open(a.ask) })
		}
		a.open(a.ask)
	}
	err = l.run(time.Now().Add(s.duration()), nil)
	return r, err
}
