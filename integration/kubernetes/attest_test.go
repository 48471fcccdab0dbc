package kubernetes

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/integration/harness"
)

// issued is what the control plane logs of the sidecar of "orders" in "shop".
const issued = "spiffe_id=spiffe://sallyport.local/ns/shop/svc/orders attested_by=service-account"

// TestServiceAccountsAttestSidecars starts the sidecar that the webhook put into a pod, outside of it, with what kubelet
// would have mounted there, and then with tokens that must not do.
func TestServiceAccountsAttestSidecars(t *testing.T) {
	m, _ := newMesh(t)
	m.namespace(t, "shop", "enabled")
	m.untilAsked(t, "shop")
	pod := create(t, m.cluster, newPod("shop", "orders"))
	good := m.request(t, "shop", "orders", trustDomain, pod)

	sidecar := m.sidecar(t, pod, good).Start(t)
	m.control.WaitLog(issued)
	sidecar.Stop(20 * time.Second)

	create(t, m.cluster, &corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "payments"}})
	other := newPod("shop", "payments")
	other.Spec.ServiceAccountName = "payments"
	other = create(t, m.cluster, other)
	gone := create(t, m.cluster, newPod("shop", "gone"))
	tokenOfGone := m.request(t, "shop", "orders", trustDomain, gone)
	if err := of(m.admin, "Pod", "shop").Delete(t.Context(), "gone", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
		t.Fatal(err)
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	hour := time.Now().Add(time.Hour)
	for _, tc := range []struct{ name, token, want string }{
		{"of no pod", m.request(t, "shop", "orders", trustDomain, nil), "the token is not bound to a pod"},
		{"for the API server", m.request(t, "shop", "orders", issuerName, pod), "is invalid for the target audiences"},
		{"of another account", m.request(t, "shop", "payments", trustDomain, other), "svc/payments"},
		{"of a pod that is gone", tokenOfGone, "has been invalidated"},
		{"expired", m.sign(t, m.accountKey, pod, time.Now().Add(-time.Minute)), "has expired"},
		{"signed by a stranger", m.sign(t, stranger, pod, hour), "refused by the API server"},
	} {
		p := m.sidecar(t, pod, tc.token).Start(t)
		if code := p.WaitExit(30 * time.Second); code == 0 || !strings.Contains(p.Log(), tc.want) || strings.Contains(p.Log(), tc.token) {
			t.Errorf("a token %s: exit %d, want %q in %s", tc.name, code, tc.want, p.Log())
		}
	}
	// The same signature is good as long as the token is: it was the time that was refused.
	before := strings.Count(m.control.Log(), issued)
	again := m.sidecar(t, pod, m.sign(t, m.accountKey, pod, hour)).Start(t)
	m.control.WaitFor("another certificate", func() error {
		if strings.Count(m.control.Log(), issued) == before {
			return errors.New("not issued")
		}
		return nil
	})
	again.Stop(20 * time.Second)
}

// sidecar is the command of the pod's sidecar container, with the files that kubelet would mount and with addresses of
// this machine; traffic is not redirected here.
func (m *mesh) sidecar(t *testing.T, pod *corev1.Pod, token string) harness.Command {
	t.Helper()
	i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == "sallyport-proxy" })
	if i < 0 {
		t.Fatal("the pod has no sidecar")
	}
	dir := t.TempDir()
	var args []string
	replaced := map[string]string{
		"--control-plane":         m.control.Addr(),
		"--service-account-token": write(t, filepath.Join(dir, "token"), token),
		"--ca-bundle":             write(t, filepath.Join(dir, "bundle.pem"), pod.Annotations["sallyport.io/trust-bundle"]),
		"--admin":                 "127.0.0.1:0",
		"--health-address":        harness.FreeAddr(t),
		"--listen":                harness.FreeAddr(t), // the pod's address, which is the test's own here
	}
	var dropped []string
	if m.consul == nil {
		dropped = []string{"--consul", "--listen"}
	}
	names := strings.NewReplacer("$(POD_NAMESPACE)", pod.Namespace, "$(POD_NAME)", pod.Name)
	for list := pod.Spec.InitContainers[i].Args; len(list) > 0; list = list[1:] {
		switch value, ok := replaced[list[0]]; {
		case slices.Contains(dropped, list[0]):
			list = list[1:]
		case ok:
			args = append(args, list[0], value)
			list = list[1:]
		case list[0] != "--transparent":
			args = append(args, names.Replace(list[0]))
		}
	}
	return harness.Command{Name: "sidecar", Path: harness.Binary(t), Args: args}
}

// sign makes a token of the pod's account as the API server makes them, by any key and until any time.
func (m *mesh) sign(t *testing.T, key *ecdsa.PrivateKey, pod *corev1.Pod, end time.Time) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	account := fetch[corev1.ServiceAccount](t, m.cluster, "ServiceAccount", pod.Namespace, "orders")
	named := func(name string, uid any) map[string]any { return map[string]any{"name": name, "uid": uid} }
	begin := jwt.NewNumericDate(time.Now().Add(-time.Hour))
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: issuerName, Subject: "system:serviceaccount:" + pod.Namespace + ":orders", Audience: jwt.Audience{trustDomain},
		IssuedAt: begin, NotBefore: begin, Expiry: jwt.NewNumericDate(end),
	}).Claims(map[string]any{"kubernetes.io": map[string]any{
		"namespace": pod.Namespace, "serviceaccount": named("orders", account.UID), "pod": named(pod.Name, pod.UID),
	}}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
