package apiserver

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// server is an API server as far as these tests need one, and the files of a client of it.
func server(t *testing.T, h http.HandlerFunc) Options {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	dir := t.TempDir()
	o := Options{URL: s.URL, CAFile: filepath.Join(dir, "ca.crt"), TokenFile: filepath.Join(dir, "token")}
	write(t, o.CAFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	write(t, o.TokenFile, "first\n")
	return o
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTokenIsReadAtEveryCall(t *testing.T) {
	var got []string
	o := server(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization"))
		fmt.Fprint(w, `{"metadata":{"name":"x"}}`)
	})
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	var m corev1.ConfigMap
	for _, token := range []string{"one", "two\n"} {
		write(t, o.TokenFile, token)
		if err := c.Get(context.Background(), "/api/v1/namespaces/a/configmaps/x", &m); err != nil {
			t.Fatal(err)
		}
	}
	if want := "Bearer one,Bearer two"; strings.Join(got, ",") != want || m.Name != "x" {
		t.Errorf("sent %q, want %q; object %q", got, want, m.Name)
	}
}

func TestRefusalsCarryTheServersReason(t *testing.T) {
	o := server(t, func(w http.ResponseWriter, r *http.Request) {
		if b, _ := io.ReadAll(r.Body); r.Method != http.MethodPatch || r.Header.Get("Content-Type") != "application/strategic-merge-patch+json" || string(b) != `{"a":1}` {
			t.Errorf("%s %s %s", r.Method, r.Header, b)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, `{"kind":"Status","message":"somebody was faster","code":409}`)
	})
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Merge(context.Background(), "/apis/x/y", map[string]int{"a": 1}, nil)
	if !IsConflict(err) || IsNotFound(err) || !strings.Contains(err.Error(), "PATCH /apis/x/y: 409: somebody was faster") {
		t.Error(err)
	}
}

func TestAnotherServerGetsNoToken(t *testing.T) {
	o := server(t, func(http.ResponseWriter, *http.Request) { t.Error("a server with a strange certificate was asked") })
	other := server(t, nil)
	// httptest shows one certificate everywhere, so the client is made to expect none of it.
	write(t, other.CAFile, strangeCA)
	o.CAFile = other.CAFile
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Get(context.Background(), "/x", nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Error(err)
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("followed") }))
	defer elsewhere.Close()
	o := server(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	})
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Get(context.Background(), "/x", nil); codeOf(err) != http.StatusTemporaryRedirect {
		t.Error(err)
	}
}

func TestOptionsThatCannotWork(t *testing.T) {
	good := server(t, nil)
	empty := filepath.Join(t.TempDir(), "empty")
	write(t, empty, "")
	none := func(string) string { return "" }
	for name, tc := range map[string]struct {
		o    Options
		want string
	}{
		"outside of a cluster":   {Options{getenv: none}, "this is no pod"},
		"plain HTTP":             {Options{URL: "http://127.0.0.1:1"}, "must be https://HOST:PORT"},
		"no URL":                 {Options{URL: "127.0.0.1:6443"}, "must be https://HOST:PORT"},
		"user in the URL":        {Options{URL: "https://u:p@h:1"}, "must be https://HOST:PORT"},
		"a CA without any":       {Options{URL: good.URL, CAFile: empty}, "holds no certificate"},
		"a token file not there": {Options{URL: good.URL, CAFile: good.CAFile, TokenFile: empty + "x"}, "no such file"},
		"no service account mounted": {Options{getenv: func(k string) string {
			return map[string]string{"KUBERNETES_SERVICE_HOST": "::1", "KUBERNETES_SERVICE_PORT": "443"}[k]
		}},
			DefaultCAFile},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(tc.o); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// A root that signed nothing.
const strangeCA = `-----BEGIN CERTIFICATE-----
MIIBfDCCASGgAwIBAgIUDNR7swuOZsLjpEXpXUk1Jb8TKDcwCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHc3RyYW5nZTAgFw0yNjExMjMyMTMxNThaGA8yMTI2MTAzMDIx
MzE1OFowEjEQMA4GA1UEAwwHc3RyYW5nZTBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABFEARSzsLFiOJdv+j5gsMmSACkVg5fEzFbNmTw5gHeAa8kU0qh9Q1n5F1xkW
9q80oIpAFlSFloHVc1dCiURCquWjUzBRMB0GA1UdDgQWBBS9UUfkkbT5zVCVxmgq
34Ef7VDiyDAfBgNVHSMEGDAWgBS9UUfkkbT5zVCVxmgq34Ef7VDiyDAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0kAMEYCIQDOBC+ZDrVwt6JSQR9mO4NVkVDc
bbjCY6GzDMUZu0WRuwIhAKXym5Q0DaDWKPlyS+YZRag4p5VzOCywypOeulEQSpiX
-----END CERTIFICATE-----
`
