package load

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// patience bounds one exchange of the generators that wait for each.
const patience = 10 * time.Second

// dialer returns how to connect: plain, or mutual TLS 1.3 with an ALPN protocol.
func (s Spec) dialer(alpn string) (func() (net.Conn, error), error) {
	d := &net.Dialer{Timeout: patience}
	if s.PKI == "" {
		return func() (net.Conn, error) { return d.Dial("tcp", s.Address) }, nil
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(s.PKI, "a.pem"), filepath.Join(s.PKI, "a.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(s.PKI, "ca.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s/ca.pem: no certificate in it", s.PKI)
	}
	// X25519 alone, so that no peer does another key exchange than the others. No session is resumed: there is no cache.
	c := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, ServerName: "b.local", MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}}
	if alpn != "" {
		c.NextProtos = []string{alpn}
	}
	return func() (net.Conn, error) { return tls.DialWithDialer(d, "tcp", s.Address, c) }, nil
}

func exchange(c net.Conn, request []byte) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write(request); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New("answered " + resp.Status)
	}
	return c.SetDeadline(time.Time{})
}

// many runs do over and over on so many goroutines, until the time is over; do returns how many bytes it moved.
func (s Spec) many(n int, do func() (int64, error)) Result {
	var r Result
	var mu sync.Mutex
	var wg sync.WaitGroup
	end := time.Now().Add(s.duration())
	for range n {
		wg.Go(func() {
			for time.Now().Before(end) {
				bytes, err := do()
				mu.Lock()
				r.Bytes += bytes
				if err == nil {
					r.Done++
				} else {
					r.fail(kind(err))
				}
				mu.Unlock()
				if err != nil {
					time.Sleep(time.Millisecond) // what fails at once must not become a busy loop
				}
			}
		})
	}
	wg.Wait()
	return r
}

// kind is an error without the addresses in it, which are others each time.
func kind(err error) string {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}

// connect makes new connections, with one request on each.
func connect(s Spec) (Result, error) {
	dial, err := s.dialer("http/1.1")
	if err != nil {
		return Result{}, err
	}
	request := s.request()
	return s.many(max(s.Connections, 1), func() (int64, error) {
		c, err := dial()
		if err != nil {
			return 0, err
		}
		defer c.Close()
		return 0, exchange(c, request)
	}), nil
}

// idle opens Connections connections, has one request answered on each, and holds them: while Hold until standard
// input ends. The report is sent before, so that what they take can be looked at.
func idle(s Spec) (Result, error) {
	dial, err := s.dialer("http/1.1")
	if err != nil {
		return Result{}, err
	}
	request := s.request()
	var r Result
	held := make([]net.Conn, 0, s.Connections)
	for range s.Connections {
		c, err := dial()
		if err == nil {
			err = exchange(c, request)
		}
		if err != nil {
			r.fail(kind(err))
			continue
		}
		held = append(held, c)
	}
	r.Done = int64(len(held))
	if s.Hold {
		fmt.Printf("{\"Done\":%d,\"Failed\":%d}\n", r.Done, r.Failed)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
	for _, c := range held {
		c.Close()
	}
	return r, nil
}
