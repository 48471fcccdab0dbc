package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// client is somebody out in the public: HTTPS through the L4 tier, trusting
// nothing but the shop's certificate.
type client struct {
	http  *http.Client
	pages string // URL of the shop, without a path
}

// reply is what the client got. Answer is empty where no service answered.
type reply struct {
	status int
	proto  string
	header http.Header
	body   string
	Answer
	local string // the client's end of the connection
	tls   *tls.ConnectionState
}

// client makes one that keeps its connection and speaks HTTP/2.
func (s *shop) client() (*client, error) { return s.clientOf(true) }

// clientOf makes a client; without reuse each request opens a connection, as
// many clients would.
func (s *shop) clientOf(reuse bool) (*client, error) {
	pem, err := os.ReadFile(filepath.Join(s.dir, "keys", "shop.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("keys/shop.crt holds no certificate")
	}
	t := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true, DisableKeepAlives: !reuse,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", local(s.public))
		},
	}
	return &client{
		http: &http.Client{Transport: t, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}},
		pages: fmt.Sprintf("https://%s:%d", publicHost, s.public),
	}, nil
}

// close closes the client's connections.
func (c *client) close() { c.http.CloseIdleConnections() }

// get asks for a path; fields are header fields, NAME: VALUE.
func (c *client) get(ctx context.Context, path string, fields ...string) (*reply, error) {
	r := &reply{}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { r.local = i.Conn.LocalAddr().String() }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.pages+path, nil)
	if err != nil {
		return nil, err
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		req.Header.Set(name, value)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	r.status, r.proto, r.header, r.body, r.tls = resp.StatusCode, resp.Proto, resp.Header, string(b), resp.TLS
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal(b, &r.Answer); err != nil {
			return nil, fmt.Errorf("%s: the answer is no JSON: %w", path, err)
		}
	}
	return r, nil
}

// ok is get that insists on a 200.
func (c *client) ok(ctx context.Context, path string, fields ...string) (*reply, error) {
	r, err := c.get(ctx, path, fields...)
	if err == nil && r.status != http.StatusOK {
		err = fmt.Errorf("%s: %w", path, r.unexpected())
	}
	return r, err
}

// unexpected describes the reply as an error.
func (r *reply) unexpected() error {
	body := strings.TrimSpace(r.body)
	if len(body) > 200 {
		body = body[:200] + "…"
	}
	return fmt.Errorf("answered %d %q", r.status, body)
}
