package kubernetes

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"sallyport/integration/harness"
)

const (
	issuerName = "https://kubernetes.default.svc"
	adminToken = "administrator-of-the-test"
)

// cluster is an etcd and an API server, with RBAC, and a client that may do everything.
type cluster struct {
	t          *testing.T
	url        string
	caFile     string
	pool       *x509.CertPool
	accountKey *ecdsa.PrivateKey // signs service account tokens
	admin      dynamic.Interface
	warnings   *warnings
}

// warnings are what the API server told the client beside its answers.
type warnings struct {
	sync.Mutex
	list []string
}

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.Lock()
	defer w.Unlock()
	w.list = append(w.list, text)
}

// take returns the warnings so far and forgets them.
func (w *warnings) take() string {
	w.Lock()
	defer w.Unlock()
	text := strings.Join(w.list, "\n")
	w.list = nil
	return text
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	harness.Need(t, harness.Etcd, harness.APIServer)
	dir := t.TempDir()
	etcd := startEtcd(t, filepath.Join(dir, "etcd"))
	authority := harness.NewAuthority(t, "kubernetes.test")
	serving := authority.Issue("127.0.0.1", "localhost")
	c := &cluster{t: t, caFile: authority.Path, pool: authority.Pool, warnings: &warnings{}}
	keyFile := filepath.Join(dir, "accounts.key")
	c.accountKey = writeKey(t, keyFile)
	tokens := filepath.Join(dir, "tokens.csv")
	write(t, tokens, adminToken+`,admin,admin,"system:masters"`+"\n")
	port := harness.FreePort(t)
	c.url = "https://127.0.0.1:" + strconv.Itoa(port)
	server := harness.Command{Name: "kube-apiserver", Path: harness.APIServer.Path(), Args: []string{
		"--etcd-servers=" + etcd,
		"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(port),
		"--tls-cert-file=" + serving.CertPath, "--tls-private-key-file=" + serving.KeyPath,
		"--token-auth-file=" + tokens, "--authorization-mode=RBAC", "--anonymous-auth=false",
		"--service-account-issuer=" + issuerName,
		"--service-account-signing-key-file=" + keyFile, "--service-account-key-file=" + keyFile,
		// The addresses of services are on the loopback interface, so that the API server reaches a webhook by its service
		// as it does in a cluster, without a proxy that would lead it there.
		"--service-cluster-ip-range=127.64.0.0/16",
		"--endpoint-reconciler-type=none", "--advertise-address=192.0.2.1",
		"--profiling=false", "--v=1",
	}}.Start(t)
	server.WaitFor("readiness", func() error { return c.get("/readyz") })
	c.admin = c.client(adminToken)
	return c
}

func startEtcd(t *testing.T, dir string) string {
	t.Helper()
	url := "http://" + harness.FreeAddr(t)
	peer := "http://" + harness.FreeAddr(t)
	p := harness.Command{Name: "etcd", Path: harness.Etcd.Path(), Args: []string{"--data-dir", dir, "--name", "one", "--log-level", "warn",
		"--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "one=" + peer, "--unsafe-no-fsync"}}.Start(t)
	p.WaitFor("health", func() error {
		resp, err := http.Get(url + "/health")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	return url
}

func writeKey(t *testing.T, path string) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
	return key
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// get asks the API server for a path as the administrator.
func (c *cluster) get(path string) error {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: c.pool}, DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext}}
	req, err := http.NewRequest(http.MethodGet, c.url+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s %s", path, resp.Status, text)
	}
	return nil
}

// client is one that shows a token.
func (c *cluster) client(token string) dynamic.Interface {
	c.t.Helper()
	client, err := dynamic.NewForConfig(&rest.Config{
		Host: c.url, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAFile: c.caFile},
		QPS: 1000, Burst: 1000, Timeout: time.Minute, WarningHandler: c.warnings,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

// resources are the kinds that the tests touch.
var resources = map[string]schema.GroupVersionResource{
	"Namespace":                    {Version: "v1", Resource: "namespaces"},
	"Pod":                          {Version: "v1", Resource: "pods"},
	"ConfigMap":                    {Version: "v1", Resource: "configmaps"},
	"Secret":                       {Version: "v1", Resource: "secrets"},
	"Service":                      {Version: "v1", Resource: "services"},
	"ServiceAccount":               {Version: "v1", Resource: "serviceaccounts"},
	"PersistentVolumeClaim":        {Version: "v1", Resource: "persistentvolumeclaims"},
	"Deployment":                   {Group: "apps", Version: "v1", Resource: "deployments"},
	"Job":                          {Group: "batch", Version: "v1", Resource: "jobs"},
	"Role":                         {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"},
	"RoleBinding":                  {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"},
	"ClusterRole":                  {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"},
	"ClusterRoleBinding":           {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"},
	"PodDisruptionBudget":          {Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"},
	"NetworkPolicy":                {Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"},
	"MutatingWebhookConfiguration": {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"},
	"TokenReview":                  {Group: "authentication.k8s.io", Version: "v1", Resource: "tokenreviews"},
}

// of is the interface to the objects of a kind; an empty namespace is that of kinds that have none.
func of(client dynamic.Interface, kind, namespace string) dynamic.ResourceInterface {
	if namespace == "" {
		return client.Resource(resources[kind])
	}
	return client.Resource(resources[kind]).Namespace(namespace)
}

func untyped(t *testing.T, object any) *unstructured.Unstructured {
	t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: m}
}

func typed[T any](t *testing.T, u *unstructured.Unstructured) *T {
	t.Helper()
	v := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// create makes an object as the administrator and returns what the API server made of it.
func create[T any](t *testing.T, c *cluster, object *T) *T {
	t.Helper()
	u := untyped(t, object)
	got, err := of(c.admin, u.GetKind(), u.GetNamespace()).Create(t.Context(), u, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		t.Fatalf("%s %s/%s: %v", u.GetKind(), u.GetNamespace(), u.GetName(), err)
	}
	return typed[T](t, got)
}

// fetch reads an object as the administrator.
func fetch[T any](t *testing.T, c *cluster, kind, namespace, name string) *T {
	t.Helper()
	got, err := of(c.admin, kind, namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return typed[T](t, got)
}

// namespace makes one with a label sallyport.io/inject, or none, and the account "orders" in it.
func (c *cluster) namespace(t *testing.T, name, inject string) string {
	t.Helper()
	ns := &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name}}
	if inject != "" {
		ns.Labels = map[string]string{"sallyport.io/inject": inject}
	}
	create(t, c, ns)
	create(t, c, &corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
		ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "orders"}})
	return name
}
