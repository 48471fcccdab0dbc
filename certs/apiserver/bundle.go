package apiserver

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BundleKey is the key of the config map under which the trust bundle stands, in PEM.
const BundleKey = "bundle.pem"

const (
	publishEvery = time.Minute // repairs what others changed
	publishRetry = 2 * time.Second
)

// BundleMap is the config map by which the control plane tells the injector the trust bundle, and the injector the
// sidecars: the roots by which they recognize the control plane before they send a token.
type BundleMap struct {
	Client          *Client
	Namespace, Name string
}

func (m BundleMap) path() string {
	return "/api/v1/namespaces/" + m.Namespace + "/configmaps/" + m.Name
}

// Read returns the bundle, checked to hold certificates.
func (m BundleMap) Read(ctx context.Context) (string, error) {
	var have corev1.ConfigMap
	if err := m.Client.Get(ctx, m.path(), &have); err != nil {
		return "", fmt.Errorf("trust bundle: %w", err)
	}
	text := have.Data[BundleKey]
	if !x509.NewCertPool().AppendCertsFromPEM([]byte(text)) {
		return "", fmt.Errorf("trust bundle: config map %s/%s has no certificates under %s yet: is the control plane running?", m.Namespace, m.Name, BundleKey)
	}
	return text, nil
}

// Roots is a bundle that changes.
type Roots interface {
	Bundle() *x509bundle.Bundle
	Updated() <-chan struct{}
}

// Publish keeps the config map up to date until ctx ends. Failures are logged when they begin and tried again: a
// control plane without its API server still serves.
func (m BundleMap) Publish(ctx context.Context, roots Roots, log *slog.Logger) {
	failing := ""
	for ctx.Err() == nil {
		updated := roots.Updated() // before the bundle is read: a change in between is seen
		wait := publishEvery
		if err := m.write(ctx, roots.Bundle()); err != nil {
			wait = publishRetry
			if text := err.Error(); text != failing && ctx.Err() == nil {
				failing = text
				log.Warn("trust bundle not published", "config_map", m.Namespace+"/"+m.Name, "error", err)
			}
		} else {
			failing = ""
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-updated:
		case <-t.C:
		}
		t.Stop()
	}
}

func (m BundleMap) write(ctx context.Context, b *x509bundle.Bundle) error {
	pem, err := b.Marshal()
	if err != nil {
		return err
	}
	var have corev1.ConfigMap
	err = m.Client.Get(ctx, m.path(), &have)
	if IsNotFound(err) {
		want := corev1.ConfigMap{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name},
			Data:       map[string]string{BundleKey: string(pem)},
		}
		return m.Client.Create(ctx, "/api/v1/namespaces/"+m.Namespace+"/configmaps", &want, nil)
	}
	if err != nil || have.Data[BundleKey] == string(pem) {
		return err
	}
	// Several control planes of one trust domain have one bundle: no conflict to settle.
	return m.Client.Merge(ctx, m.path(), map[string]any{"data": map[string]string{BundleKey: string(pem)}}, nil)
}
