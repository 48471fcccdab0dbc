package conn

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"time"
	"unsafe"

	"sallyport/sidecar/buffer"
)

const (
	recordHeader = 5
	// maxCiphertext is 2^14 + 2048: TLS 1.2's bound, which includes TLS 1.3's.
	maxCiphertext = 16<<10 + 2048

	// sealChunk is how much plaintext becomes ciphertext at once. Not more:
	// while the socket is full it waits unencrypted.
	sealChunk = 64 << 10
	// dynamicBytes is what crypto/tls sends in small records at first,
	// unless Config.DynamicRecordSizingDisabled is set, and smallRecord
	// what fits in the smallest of them.
	dynamicBytes = 128 << 10
	smallRecord  = 1100

	// maxAnswers is how much crypto/tls may have written by itself in answer to input, KeyUpdates above all,
	// while the peer does not take it; beyond that the peer is not read.
	maxAnswers = 4 << 10
)

// secure is the TLS of one connection: crypto/tls between the socket and the
// connection's buffers, all of it on the worker. That this is sound was checked in Go 1.26:
// Conn.Read keeps a partial record in rawInput across an error that is a
// temporary net.Error, and Conn.Write fails only where the net.Conn below
// fails, which here takes all it is given.
type secure struct {
	c    *Conn
	tls  *tls.Conn
	shim shim
	hs   *handshake
	// state is nil until the handshake is done.
	state *tls.ConnectionState

	// raw is crypto/tls's own input buffer, which it decrypts in place. To
	// lend it ours saves a copy and an allocation per read, and 17 to 33
	// KiB per idle connection. nil where crypto/tls has changed; then the
	// bytes go through shim.Read.
	raw  *bytes.Buffer
	rest buffer.Buffer // ciphertext that waits: part of a record, or, during a pause, several
	out  buffer.Buffer // ciphertext that the socket did not take yet

	// wholeRecords says that crypto/tls makes records of full size from the first byte.
	wholeRecords bool
	stalled      bool // the handshake has enough input
	more         bool // without raw: crypto/tls may hold a whole record
	direct       bool // shim.Write may send
	notified     bool // close_notify is on its way
	ended        bool // the peer's close_notify was read
	released     bool
	reading      bool // crypto/tls reads: what it writes now is an answer
	answered     int  // bytes of out that are answers, until it is empty
	sendErr      error
}

// rawInput is where tls.Conn keeps its input buffer, 0 where it has none of that name and type.
var rawInput = func() uintptr {
	f, ok := reflect.TypeFor[tls.Conn]().FieldByName("rawInput")
	if !ok || f.Type != reflect.TypeFor[bytes.Buffer]() {
		return 0
	}
	return f.Offset
}()

// lendInput can be switched off by a test of the other path.
var lendInput = true

// StartTLSServer begins a handshake as the server. It may be called before
// Start, or within Data by a handler that has looked at the first bytes and
// leaves them: everything unconsumed goes to TLS. What was written before stays
// plain. Connected follows when the handshake is done, Closed if it fails.
//
// cfg decides about certificates, client authentication, ALPN and versions.
// Its callbacks run on the worker. DynamicRecordSizingDisabled
// should be set on it where throughput counts: the first 128 KiB of a
// connection are otherwise sent in records of one packet each.
func (c *Conn) StartTLSServer(cfg *tls.Config) {
	c.startTLS(cfg, false)
}

// StartTLSClient is StartTLSServer for the client's side: on a connection that
// is being dialed, or in Connected. cfg.Renegotiation must be never, the
// default: a second handshake would run on the worker.
func (c *Conn) StartTLSClient(cfg *tls.Config) {
	if cfg.Renegotiation != tls.RenegotiateNever {
		c.close(errors.New("TLS: renegotiation is not supported, set RenegotiateNever"))
		return
	}
	c.startTLS(cfg, true)
}

func (c *Conn) startTLS(cfg *tls.Config, client bool) {
	c.w.Owned()
	if c.closed || c.lingering {
		return
	}
	if c.sec != nil {
		c.close(errors.New("TLS was started twice on a connection"))
		return
	}
	s := &secure{c: c, wholeRecords: cfg.DynamicRecordSizingDisabled}
	s.rest.Init(c.w.Pool())
	s.out.Init(c.w.Pool())
	s.hs = &handshake{s: s, client: client}
	s.shim = shim{s: s, hs: s.hs, local: c.local, remote: c.remote}
	if client {
		s.tls = tls.Client(&s.shim, cfg)
	} else {
		s.tls = tls.Server(&s.shim, cfg)
	}
	if rawInput != 0 && lendInput {
		s.raw = (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(s.tls), rawInput))
	}
	if c.out.Len() > 0 {
		// Written before TLS, a PROXY header for example: goes first, as it is.
		s.out.Append(c.out.Bytes())
		c.written += uint64(c.out.Len())
		c.out.Release()
		c.Flush()
	}
	c.sec = s
	c.open = false
	if !c.connecting {
		s.begin()
	}
	if !c.pumping {
		s.feed(c.kept.Bytes())
		c.kept.Release()
		c.again()
	}
}

// begin starts the handshake's clock, and on the client's side the handshake.
func (s *secure) begin() {
	d := s.c.patience
	if d <= 0 {
		d = DefaultHandshakeTimeout
	}
	s.c.w.Schedule(&s.c.timer, d)
	s.hs.begin()
}

// hasRecord says that rest is worth decrypting.
func (s *secure) hasRecord() bool {
	if s.ended {
		return false
	}
	if s.raw == nil {
		return s.more || s.rest.Len() > 0
	}
	return wholeRecord(s.rest.Bytes())
}

// waits says that there is ciphertext still, here or in crypto/tls.
func (s *secure) waits() bool { return s.rest.Len() > 0 || s.raw == nil && s.more }

// truncated says, at the end of the input, that part of a record is there. An
// end between records is taken for a good one, though without close_notify it
// may be an attacker's (RFC 8446 §6.1): many peers leave it out, and the
// protocols above have their own framing.
func (s *secure) truncated() bool { return !s.ended && s.rest.Len() > 0 }

// wholeRecord says that b begins with a whole record, or with something that
// is too long to be one, which crypto/tls will say.
func wholeRecord(b []byte) bool {
	if len(b) < recordHeader {
		return false
	}
	n := recordLength(b)
	return n > maxCiphertext || len(b) >= recordHeader+n
}

// recordLength is what the header of a record says of the rest of it.
func recordLength(b []byte) int { return int(b[3])<<8 | int(b[4]) }

// decryptRest goes on with what waits, in place.
func (s *secure) decryptRest() {
	if s.raw == nil {
		s.shim.in = s.rest.Bytes()
		s.open()
		s.rest.Consume(s.rest.Len() - len(s.shim.in))
		s.shim.in = nil
		return
	}
	b := s.rest.Bytes()
	*s.raw = *bytes.NewBuffer(b[:len(b):len(b)])
	s.open()
	s.rest.Consume(len(b) - s.raw.Len())
	*s.raw = bytes.Buffer{}
}

// decrypt takes ciphertext that was just read; rest is empty.
func (s *secure) decrypt(p []byte) {
	if s.raw == nil {
		s.shim.in, s.more = p, true
		s.open()
		s.rest.Append(s.shim.in)
		s.shim.in = nil
		return
	}
	*s.raw = *bytes.NewBuffer(p[:len(p):len(p)])
	s.open()
	s.rest.Append(s.raw.Bytes())
	*s.raw = bytes.Buffer{}
}

// open decrypts record after record and presents the plaintext, as much at
// once as there is, until a record is incomplete or the handler pauses.
func (s *secure) open() {
	c := s.c
	plain := c.e.plain
	used := 0
	for !c.closed && !c.lingering && c.paused == 0 && !c.yielded && !s.ended && !s.clogged() {
		if s.raw != nil && !wholeRecord(s.raw.Bytes()) {
			break
		}
		// There is room for the longest record, so crypto/tls never keeps plaintext.
		s.reading = true
		n, err := s.tls.Read(plain[used:])
		s.reading = false
		used += n
		if err != nil || used > len(plain)-maxPlain || s.raw != nil && !wholeRecord(s.raw.Bytes()) {
			s.deliver(plain[:used])
			used = 0
		}
		switch {
		case err == nil:
		case err == errDry:
			s.more = false
			return
		case errors.Is(err, io.EOF):
			// close_notify: nothing valid can follow.
			s.ended, c.eofPending, c.readable = true, true, false
		default:
			s.fail(err)
		}
	}
}

// clogged says that the peer makes TLS answer and does not take the answers. Of what a peer can send after the
// handshake, KeyUpdate (RFC 8446 §4.6.3) alone has an answer each time. An alert is sent once: it is the end of
// the connection, as the answer to a request for renegotiation is in crypto/tls; close_notify is not answered.
func (s *secure) clogged() bool { return s.answered > maxAnswers && s.out.Len() > 0 }

func (s *secure) deliver(p []byte) {
	if c := s.c; len(p) > 0 && !c.closed && !c.lingering {
		c.read += uint64(len(p))
		c.present(p)
	}
}

// fail ends a connection on which the peer broke TLS; the alert that
// crypto/tls has made is sent first if possible.
func (s *secure) fail(err error) {
	c := s.c
	if c.closed {
		return
	}
	if s.out.Len() > 0 && c.writable {
		_ = s.sendOut()
	}
	c.close(fmt.Errorf("TLS: %w", err))
}

// flush encrypts and sends what waits, as far as the socket takes it.
func (s *secure) flush() error {
	c := s.c
	for c.writable {
		switch {
		case s.out.Len() > 0:
			if err := s.sendOut(); err != nil {
				return err
			}
		case !c.open:
			return nil
		case c.out.Len() > 0:
			p := c.out.Bytes()
			p = p[:min(len(p), sealChunk)]
			// A single record goes to the socket without being gathered first.
			one := len(p) == c.out.Len() && len(p) <= maxPlain &&
				(s.wholeRecords || len(p) <= smallRecord || c.written > dynamicBytes)
			err := s.write(p, one)
			c.out.Consume(len(p))
			if err != nil {
				return err
			}
		case c.wantShut && !s.notified:
			s.notify()
		default:
			return nil
		}
	}
	return nil
}

// write encrypts p; direct has the records sent one by one, as long as the socket takes them.
func (s *secure) write(p []byte, direct bool) error {
	s.direct, s.sendErr = direct, nil
	n, err := s.tls.Write(p)
	s.direct = false
	s.c.written += uint64(n)
	if err != nil {
		return err
	}
	return s.sendErr
}

// notify sends close_notify.
func (s *secure) notify() {
	s.notified = true
	s.direct = true
	// What can fail is the socket, and then there is nobody to notify.
	_ = s.tls.CloseWrite()
	s.direct = false
}

func (s *secure) sendOut() error {
	n, err := s.c.send(s.out.Bytes())
	s.sent(n)
	return err
}

// sent drops n bytes of out, which the socket took.
func (s *secure) sent(n int) {
	s.out.Consume(n)
	if s.answered > 0 && s.out.Len() == 0 {
		if s.answered > maxAnswers {
			s.c.again()
		}
		s.answered = 0
	}
}

// take is what crypto/tls writes on the worker. All of it is accepted: what
// the socket does not take waits in out, whose size flush and clogged bound.
func (s *secure) take(p []byte) {
	if s.released {
		return
	}
	if s.direct && s.out.Len() == 0 && s.c.writable && s.c.fd >= 0 && s.sendErr == nil {
		n, err := s.c.send(p)
		if p, s.sendErr = p[n:], err; err != nil {
			s.c.writable = true // so that the flush meets the error
		}
	}
	if s.reading {
		s.answered += len(p)
	}
	if len(p) > 0 {
		s.out.Append(p)
		s.c.Flush()
	}
}

func (s *secure) abort() {
	if s.hs != nil {
		s.hs.abort()
	}
}

func (s *secure) release() {
	s.released = true
	s.rest.Release()
	s.out.Release()
	if s.raw != nil {
		*s.raw = bytes.Buffer{}
	}
}

// shim is the net.Conn below crypto/tls.
type shim struct {
	s             *secure
	hs            *handshake // nil after the handshake
	in            []byte     // what Read returns, where raw is not lent
	local, remote netip.AddrPort
}

// errDry is a net.Error that says Temporary, the one kind that crypto/tls does not remember.
var errDry error = dry{}

type dry struct{}

func (dry) Error() string   { return "no more input at the moment" }
func (dry) Timeout() bool   { return true }
func (dry) Temporary() bool { return true }

func (m *shim) Read(p []byte) (int, error) {
	if m.hs != nil {
		return m.hs.read(p)
	}
	if len(m.in) == 0 {
		return 0, errDry
	}
	n := copy(p, m.in)
	m.in = m.in[n:]
	return n, nil
}

func (m *shim) Write(p []byte) (int, error) {
	if m.hs != nil {
		return m.hs.write(p)
	}
	m.s.take(p)
	return len(p), nil
}

func (m *shim) Close() error                     { return nil }
func (m *shim) LocalAddr() net.Addr              { return net.TCPAddrFromAddrPort(m.local) }
func (m *shim) RemoteAddr() net.Addr             { return net.TCPAddrFromAddrPort(m.remote) }
func (m *shim) SetDeadline(time.Time) error      { return nil }
func (m *shim) SetReadDeadline(time.Time) error  { return nil }
func (m *shim) SetWriteDeadline(time.Time) error { return nil }
