package install

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"sallyport/injector/webhook"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var cases = map[string]Options{
	"default": {},
	"all": {Namespace: "mesh", Image: "registry.example/sallyport:1.2", TrustDomain: "example.org", Consul: "https://consul.example:8501",
		FailurePolicy: "Ignore", Replicas: 3},
}

func TestGoldenManifests(t *testing.T) {
	for name, o := range cases {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			if err := Print(&got, o); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", path, diff)
			}
		})
	}
	files, err := filepath.Glob("testdata/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, ok := cases[strings.TrimSuffix(filepath.Base(f), ".yaml")]; !ok {
			t.Errorf("%s: no test reads it", f)
		}
	}
}

// blank returns an empty object of a kind.
func blank(t *testing.T, m metav1.TypeMeta) any {
	t.Helper()
	for _, object := range []struct {
		metav1.TypeMeta
		v any
	}{
		{typed("v1", "Namespace"), &corev1.Namespace{}},
		{typed("v1", "ServiceAccount"), &corev1.ServiceAccount{}},
		{typed("v1", "ConfigMap"), &corev1.ConfigMap{}},
		{typed("v1", "Secret"), &corev1.Secret{}},
		{typed("v1", "Service"), &corev1.Service{}},
		{typed("v1", "PersistentVolumeClaim"), &corev1.PersistentVolumeClaim{}},
		{typed("apps/v1", "Deployment"), &appsv1.Deployment{}},
		{typed("policy/v1", "PodDisruptionBudget"), &policyv1.PodDisruptionBudget{}},
		{typed("networking.k8s.io/v1", "NetworkPolicy"), &networkingv1.NetworkPolicy{}},
		{typed("rbac.authorization.k8s.io/v1", "Role"), &rbacv1.Role{}},
		{typed("rbac.authorization.k8s.io/v1", "RoleBinding"), &rbacv1.RoleBinding{}},
		{typed("rbac.authorization.k8s.io/v1", "ClusterRole"), &rbacv1.ClusterRole{}},
		{typed("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"), &rbacv1.ClusterRoleBinding{}},
		{typed("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"), &admissionregistrationv1.MutatingWebhookConfiguration{}},
	} {
		if object.TypeMeta == m {
			return object.v
		}
	}
	t.Fatalf("unknown kind %+v", m)
	return nil
}

// documents are the printed manifests, read back strictly.
func documents(t *testing.T, o Options) (list []any) {
	t.Helper()
	var text bytes.Buffer
	if err := Print(&text, o); err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(text.String(), "---\n") {
		if doc == "" {
			continue
		}
		var m metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &m); err != nil {
			t.Fatal(err)
		}
		v := blank(t, m)
		if err := yaml.UnmarshalStrict([]byte(doc), v); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		list = append(list, v)
	}
	return list
}

func TestManifestsReadBackAreTheSame(t *testing.T) {
	for name, o := range cases {
		objects, err := Objects(o)
		if err != nil {
			t.Fatal(err)
		}
		list := documents(t, o)
		if len(list) != len(objects) {
			t.Fatalf("%d documents of %d objects", len(list), len(objects))
		}
		for i := range list {
			if diff := cmp.Diff(objects[i], list[i]); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	}
}

func TestPodsHaveNoRights(t *testing.T) {
	pods := 0
	for _, v := range documents(t, Options{}) {
		d, ok := v.(*appsv1.Deployment)
		if !ok {
			continue
		}
		pods++
		p := d.Spec.Template.Spec
		if s := p.SecurityContext; !*s.RunAsNonRoot || *s.RunAsUser == 0 || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s: %+v", d.Name, s)
		}
		if p.HostNetwork || p.HostPID || p.HostIPC || p.ServiceAccountName != d.Name {
			t.Errorf("%s: %+v", d.Name, p)
		}
		for _, c := range p.Containers {
			s := c.SecurityContext
			if *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || s.Privileged != nil || len(s.Capabilities.Add) > 0 || s.Capabilities.Drop[0] != "ALL" {
				t.Errorf("%s: %+v", d.Name, s)
			}
			if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
				t.Errorf("%s: %+v", d.Name, c.Resources)
			}
			if c.ReadinessProbe == nil || c.LivenessProbe == nil {
				t.Errorf("%s: no probes", d.Name)
			}
		}
		if d.Spec.Template.Labels[Label] != LabelDisabled {
			t.Errorf("%s would be injected", d.Name)
		}
	}
	if pods != 2 {
		t.Errorf("%d deployments", pods)
	}
}

// TestRolesNameTheirObjects is the least privilege: no wildcard, no list, no right to a kind as a whole but token reviews.
func TestRolesNameTheirObjects(t *testing.T) {
	rules := 0
	for _, v := range documents(t, Options{}) {
		var list []rbacv1.PolicyRule
		switch v := v.(type) {
		case *rbacv1.Role:
			list = v.Rules
		case *rbacv1.ClusterRole:
			list = v.Rules
		}
		for _, r := range list {
			rules++
			review := r.Resources[0] == "tokenreviews" && strings.Join(r.Verbs, ",") == "create"
			if len(r.ResourceNames) != 1 && !review {
				t.Errorf("%+v", r)
			}
			for _, verb := range r.Verbs {
				if !review && verb != "get" && verb != "update" && verb != "patch" {
					t.Errorf("%+v", r)
				}
			}
		}
	}
	if rules != 5 {
		t.Errorf("%d rules", rules)
	}
}

func TestNamesAreThoseTheInjectorExpects(t *testing.T) {
	for got, want := range map[string]string{
		Injector: webhook.DefaultConfig, Authority: webhook.DefaultSecret, TrustBundle: webhook.DefaultBundleName, WebhookPath: webhook.Path,
	} {
		if got != want {
			t.Errorf("%s, the webhook's is %s", got, want)
		}
	}
	if webhook.DefaultService != Injector {
		t.Error(webhook.DefaultService)
	}
}

// TestWebhooksAreDisjoint goes through all labels of namespace and pod.
func TestWebhooksAreDisjoint(t *testing.T) {
	config := (Options{Namespace: "mesh", FailurePolicy: "Fail"}).webhooks()
	values := []string{"", LabelEnabled, LabelDisabled, "else"}
	for _, ns := range []string{"shop", "kube-system", "mesh"} {
		for _, n := range values {
			for _, p := range values {
				var asked []string
				for _, w := range config.Webhooks {
					if matches(t, w.NamespaceSelector, n, ns) && matches(t, w.ObjectSelector, p, "") {
						asked = append(asked, w.Name)
					}
				}
				want := ns == "shop" && (n == LabelEnabled && p != LabelDisabled || n == "" && p == LabelEnabled)
				if want != (len(asked) == 1) || len(asked) > 1 {
					t.Errorf("namespace %s %q, pod %q: asked %q, want %v", ns, n, p, asked, want)
				}
			}
		}
	}
}

func matches(t *testing.T, s *metav1.LabelSelector, label, namespace string) bool {
	t.Helper()
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]string{corev1.LabelMetadataName: namespace}
	if label != "" {
		set[Label] = label
	}
	return sel.Matches(labelSet(set))
}

type labelSet map[string]string

func (s labelSet) Has(k string) bool              { _, ok := s[k]; return ok }
func (s labelSet) Get(k string) string            { return s[k] }
func (s labelSet) Lookup(k string) (string, bool) { v, ok := s[k]; return v, ok }

func TestOptionsThatCannotWork(t *testing.T) {
	for want, o := range map[string]Options{
		`--namespace "Mesh": a lowercase RFC 1123 label`:        {Namespace: "Mesh"},
		`--image "a b": must be the name of an image`:           {Image: "a b"},
		`--trust-domain "a/b": `:                                {TrustDomain: "a/b"},
		`--consul "consul:8500": must be a URL`:                 {Consul: "consul:8500"},
		`--consul "http://user:pw@c:1": must be a URL`:          {Consul: "http://user:pw@c:1"},
		`--failure-policy "fail": must be Fail (no pod without`: {FailurePolicy: "fail"},
		`--replicas -1: must be 1 to 100`:                       {Replicas: -1},
	} {
		if err := Print(&bytes.Buffer{}, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
