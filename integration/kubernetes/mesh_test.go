package kubernetes

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"sallyport/integration/harness"
)

// Names that sallyport install gives.
const (
	system      = "sallyport-system"
	injector    = "sallyport-injector"
	authority   = "sallyport-injector-authority"
	control     = "sallyport-control-plane"
	trustBundle = "sallyport-trust-bundle"
	trustDomain = "sallyport.local"

	hooks = "MutatingWebhookConfiguration"
)

// mesh is a cluster in which sallyport is installed.
type mesh struct {
	*cluster
	port    int                          // of the injector's service
	printed []*unstructured.Unstructured // by sallyport install
	control *harness.ControlPlane
	consul  *harness.ConsulAgent // nil: there is none
}

// install applies what sallyport install prints, as kubectl apply --server-side does, with one change: port 443 is
// root's, so the service has another.
func (c *cluster) install(t *testing.T, args ...string) *mesh {
	t.Helper()
	m := &mesh{cluster: c, port: harness.FreePort(t)}
	out := harness.Run(t, append([]string{"install", "--image", "sallyport:test"}, args...)...)
	if out.Code != 0 {
		t.Fatalf("sallyport install: %s", out.Stderr)
	}
	for doc := range strings.SplitSeq(strings.TrimPrefix(out.Stdout, "---\n"), "\n---\n") {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
			t.Fatal(err)
		}
		m.movePort(t, u)
		m.printed = append(m.printed, u)
	}
	m.apply(t)
	return m
}

func (m *mesh) movePort(t *testing.T, u *unstructured.Unstructured) {
	t.Helper()
	in := func(fields ...string) []any {
		list, ok, err := unstructured.NestedSlice(u.Object, fields...)
		if !ok || err != nil {
			t.Fatalf("%s: %v", u.GetName(), err)
		}
		return list
	}
	switch {
	case u.GetKind() == "Service" && u.GetName() == injector:
		ports := in("spec", "ports")
		ports[0].(map[string]any)["port"] = int64(m.port)
		unstructured.SetNestedSlice(u.Object, ports, "spec", "ports")
	case u.GetKind() == "MutatingWebhookConfiguration":
		list := in("webhooks")
		for _, w := range list {
			unstructured.SetNestedField(w.(map[string]any), int64(m.port), "clientConfig", "service", "port")
		}
		unstructured.SetNestedSlice(u.Object, list, "webhooks")
	}
}

func (m *mesh) apply(t *testing.T) {
	t.Helper()
	if len(m.printed) < 10 {
		t.Fatalf("%d manifests", len(m.printed))
	}
	for _, u := range m.printed {
		_, err := of(m.admin, u.GetKind(), u.GetNamespace()).Apply(t.Context(), u.GetName(), u, metav1.ApplyOptions{FieldManager: "administrator"})
		if err != nil {
			t.Fatalf("%s %s: %v", u.GetKind(), u.GetName(), err)
		}
	}
	if text := m.warnings.take(); text != "" {
		t.Errorf("the API server warns: %s", text)
	}
}

// args are those that a printed deployment starts its container with.
func (m *mesh) args(t *testing.T, deployment string) []string {
	t.Helper()
	for _, u := range m.printed {
		if u.GetKind() == "Deployment" && u.GetName() == deployment {
			return typed[appsv1.Deployment](t, u).Spec.Template.Spec.Containers[0].Args
		}
	}
	t.Fatalf("no deployment %s", deployment)
	return nil
}

// request asks for a service account token, bound to a pod where one is given.
func (c *cluster) request(t *testing.T, namespace, account, audience string, pod *corev1.Pod) string {
	t.Helper()
	r := &authenticationv1.TokenRequest{
		TypeMeta:   metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account},
		Spec:       authenticationv1.TokenRequestSpec{Audiences: []string{audience}},
	}
	if pod != nil {
		r.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	got, err := of(c.admin, "ServiceAccount", namespace).Create(t.Context(), untyped(t, r), metav1.CreateOptions{}, "token")
	if err != nil {
		t.Fatal(err)
	}
	return typed[authenticationv1.TokenRequest](t, got).Status.Token
}

// credentials are the arguments by which a process is the account, as the files of its pod would make it.
func (c *cluster) credentials(t *testing.T, account string) []string {
	t.Helper()
	token := write(t, filepath.Join(t.TempDir(), "token"), c.request(t, system, account, issuerName, nil))
	return []string{"--kubernetes=" + c.url, "--kubernetes-ca=" + c.caFile, "--kubernetes-token-file=" + token}
}

// runControlPlane starts the control plane as its printed deployment does, but for Consul, folders and addresses.
func (m *mesh) runControlPlane(t *testing.T) *harness.ControlPlane {
	t.Helper()
	args := slices.DeleteFunc(m.args(t, control)[1:], func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		return slices.Contains([]string{"--listen", "--status-listen", "--policies", "--state", "--consul"}, name)
	})
	args = append(args, m.credentials(t, control)...)
	m.control = harness.NewControlPlane(t).Args(args...).Args("--status-listen", harness.FreeAddr(t))
	if m.consul != nil {
		m.control.Consul(m.consul).Run()
	} else {
		m.control.Catalog("services: []\n").Run()
	}
	harness.Eventually(t, 20*time.Second, "trust bundle", func() error {
		if fetch[corev1.ConfigMap](t, m.cluster, "ConfigMap", system, trustBundle).Data["bundle.pem"] == "" {
			return errors.New("not published")
		}
		return nil
	})
	return m.control
}

// webhook is a running injector.
type webhook struct {
	*harness.Process
	status string
}

// runInjector starts an injector as its printed deployment does, but for addresses, and waits until it is ready.
func (m *mesh) runInjector(t *testing.T, args ...string) *webhook {
	t.Helper()
	service := fetch[corev1.Service](t, m.cluster, "Service", system, injector)
	return m.runReplica(t, net.JoinHostPort(service.Spec.ClusterIP, strconv.Itoa(m.port)), args...)
}

// runReplica is runInjector at another address than the service's.
func (m *mesh) runReplica(t *testing.T, listen string, args ...string) *webhook {
	t.Helper()
	w := &webhook{status: harness.FreeAddr(t)}
	all := append(m.args(t, injector), m.credentials(t, injector)...)
	all = append(all, "--listen", listen, "--status-listen", w.status, "--drain-time=0s", "--log-level=debug")
	w.Process = harness.Command{Name: "injector", Path: harness.Binary(t), Args: append(all, args...)}.Start(t)
	w.WaitFor("readiness", func() error { _, err := w.get("/ready"); return err })
	return w
}

func (w *webhook) get(path string) (string, error) {
	resp, err := http.Get("http://" + w.status + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return string(text), err
}

// newMesh is a cluster with sallyport in it, running.
func newMesh(t *testing.T, args ...string) (*mesh, *webhook) {
	t.Helper()
	m := newCluster(t).install(t, args...)
	m.runControlPlane(t)
	return m, m.runInjector(t)
}

// newPod is one of the service "orders".
func newPod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: orders(),
	}
}

func orders() corev1.PodSpec {
	return corev1.PodSpec{ServiceAccountName: "orders", Containers: []corev1.Container{
		{Name: "app", Image: "orders:1", Ports: []corev1.ContainerPort{{ContainerPort: 8080}}},
	}}
}

// try creates a pod, for good or as a dry run.
func (c *cluster) try(t *testing.T, pod *corev1.Pod, dryRun bool) (*corev1.Pod, error) {
	t.Helper()
	o := metav1.CreateOptions{}
	if dryRun {
		o.DryRun = []string{metav1.DryRunAll}
	}
	got, err := of(c.admin, "Pod", pod.Namespace).Create(t.Context(), untyped(t, pod), o)
	if err != nil {
		return nil, err
	}
	return typed[corev1.Pod](t, got), nil
}

// injected says whether the pod has its sidecar, and fails the test where it has half of one.
func injected(t *testing.T, p *corev1.Pod) bool {
	t.Helper()
	var names []string
	for _, c := range p.Spec.InitContainers {
		names = append(names, c.Name)
	}
	status := p.Annotations["sallyport.io/status"] != ""
	native := slices.ContainsFunc(p.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == "sallyport-proxy" && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways && c.Image == "sallyport:test"
	})
	set := slices.Contains(names, "sallyport-init")
	if status != native || status != set {
		t.Errorf("pod %s: init containers %q, annotations %q", p.Name, names, slices.Sorted(maps.Keys(p.Annotations)))
	}
	return status
}

// untilAsked waits until the API server, which follows its own configuration with a delay, asks the injector.
func (m *mesh) untilAsked(t *testing.T, namespace string) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, "injection in "+namespace, func() error {
		p, err := m.try(t, newPod(namespace, "probe"), true)
		if err == nil && !injected(t, p) {
			err = errors.New("not injected")
		}
		return err
	})
}
