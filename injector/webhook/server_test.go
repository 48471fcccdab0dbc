package webhook

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"sallyport/certs/apiserver"
)

// serve runs a server against an API server made of a cluster, and returns how to call it.
func serve(t *testing.T, o Options) (s *Server, client *http.Client, stop func() error) {
	t.Helper()
	c := newCluster(t)
	backend := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(backend.Close)
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: backend.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if o.Client, err = apiserver.New(apiserver.Options{URL: backend.URL, CAFile: ca}); err != nil {
		t.Fatal(err)
	}
	o.Namespace, o.Listen, o.StatusListen = "sallyport-system", "127.0.0.1:0", "127.0.0.1:0"
	if o.Inject == nil {
		o.Inject = addSidecar
	}
	o.Logger = slog.New(slog.DiscardHandler)
	if s, err = New(o); err != nil {
		t.Fatal(err)
	}
	s.keeper.api = c
	if err := s.keeper.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.config.Webhooks[0].ClientConfig.CABundle)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() { stop() })
	return s, &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots, ServerName: "sallyport-injector.sallyport-system.svc",
	}, ForceAttemptHTTP2: true}, Timeout: 10 * time.Second}, stop
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestServerAnswersReviewsOverHTTPS(t *testing.T) {
	var fault error
	s, client, stop := serve(t, Options{Ready: func() error { return fault }})
	resp, err := client.Post("https://"+s.Addr().String()+Path, "application/json", strings.NewReader(reviewOf(podJSON)))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.ProtoMajor != 2 || !strings.Contains(string(body), `"allowed":true`) || !strings.Contains(string(body), `"patchType":"JSONPatch"`) {
		t.Errorf("%v %s", resp, body)
	}
	if resp, err := client.Post("https://"+s.Addr().String()+Path, "application/json", io.LimitReader(zeros{}, maxBody+1)); err != nil || resp.StatusCode != 413 {
		t.Errorf("a huge body: %v %v", resp, err)
	}
	if resp, err := client.Get("https://" + s.Addr().String() + "/else"); err != nil || resp.StatusCode != 404 {
		t.Errorf("another path: %v %v", resp, err)
	}
	status := "http://" + s.StatusAddr().String()
	if code, text := get(t, status+"/healthz"); code != 200 || text != "ok\n" {
		t.Error(code, text)
	}
	if code, text := get(t, status+"/metrics"); code != 200 || !strings.Contains(text, `sallyport_injector_reviews_total{outcome="injected"} 1`) ||
		!strings.Contains(text, `sallyport_injector_reviews_total{outcome="bad request"} 1`) {
		t.Error(code, text)
	}
	s.ready(nil)
	if code, text := get(t, status+"/ready"); code != 200 || text != "ready\n" {
		t.Error(code, text)
	}
	fault = errors.New("no bundle")
	if code, text := get(t, status+"/ready"); code != 503 || text != "no bundle\n" {
		t.Error(code, text)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestOnePeerCannotTakeEveryConnection: it is as idle as an API server may be, on as many connections as it gets.
func TestOnePeerCannotTakeEveryConnection(t *testing.T) {
	s, client, _ := serve(t, Options{})
	d := &tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}, Config: &tls.Config{InsecureSkipVerify: true}}
	for range maxPeerConns {
		c, err := d.DialContext(t.Context(), "tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: injector\r\n\r\n")
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 404 {
			t.Fatal(resp, err)
		}
	}
	resp, err := client.Post("https://"+s.Addr().String()+Path, "application/json", strings.NewReader(reviewOf(podJSON)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	client.CloseIdleConnections()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestReviewInFlightIsAnsweredAtTheEnd(t *testing.T) {
	arrived, goOn := make(chan struct{}), make(chan struct{})
	s, client, stop := serve(t, Options{Inject: func(p *corev1.Pod, namespace string) (Result, error) {
		close(arrived)
		<-goOn
		return addSidecar(p, namespace)
	}})
	got := make(chan error, 1)
	go func() {
		resp, err := client.Post("https://"+s.Addr().String()+Path, "application/json", strings.NewReader(reviewOf(podJSON)))
		if err == nil && resp.StatusCode != 200 {
			err = errors.New(resp.Status)
		}
		got <- err
	}()
	<-arrived
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	for s.notReady() == nil || !s.stop.Load() {
		runtime.Gosched()
	}
	close(goOn)
	if err := errors.Join(<-got, <-ended); err != nil {
		t.Error(err)
	}
	if _, err := client.Get("https://" + s.Addr().String() + Path); err == nil {
		t.Error("still there")
	}
}

func TestOptionsThatCannotWork(t *testing.T) {
	for name, o := range map[string]Options{
		"a short authority":      {CATTL: time.Hour, LeafTTL: 11 * time.Minute},
		"an instant certificate": {LeafTTL: time.Millisecond},
		"negative":               {DrainTime: -1},
		"no address":             {Listen: "nowhere:x"},
		"no status address":      {Listen: "127.0.0.1:0", StatusListen: "nowhere:x"},
	} {
		if _, err := New(o); err == nil || !strings.HasPrefix(err.Error(), "injector: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
