package conn

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKeyUpdate has OpenSSL change its keys, and ask for a change of ours, in
// the middle of the data: crypto/tls's own client cannot (RFC 8446 §4.6.3).
func TestKeyUpdate(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	ca := newAuthority(t)
	bothInputs(t, func(t *testing.T) {
		w := worker(t)
		addr := listen(t, w, tlsEcho(ca.server(t)))
		cmd := exec.Command(openssl, "s_client", "-quiet", "-no_ign_eof", "-tls1_3", "-connect", addr.IP.String())
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		lines := bufio.NewReader(out)
		// K: update, and ask the peer to; k: update alone. As commands they are not sent.
		for _, line := range []string{"one", "K", "two", "k", "three", "K", "K", "four"} {
			if _, err := io.WriteString(in, line+"\n"); err != nil {
				t.Fatal(err)
			}
			if strings.EqualFold(line, "k") {
				// s_client takes a command only when it is a read of its own.
				<-time.After(100 * time.Millisecond)
				continue
			}
			got, err := lines.ReadString('\n')
			if err != nil || got != line+"\n" {
				t.Fatalf("got %q, %v, want %q", got, err, line)
			}
		}
		in.Close()
		_ = cmd.Wait()
	})
}

// recordWriter writes TLS 1.3 records as a client does after the handshake (RFC 8446 §5, §7), KeyUpdates among
// them, which crypto/tls cannot be made to send.
type recordWriter struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func (w *recordWriter) use(t testing.TB, secret []byte) {
	w.secret, w.seq = secret, 0
	block, err := aes.NewCipher(w.expand(t, "key", 16))
	if err != nil {
		t.Fatal(err)
	}
	if w.aead, err = cipher.NewGCM(block); err != nil {
		t.Fatal(err)
	}
	w.iv = w.expand(t, "iv", 12)
}

// expand is HKDF-Expand-Label with an empty context, RFC 8446 §7.1.
func (w *recordWriter) expand(t testing.TB, label string, n int) []byte {
	label = "tls13 " + label
	info := string([]byte{0, byte(n), byte(len(label))}) + label + "\x00"
	out, err := hkdf.Expand(sha256.New, w.secret, info, n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// append appends a record.
func (w *recordWriter) append(b []byte, typ byte, content []byte) []byte {
	nonce := make([]byte, 12)
	binary.BigEndian.PutUint64(nonce[4:], w.seq)
	for i := range nonce {
		nonce[i] ^= w.iv[i]
	}
	w.seq++
	n := len(content) + 1 + w.aead.Overhead()
	header := []byte{typeApplicationData, 3, 3, byte(n >> 8), byte(n)}
	return append(b, w.aead.Seal(header, nonce, append(content[:len(content):len(content)], typ), header)...)
}

// appendKeyUpdate appends KeyUpdate(update_requested) and changes the keys, RFC 8446 §4.6.3.
func (w *recordWriter) appendKeyUpdate(t testing.TB, b []byte) []byte {
	b = w.append(b, typeHandshake, []byte{24, 0, 0, 1, 1})
	w.use(t, w.expand(t, "traffic upd", 32))
	return b
}

// smallReceiveBuffer is the Control of a dialer whose kernel is not to hold much.
func smallReceiveBuffer(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
}

// tlsByHand shakes hands and returns the connection with what writes on it from then on.
func tlsByHand(t *testing.T, a Address, cfg *tls.Config) (net.Conn, *recordWriter) {
	t.Helper()
	var log strings.Builder
	cfg.KeyLogWriter = &log
	d := net.Dialer{Control: smallReceiveBuffer}
	raw, err := d.Dial("tcp", a.IP.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	c := tls.Client(raw, cfg)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if c.ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skip("the cipher suite of this machine is not the one that is written by hand here")
	}
	w := &recordWriter{}
	for line := range strings.Lines(log.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, err := hex.DecodeString(f[2])
			if err != nil {
				t.Fatal(err)
			}
			w.use(t, secret)
		}
	}
	return raw, w
}

// TestWhatTLSAnswersByItselfIsBounded: each KeyUpdate(update_requested) makes crypto/tls write one. A peer that
// sends them and does not read is not read any further; when it reads, all goes on.
func TestWhatTLSAnswersByItselfIsBounded(t *testing.T) {
	ca := newAuthority(t)
	bothInputs(t, func(t *testing.T) {
		w := worker(t)
		all := "" // what arrived
		s := newScript()
		s.data = func(p []byte) int { all += string(p); return len(p) }
		s.eof = func() { s.c.Close() }
		addr := listen(t, w, func(c *Conn) {
			_ = unix.SetsockoptInt(c.FD(), unix.SOL_SOCKET, unix.SO_SNDBUF, 4096)
			s.c = c
			c.StartTLSServer(ca.server(t))
			c.Start(s)
		})
		raw, client := tlsByHand(t, addr, ca.client())
		// 40,000 answers of 27 bytes, and the word in the end.
		sent := make(chan error, 1)
		go func() {
			var b []byte
			for i := range 40000 {
				if b = client.appendKeyUpdate(t, b); i%8 == 7 {
					b = client.append(b, typeApplicationData, []byte("x")) // progress: crypto/tls counts those without
				}
			}
			_, err := raw.Write(client.append(b, typeApplicationData, []byte("the end")))
			sent <- err
		}()
		until := func(what string, ok func() bool) {
			t.Helper()
			deadline := time.Now().Add(20 * time.Second)
			for is, n := false, 0; !is; {
				if on(w, func() { is, n = ok(), s.c.Unsent() }); time.Now().After(deadline) {
					t.Fatalf("it did not come to that: %s; %d bytes wait for the peer", what, n)
				}
			}
		}
		until("reading stops", func() bool { return s.c.sec != nil && s.c.sec.clogged() })
		on(w, func() {
			if n, most := s.c.sec.out.Len(), maxAnswers+1<<10; n > most {
				t.Errorf("%d bytes wait for the peer, want %d at most", n, most)
			}
			if n, most := s.c.sec.rest.Len(), secureSize+maxRecord; n > most {
				t.Errorf("%d bytes wait to be decrypted, want %d at most", n, most)
			}
		})
		go func() { _, _ = io.Copy(io.Discard, raw) }()
		until("all is read", func() bool { return strings.HasSuffix(all, "the end") })
		if err := <-sent; err != nil {
			t.Error(err)
		}
		raw.Close()
		if err := s.wait(t); err != nil && !errors.Is(err, unix.ECONNRESET) {
			t.Error(err)
		}
	})
}
