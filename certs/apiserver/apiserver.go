// Package apiserver is a client of the Kubernetes API server for the handful of objects that sallyport touches: token
// reviews, its own webhook configuration, a secret and a config map. It owns one HTTP connection pool and reads the
// service account's token and the cluster's CA from their files whenever they are needed, as both are replaced while the
// process runs. client-go does far more and would cost every sidecar, which is the same binary, several MiB of memory at
// its start (docs/kubernetes.md has the figures). Safe for concurrent use; never called from a worker.
package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// InCluster, as Options.URL, takes the address from the environment that the kubelet gives every container.
const InCluster = "in-cluster"

// Where the kubelet puts a pod's credentials.
const (
	inClusterDir = "/var/run/secrets/kubernetes.io/serviceaccount"

	DefaultTokenFile     = inClusterDir + "/token"
	DefaultCAFile        = inClusterDir + "/ca.crt"
	DefaultNamespaceFile = inClusterDir + "/namespace"
)

const (
	maxAnswer    = 8 << 20
	maxFile      = 1 << 20
	callTimeout  = 10 * time.Second
	dialTimeout  = 5 * time.Second
	maxIdleConns = 8
	maxErrorText = 512
	userAgent    = "sallyport"
)

// Options of New. The zero value is that of a process in a pod.
type Options struct {
	URL       string // https://HOST:PORT, or InCluster; default InCluster
	CAFile    string // PEM; default DefaultCAFile in a cluster, the system's roots outside
	TokenFile string // bearer token; default DefaultTokenFile in a cluster, none outside

	getenv func(string) string // tests
}

// Client calls one API server.
type Client struct {
	base      *url.URL
	caFile    string
	tokenFile string
	http      *http.Client
}

// New checks the options; it does not yet call the API server.
func New(o Options) (*Client, error) {
	if o.getenv == nil {
		o.getenv = os.Getenv
	}
	if o.URL == "" || o.URL == InCluster {
		host, port := o.getenv("KUBERNETES_SERVICE_HOST"), o.getenv("KUBERNETES_SERVICE_PORT")
		if host == "" || port == "" {
			return nil, errors.New("kubernetes: this is no pod (KUBERNETES_SERVICE_HOST is not set): give the URL of the API server")
		}
		o.URL = "https://" + net.JoinHostPort(host, port)
		if o.CAFile == "" {
			o.CAFile = DefaultCAFile
		}
		if o.TokenFile == "" {
			o.TokenFile = DefaultTokenFile
		}
	}
	base, err := url.Parse(o.URL)
	// Plain HTTP would show the token to the network.
	if err != nil || base.Scheme != "https" || base.Host == "" || base.RawQuery != "" || base.Fragment != "" || base.User != nil {
		return nil, fmt.Errorf("kubernetes: API server %q: must be https://HOST:PORT or %q", o.URL, InCluster)
	}
	c := &Client{base: base, caFile: o.CAFile, tokenFile: o.TokenFile}
	for _, f := range []string{o.CAFile, o.TokenFile} {
		if f == "" {
			continue
		}
		if _, err := readLimited(f); err != nil {
			return nil, fmt.Errorf("kubernetes: %w", err)
		}
	}
	if _, err := c.roots(); err != nil {
		return nil, err
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialTLSContext:        c.dial,
			MaxIdleConns:          maxIdleConns,
			MaxIdleConnsPerHost:   maxIdleConns,
			IdleConnTimeout:       90 * time.Second,
			ResponseHeaderTimeout: callTimeout,
		},
		// The API server does not redirect these calls; following one could carry the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// URL is the API server's address.
func (c *Client) URL() string { return c.base.String() }

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	roots, err := c.roots()
	if err != nil {
		return nil, err
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: &tls.Config{
		RootCAs: roots, ServerName: c.base.Hostname(), MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
	}}
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	return d.DialContext(ctx, network, addr)
}

func (c *Client) roots() (*x509.CertPool, error) {
	if c.caFile == "" {
		return nil, nil // the system's
	}
	data, err := readLimited(c.caFile)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: CA of the API server: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("kubernetes: CA of the API server: %s holds no certificate", c.caFile)
	}
	return pool, nil
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	return data, nil
}

// Get reads the object at path into out.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	return c.call(ctx, http.MethodGet, path, "", nil, out)
}

// Create posts in to a collection; out, which may be nil or in itself, takes the answer.
func (c *Client) Create(ctx context.Context, path string, in, out any) error {
	return c.send(ctx, http.MethodPost, path, "application/json", in, out)
}

// Update puts in, whose resourceVersion makes it fail with a conflict if somebody else was faster.
func (c *Client) Update(ctx context.Context, path string, in, out any) error {
	return c.send(ctx, http.MethodPut, path, "application/json", in, out)
}

// Merge sends a strategic merge patch.
func (c *Client) Merge(ctx context.Context, path string, patch, out any) error {
	return c.send(ctx, http.MethodPatch, path, string(types.StrategicMergePatchType), patch, out)
}

func (c *Client) send(ctx context.Context, method, path, contentType string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("kubernetes: %s %s: %w", method, path, err)
	}
	return c.call(ctx, method, path, contentType, body, out)
}

func (c *Client) call(ctx context.Context, method, path, contentType string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	u := c.base.JoinPath(path)
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", userAgent)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if c.tokenFile != "" {
		token, err := readLimited(c.tokenFile)
		if err != nil {
			return fmt.Errorf("kubernetes: service account token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("kubernetes: API server not reachable: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("kubernetes: %s %s: answer cut off: %w", method, path, err)
	}
	if len(data) > maxAnswer {
		return fmt.Errorf("kubernetes: %s %s: the answer is larger than %d bytes", method, path, maxAnswer)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return &StatusError{Method: method, Path: path, Code: resp.StatusCode, Status: parseStatus(resp, data)}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("kubernetes: %s %s: the answer is not what was asked for: %w", method, path, err)
	}
	return nil
}

// StatusError is an answer of the API server that is no success.
type StatusError struct {
	Method, Path string
	Code         int
	Status       metav1.Status // as far as the answer held one
}

func (e *StatusError) Error() string {
	text := e.Status.Message
	if text == "" {
		text = http.StatusText(e.Code)
	}
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "…"
	}
	return fmt.Sprintf("kubernetes: %s %s: %d: %s", e.Method, e.Path, e.Code, text)
}

func parseStatus(resp *http.Response, data []byte) metav1.Status {
	var s metav1.Status
	if mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); mt == "application/json" {
		_ = json.Unmarshal(data, &s) // a proxy on the way may answer anything
	}
	return s
}

// IsNotFound says whether the object is not there.
func IsNotFound(err error) bool { return codeOf(err) == http.StatusNotFound }

// IsConflict says whether somebody else changed or made the object meanwhile: read it again.
func IsConflict(err error) bool { return codeOf(err) == http.StatusConflict }

func codeOf(err error) int {
	var s *StatusError
	if errors.As(err, &s) {
		return s.Code
	}
	return 0
}
