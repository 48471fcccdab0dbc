package webhook

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"sallyport/certs/apiserver"
)

// cluster is an API server as far as a keeper needs one: two objects with versions.
type cluster struct {
	t       *testing.T
	config  admissionregistrationv1.MutatingWebhookConfiguration
	secret  corev1.Secret
	version int
	away    bool
	writes  int
	before  func(method string) // a call, to let another replica be faster
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t}
	c.config.Name, c.secret.Namespace, c.secret.Name = DefaultConfig, "sallyport-system", DefaultSecret
	c.config.Webhooks = []admissionregistrationv1.MutatingWebhook{{Name: "a.example.com"}, {Name: "b.example.com"}}
	return c
}

func (c *cluster) call(method string) error {
	if c.away {
		return errors.New("connection refused")
	}
	if before := c.before; before != nil {
		c.before = nil
		before(method)
	}
	return nil
}

func (c *cluster) touch(m *metav1.ObjectMeta) {
	c.version++
	c.writes++
	m.ResourceVersion = strconv.Itoa(c.version)
}

func (c *cluster) Get(_ context.Context, path string, out any) error {
	if err := c.call(http.MethodGet); err != nil {
		return err
	}
	from := any(&c.config)
	if strings.Contains(path, "/secrets/") {
		from = &c.secret
	}
	data, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, out)
}

func (c *cluster) Update(_ context.Context, _ string, in, _ any) error {
	if err := c.call(http.MethodPut); err != nil {
		return err
	}
	secret := in.(*corev1.Secret)
	if secret.ResourceVersion != c.secret.ResourceVersion {
		return &apiserver.StatusError{Code: http.StatusConflict}
	}
	c.secret = *secret.DeepCopy()
	c.touch(&c.secret.ObjectMeta)
	return nil
}

func (c *cluster) Merge(_ context.Context, _ string, patch, _ any) error {
	if err := c.call(http.MethodPatch); err != nil {
		return err
	}
	old, err := json.Marshal(&c.config)
	if err != nil {
		return err
	}
	text, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	merged, err := strategicpatch.StrategicMergePatch(old, text, &c.config)
	if err != nil {
		return err
	}
	var next admissionregistrationv1.MutatingWebhookConfiguration
	if err := json.Unmarshal(merged, &next); err != nil {
		return err
	}
	if next.ResourceVersion != c.config.ResourceVersion {
		return &apiserver.StatusError{Code: http.StatusConflict}
	}
	c.config = next
	c.touch(&c.config.ObjectMeta)
	return nil
}

func (c *cluster) replica(now *time.Time, l lives) *keeper {
	return &keeper{api: c, config: "/config", secret: "/secrets/x", names: []string{"injector.svc"}, lives: l,
		now: func() time.Time { return *now }, log: slog.New(slog.DiscardHandler), metrics: newMetrics()}
}

// trusts says whether an API server that has this bundle takes the certificate.
func trusts(bundle []byte, k *keeper, now time.Time) error {
	c := k.current.Load()
	if c == nil {
		return errors.New("no certificate")
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	_, err := c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "injector.svc", CurrentTime: now})
	return err
}

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// TestCertificatesAreTrustedThroughRotations has three replicas, one of them late, live through four authorities. At each
// moment the API server, which knows the configuration of a step ago, must take the certificate of each replica.
func TestCertificatesAreTrustedThroughRotations(t *testing.T) {
	l := lives{ca: 12 * time.Hour, leaf: 2 * time.Hour, settle: 10 * time.Minute}
	const every = 2 * time.Minute // less often than in life, which is harder
	now, c := start, newCluster(t)
	replicas := []*keeper{c.replica(&now, l), c.replica(&now, l), c.replica(&now, l)}
	for _, k := range replicas {
		if err := k.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var known []byte // by the API server
	roots, signers, most := map[string]bool{}, map[string]bool{}, 0
	for step := range int(32 * time.Hour / every) {
		known = bytes.Clone(c.config.Webhooks[0].ClientConfig.CABundle)
		now = now.Add(every)
		hour := int(now.Sub(start) / time.Hour)
		c.away = hour%9 == 5 // an hour without the API server
		for i, k := range replicas {
			if i == 2 && step%10 != 0 {
				continue
			}
			if err := k.sync(t.Context()); err != nil && !c.away {
				t.Fatal(err)
			}
			if err := trusts(known, k, now); err != nil {
				t.Fatalf("%v: replica %d: %v", now.Sub(start), i, err)
			}
			signers[k.signer.cert.Subject.CommonName] = true
		}
		all := replicas[0].authorities
		most = max(most, len(all))
		for _, a := range all {
			roots[a.cert.Subject.CommonName] = true
		}
		if !c.away && (!bytes.Equal(c.config.Webhooks[0].ClientConfig.CABundle, all.bundle()) ||
			!bytes.Equal(c.config.Webhooks[1].ClientConfig.CABundle, all.bundle())) {
			t.Fatalf("%v: the webhooks' caBundle is not that of the secret", now.Sub(start))
		}
	}
	if len(roots) != 4 || len(signers) != 4 || most != 2 {
		t.Errorf("%d authorities, %d of them signed, at most %d at a time; want 4, 4, 2", len(roots), len(signers), most)
	}
	if c.writes > 20 {
		t.Errorf("%d writes: replicas work against each other", c.writes)
	}
}

func TestFasterReplicaWins(t *testing.T) {
	l := lives{ca: 12 * time.Hour, leaf: time.Hour, settle: time.Minute}
	for _, at := range []string{http.MethodPut, http.MethodPatch} {
		now, c := start, newCluster(t)
		one, two := c.replica(&now, l), c.replica(&now, l)
		var arm func(string)
		arm = func(method string) {
			if method != at {
				c.before = arm
				return
			}
			if err := two.sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		c.before = arm
		if err := one.sync(t.Context()); !apiserver.IsConflict(err) {
			t.Errorf("%s: %v, want a conflict", at, err)
		}
		if err := one.sync(t.Context()); err != nil {
			t.Error(err)
		}
		for _, k := range []*keeper{one, two} {
			if err := trusts(c.config.Webhooks[1].ClientConfig.CABundle, k, now); err != nil {
				t.Errorf("%s: %v", at, err)
			}
		}
		if len(one.authorities) != 1 || c.writes != 2 {
			t.Errorf("%s: %d authorities, %d writes", at, len(one.authorities), c.writes)
		}
	}
}

// TestNewReplicaOfAnOldCluster starts in the middle of a rotation: it signs by the authority that surely is known.
func TestNewReplicaOfAnOldCluster(t *testing.T) {
	l := lives{ca: 12 * time.Hour, leaf: time.Hour, settle: time.Minute}
	now, c := start, newCluster(t)
	old := c.replica(&now, l)
	if err := old.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	known := bytes.Clone(c.config.Webhooks[0].ClientConfig.CABundle)
	now = now.Add(8*time.Hour + time.Minute)
	if err := old.sync(t.Context()); err != nil || len(old.authorities) != 2 {
		t.Fatalf("%d authorities, %v", len(old.authorities), err)
	}
	fresh := c.replica(&now, l)
	if err := fresh.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := trusts(known, fresh, now); err != nil {
		t.Error(err)
	}
}

func TestCaBundleThatOthersChangedIsRepaired(t *testing.T) {
	l := lives{ca: 12 * time.Hour, leaf: time.Hour, settle: time.Minute}
	now, c := start, newCluster(t)
	k := c.replica(&now, l)
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.config.Webhooks[1].ClientConfig.CABundle = nil // as kubectl replace does
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := trusts(c.config.Webhooks[1].ClientConfig.CABundle, k, now); err != nil {
		t.Error(err)
	}
}

// TestDeletedAuthorityIsReplaced, by one replica; the other takes it over at once, as nobody trusts the old one any more.
func TestDeletedAuthorityIsReplaced(t *testing.T) {
	l := lives{ca: 12 * time.Hour, leaf: time.Hour, settle: time.Minute}
	now, c := start, newCluster(t)
	replicas := []*keeper{c.replica(&now, l), c.replica(&now, l)}
	for round := range 2 {
		for i, k := range replicas {
			if err := k.sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := trusts(c.config.Webhooks[0].ClientConfig.CABundle, k, now); err != nil {
				t.Errorf("round %d, replica %d: %v", round, i, err)
			}
		}
		c.secret.Data = nil
		now = now.Add(time.Second)
	}
}

func TestSecretOfSomethingElseIsNotOverwritten(t *testing.T) {
	l := lives{ca: 12 * time.Hour, leaf: time.Hour, settle: time.Minute}
	now := start
	one, err := newAuthority(now, l)
	if err != nil {
		t.Fatal(err)
	}
	two, err := newAuthority(now, l)
	if err != nil {
		t.Fatal(err)
	}
	mixed, err := authorities{{cert: one.cert, key: two.key}}.marshal()
	if err != nil {
		t.Fatal(err)
	}
	many, err := authorities{one, one, one, one, one, one, one, one, one}.marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"a text":             {[]byte("hello"), "no PEM of certificates and keys"},
		"a certificate only": {authorities{one}.bundle(), "a certificate without its key"},
		"another's key":      {mixed, "the key is not that of the authority"},
		"too many":           {many, "more than 8"},
		"too large":          {bytes.Repeat([]byte("x"), maxSecret+1), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.secret.Data = map[string][]byte{SecretKey: tc.data, "other": []byte("stays")}
			err := c.replica(&now, l).sync(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) || c.writes > 0 {
				t.Errorf("%v, %d writes; want %q", err, c.writes, tc.want)
			}
		})
	}
}

func TestCertificateIsRenewedAlsoWithoutTheAPIServer(t *testing.T) {
	l := lives{ca: 12 * time.Hour, leaf: time.Hour, settle: time.Minute}
	now, c := start, newCluster(t)
	k := c.replica(&now, l)
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := k.current.Load()
	c.away = true
	for range 6 {
		now = now.Add(40 * time.Minute)
		if err := k.sync(t.Context()); err == nil {
			t.Error("the failure is not told")
		}
		if err := trusts(c.config.Webhooks[0].ClientConfig.CABundle, k, now); err != nil {
			t.Error(err)
		}
	}
	if k.current.Load() == first {
		t.Error("not renewed")
	}
	now = now.Add(9 * time.Hour) // the authority has ended
	if err := k.sync(t.Context()); err == nil || !strings.Contains(err.Error(), "no authority that the API server trusts") {
		t.Error(err)
	}
	c.away = false
	if err := k.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := trusts(c.config.Webhooks[0].ClientConfig.CABundle, k, now); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNotInstalledIsSaid(t *testing.T) {
	now, c := start, newCluster(t)
	c.config.Webhooks = nil
	k := c.replica(&now, lives{ca: 12 * time.Hour, leaf: time.Hour, settle: time.Minute})
	if err := k.sync(t.Context()); err == nil || !strings.Contains(err.Error(), "apply what sallyport install prints") {
		t.Error(err)
	}
	if _, err := k.certificate(nil); err == nil {
		t.Error("a certificate that nobody trusts")
	}
	if err := explain(&apiserver.StatusError{Code: 404}, "secret"); !strings.Contains(err.Error(), "apply what sallyport install prints") {
		t.Error(err)
	}
}
