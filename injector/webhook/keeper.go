package webhook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"

	"sallyport/certs/apiserver"
)

// SecretKey is the key of the secret under which the authorities stand, certificates and private keys in PEM.
const SecretKey = "authorities.pem"

const (
	maxSync   = 30 * time.Second // between two looks at the API server: what others changed is repaired
	firstFail = time.Second
	maxFail   = 30 * time.Second
)

// api is the part of the API server that is needed; package apiserver has it.
type api interface {
	Get(ctx context.Context, path string, out any) error
	Update(ctx context.Context, path string, in, out any) error
	Merge(ctx context.Context, path string, patch, out any) error
}

var _ api = (*apiserver.Client)(nil)

// keeper keeps the authority in the secret, its certificates in the webhook configuration and a certificate to serve
// with. Owned by the goroutine of run; only certificate is safe for concurrent use.
type keeper struct {
	api     api
	config  string // path of the MutatingWebhookConfiguration
	secret  string // path of the secret
	names   []string
	lives   lives
	now     func() time.Time
	log     *slog.Logger
	metrics *metrics

	authorities authorities // as last seen
	inBundle    map[[sha256.Size]byte]time.Time
	signer      *authority
	current     atomic.Pointer[tls.Certificate]
}

// every is how long to wait between two looks: often enough that no step of a rotation comes late.
func (k *keeper) every() time.Duration { return min(maxSync, k.lives.settle, k.lives.leaf/8) }

// run keeps everything as it should be until ctx ends. ready is called after each look, with what was wrong.
func (k *keeper) run(ctx context.Context, ready func(error)) {
	failing := ""
	for fails := 0; ctx.Err() == nil; {
		err := k.sync(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := k.every()
		switch {
		case err == nil:
			fails, failing = 0, ""
			k.metrics.syncs.WithLabelValues("ok").Inc()
		case apiserver.IsConflict(err):
			// Another replica was faster; what it wrote is as good.
			k.metrics.syncs.WithLabelValues("conflict").Inc()
			wait = min(wait, 50*time.Millisecond)
		default:
			k.metrics.syncs.WithLabelValues("error").Inc()
			wait = min(wait, maxFail, firstFail<<min(fails, 5))
			fails++
			if text := err.Error(); text != failing {
				failing = text
				k.log.Warn("certificates not synchronized", "error", err)
			}
		}
		ready(err)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// sync takes one look, repairs what it finds and renews the certificate, which it does also without the API server.
func (k *keeper) sync(ctx context.Context) error {
	err := k.publish(ctx)
	if leafErr := k.renew(); leafErr != nil {
		return errors.Join(err, leafErr)
	}
	return err
}

// publish brings the secret and the caBundle up to date. The configuration is read before the secret and written with
// the version that was read: had another replica written a younger bundle meanwhile, this one's would fail, and what is
// written is never older than what was there.
func (k *keeper) publish(ctx context.Context) error {
	var config admissionregistrationv1.MutatingWebhookConfiguration
	if err := k.api.Get(ctx, k.config, &config); err != nil {
		return explain(err, "webhook configuration")
	}
	var secret corev1.Secret
	if err := k.api.Get(ctx, k.secret, &secret); err != nil {
		return explain(err, "secret of the authority")
	}
	have, err := parseAuthorities(secret.Data[SecretKey])
	if err != nil {
		return fmt.Errorf("secret %s/%s, key %s: %w: delete that key, and a new authority is made", secret.Namespace, secret.Name, SecretKey, err)
	}
	want, changed, err := have.turn(k.now(), k.lives)
	if err != nil {
		return err
	}
	if changed {
		data, err := want.marshal()
		if err != nil {
			return err
		}
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		secret.Data[SecretKey] = data
		if err := k.api.Update(ctx, k.secret, &secret, nil); err != nil {
			return explain(err, "secret of the authority")
		}
		k.log.Info("authorities changed", "before", len(have), "now", len(want), "not_after", want[len(want)-1].cert.NotAfter)
	}
	k.authorities = want
	k.metrics.caEnd.Set(float64(want[len(want)-1].cert.NotAfter.Unix()))
	return k.publishBundle(ctx, &config, want.bundle())
}

func (k *keeper) publishBundle(ctx context.Context, config *admissionregistrationv1.MutatingWebhookConfiguration, bundle []byte) error {
	if len(config.Webhooks) == 0 {
		return errors.New("webhook configuration: it lists no webhook: apply what sallyport install prints")
	}
	var patches []any
	trusted := bundle // what every webhook of the configuration has
	for _, w := range config.Webhooks {
		if !bytes.Equal(w.ClientConfig.CABundle, bundle) {
			patches = append(patches, map[string]any{"name": w.Name, "clientConfig": map[string]any{"caBundle": bundle}})
			trusted = w.ClientConfig.CABundle
		}
	}
	if len(patches) > 0 {
		err := k.api.Merge(ctx, k.config, map[string]any{
			"metadata": map[string]any{"resourceVersion": config.ResourceVersion}, "webhooks": patches,
		}, nil)
		if err != nil {
			k.saw(trusted)
			return explain(err, "webhook configuration")
		}
		k.metrics.patched.Inc()
		k.log.Info("caBundle written", "webhooks", len(patches))
	}
	k.saw(bundle)
	return nil
}

// saw notes since when each authority is in the bundle.
func (k *keeper) saw(bundle []byte) {
	now, seen := k.now(), map[[sha256.Size]byte]time.Time{}
	for rest := bundle; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		id := sha256.Sum256(b.Bytes)
		if since, ok := k.inBundle[id]; ok {
			seen[id] = since
		} else {
			seen[id] = now
		}
	}
	k.inBundle = seen
}

// renew makes a serving certificate where there is none, half of its life is over, or another authority signs now: the
// youngest that has been in the bundle for long enough, or else the oldest that is in it.
func (k *keeper) renew() error {
	now := k.now()
	var signer *authority
	for _, a := range k.authorities {
		since, ok := k.inBundle[a.id]
		if ok && now.Before(a.cert.NotAfter) && (signer == nil || now.Sub(since) >= k.lives.settle) {
			signer = a
		}
	}
	if signer == nil {
		if k.current.Load() == nil {
			return nil // publish has said why
		}
		return errors.New("no authority that the API server trusts is left to sign with")
	}
	if c := k.current.Load(); c != nil && signer == k.signer && now.Before(c.Leaf.NotAfter.Add(-k.lives.leaf/2)) {
		return nil
	}
	leaf, err := signer.leaf(now, k.lives, k.names)
	if err != nil {
		return fmt.Errorf("serving certificate: %w", err)
	}
	k.signer = signer
	k.current.Store(leaf)
	k.metrics.leafEnd.Set(float64(leaf.Leaf.NotAfter.Unix()))
	k.log.Debug("serving certificate renewed", "not_after", leaf.Leaf.NotAfter, "authority", signer.cert.Subject.CommonName)
	return nil
}

// certificate is for tls.Config.GetCertificate.
func (k *keeper) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := k.current.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("no serving certificate yet")
}

func explain(err error, what string) error {
	if apiserver.IsNotFound(err) {
		return fmt.Errorf("%s: %w: apply what sallyport install prints", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
