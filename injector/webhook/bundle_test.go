package webhook

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"sallyport/certs/apiserver"
)

// TestTrustBundleIsTakenWhenItComes: no pod is injected before, and what was read stays when the API server fails later.
func TestTrustBundleIsTakenWhenItComes(t *testing.T) {
	var certificate string
	answers := make(chan string) // one for each reading: the config map's text, or a failure
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var text string
		select {
		case text = <-answers:
		case <-r.Context().Done():
		}
		if text == "fail" {
			http.Error(w, "away", http.StatusBadGateway)
			return
		}
		json.NewEncoder(w).Encode(&corev1.ConfigMap{Data: map[string]string{apiserver.BundleKey: text}})
	}))
	defer s.Close()
	certificate = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	ca := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(ca, []byte(certificate), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := apiserver.New(apiserver.Options{URL: s.URL, CAFile: ca})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	b := NewTrustBundle(apiserver.BundleMap{Client: client, Namespace: "mesh", Name: "bundle"}, slog.New(slog.DiscardHandler))
	b.retry, b.every = 0, 0
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { b.Follow(ctx); close(ended) }()
	notYet := func(text string) {
		t.Helper()
		answers <- text
		if got, err := b.Get(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "mesh/bundle is not known yet") {
			t.Errorf("after %q: %q, %v", text, got, err)
		}
	}
	notYet("fail")
	notYet("")
	notYet("no certificate")
	answers <- certificate
	for {
		if got, err := b.Get(); err == nil {
			if got != certificate {
				t.Errorf("%q", got)
			}
			break
		}
		runtime.Gosched()
	}
	answers <- "fail"
	answers <- "no certificate"
	answers <- "fail"
	if got, err := b.Get(); got != certificate {
		t.Errorf("%q, %v", got, err)
	}
	cancel()
	<-ended
}
