package kubernetes

import (
	"os/exec"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"sallyport/integration/harness"
)

// TestInstallationIsAccepted applies what is printed, strictly, runs it, and applies it again as an upgrade does: what
// the running parts have written since stays.
func TestInstallationIsAccepted(t *testing.T) {
	m, _ := newMesh(t)
	m.untilAsked(t, m.namespace(t, "shop", "enabled"))
	bundle := fetch[corev1.ConfigMap](t, m.cluster, "ConfigMap", system, trustBundle)
	secret := fetch[corev1.Secret](t, m.cluster, "Secret", system, authority)
	config := fetch[admissionregistrationv1.MutatingWebhookConfiguration](t, m.cluster, hooks, "", injector)
	m.apply(t)
	for what, version := range map[string][2]string{
		"trust bundle": {bundle.ResourceVersion, fetch[corev1.ConfigMap](t, m.cluster, "ConfigMap", system, trustBundle).ResourceVersion},
		"authority":    {secret.ResourceVersion, fetch[corev1.Secret](t, m.cluster, "Secret", system, authority).ResourceVersion},
		"webhooks":     {config.ResourceVersion, fetch[admissionregistrationv1.MutatingWebhookConfiguration](t, m.cluster, hooks, "", injector).ResourceVersion},
	} {
		if version[0] != version[1] {
			t.Errorf("%s: changed by applying again", what)
		}
	}
	for _, name := range []string{control, injector} {
		m.admitted(t, name)
	}
}

// admitted has the pod of a printed deployment created, in a namespace whose pod security is "restricted".
func (m *mesh) admitted(t *testing.T, deployment string) {
	t.Helper()
	for _, u := range m.printed {
		if u.GetKind() != "Deployment" || u.GetName() != deployment {
			continue
		}
		template := typed[appsv1.Deployment](t, u).Spec.Template
		p := newPod(system, deployment+"-0")
		p.Labels, p.Annotations, p.Spec = template.Labels, template.Annotations, template.Spec
		got, err := m.try(t, p, false)
		if err != nil {
			t.Errorf("%s: %v", deployment, err)
		} else if injected(t, got) {
			t.Errorf("%s got a sidecar", deployment)
		}
	}
}

// TestRolesSufficeAndNoMore: what the accounts need is shown by the other tests, whose control plane and injector run
// with them; here is what they may not do.
func TestRolesSufficeAndNoMore(t *testing.T) {
	c := newCluster(t)
	m := c.install(t)
	shop := m.namespace(t, "shop", "")
	object := func(kind, version string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: version, Kind: kind} }
	create(t, c, &corev1.Secret{TypeMeta: object("Secret", "v1"), ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "other"}})
	create(t, c, &corev1.ConfigMap{TypeMeta: object("ConfigMap", "v1"), ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "other"}})
	create(t, c, &admissionregistrationv1.MutatingWebhookConfiguration{
		TypeMeta: object("MutatingWebhookConfiguration", "admissionregistration.k8s.io/v1"), ObjectMeta: metav1.ObjectMeta{Name: "other"}})

	patch := []byte(`{"metadata":{"labels":{"a":"b"}}}`)
	type call func(t *testing.T, c dynamic.Interface) error
	get := func(kind, namespace, name string) call {
		return func(t *testing.T, c dynamic.Interface) error {
			_, err := of(c, kind, namespace).Get(t.Context(), name, metav1.GetOptions{})
			return err
		}
	}
	list := func(kind, namespace string) call {
		return func(t *testing.T, c dynamic.Interface) error {
			_, err := of(c, kind, namespace).List(t.Context(), metav1.ListOptions{})
			return err
		}
	}
	change := func(kind, namespace, name string) call {
		return func(t *testing.T, c dynamic.Interface) error {
			_, err := of(c, kind, namespace).Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}
	}
	remove := func(kind, namespace, name string) call {
		return func(t *testing.T, c dynamic.Interface) error {
			return of(c, kind, namespace).Delete(t.Context(), name, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
		}
	}
	add := func(v any) call {
		return func(t *testing.T, c dynamic.Interface) error {
			u := untyped(t, v)
			_, err := of(c, u.GetKind(), u.GetNamespace()).Create(t.Context(), u, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		}
	}
	review := add(&authenticationv1.TokenReview{TypeMeta: object("TokenReview", "authentication.k8s.io/v1"), Spec: authenticationv1.TokenReviewSpec{Token: "x"}})
	configMap := add(&corev1.ConfigMap{TypeMeta: object("ConfigMap", "v1"), ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "new"}})
	secret := add(&corev1.Secret{TypeMeta: object("Secret", "v1"), ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "new"}})

	for account, calls := range map[string]struct{ may, mayNot map[string]call }{
		control: {
			may: map[string]call{"ask about tokens": review, "read the bundle": get("ConfigMap", system, trustBundle), "write it": change("ConfigMap", system, trustBundle)},
			mayNot: map[string]call{"read another config map": get("ConfigMap", system, "other"), "list config maps": list("ConfigMap", system),
				"make one": configMap, "delete the bundle": remove("ConfigMap", system, trustBundle), "read the injector's secret": get("Secret", system, authority),
				"list secrets": list("Secret", ""), "list pods": list("Pod", ""), "read the webhooks": get(hooks, "", injector), "create pods": add(newPod(shop, "new"))},
		},
		injector: {
			may: map[string]call{"read its secret": get("Secret", system, authority), "read the bundle": get("ConfigMap", system, trustBundle),
				"read its webhooks": get(hooks, "", injector), "write them": change(hooks, "", injector)},
			mayNot: map[string]call{"ask about tokens": review, "read another secret": get("Secret", system, "other"), "list secrets": list("Secret", system),
				"make a secret": secret, "delete its secret": remove("Secret", system, authority), "write the bundle": change("ConfigMap", system, trustBundle),
				"read others' webhooks": get(hooks, "", "other"), "write others' webhooks": change(hooks, "", "other"), "list webhooks": list(hooks, ""),
				"delete its webhooks": remove(hooks, "", injector), "list pods": list("Pod", shop), "create pods": add(newPod(shop, "new")),
				"read accounts": get("ServiceAccount", system, control), "change roles": change("ClusterRole", "", injector)},
		},
	} {
		client := c.client(c.request(t, system, account, issuerName, nil))
		for what, do := range calls.may {
			if err := do(t, client); err != nil {
				t.Errorf("%s may not %s: %v", account, what, err)
			}
		}
		for what, do := range calls.mayNot {
			if err := do(t, client); !apierrors.IsForbidden(err) {
				t.Errorf("%s may %s: %v", account, what, err)
			}
		}
	}
}

// TestMistakesInFlagsAreSaid needs no cluster.
func TestMistakesInFlagsAreSaid(t *testing.T) {
	needed := []string{"--image", "sallyport:test", "--control-plane", "127.0.0.1:15010"}
	for want, args := range map[string][]string{
		`sallyport: --failure-policy "maybe": must be Fail`:                  {"install", "--failure-policy", "maybe"},
		`sallyport: --namespace "Mesh": `:                                    {"install", "--namespace", "Mesh"},
		"sallyport: --image and --control-plane HOST:PORT are required":      {"injector"},
		`sallyport: --on-error "x": must be deny or allow`:                   append(needed, "--on-error", "x"),
		`sallyport: --image-pull-policy "x": must be Always`:                 append(needed, "--image-pull-policy", "x"),
		"sallyport: --kubernetes: kubernetes: this is no pod":                needed,
		`sallyport: --kubernetes: kubernetes: API server "127.0.0.1:6443": `: append(needed, "--kubernetes=127.0.0.1:6443"),
	} {
		if args[0] == "--image" {
			args = append([]string{"injector"}, args...)
		}
		if out := harness.Run(t, args...); out.Code != 1 || !strings.HasPrefix(out.Stderr, want) || strings.Count(out.Stderr, "\n") != 1 {
			t.Errorf("%q: exit %d, %q, want %q", args, out.Code, out.Stderr, want)
		}
	}
}

// TestProductDoesNotLinkTheClient: these tests use client-go; the program, which every sidecar is, must not.
func TestProductDoesNotLinkTheClient(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", ".")
	cmd.Dir = harness.Root()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range strings.Lines(string(out)) {
		if strings.HasPrefix(pkg, "k8s.io/client-go") {
			t.Errorf("linked: %s", pkg)
		}
	}
	if !strings.Contains(string(out), "k8s.io/api/core/v1\n") {
		t.Error("the list is not that of the product")
	}
}
