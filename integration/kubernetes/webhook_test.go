package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/integration/harness"
)

// TestPodsComeBackInjected is the webhook's work, in one cluster.
func TestPodsComeBackInjected(t *testing.T) {
	m, w := newMesh(t)
	m.namespace(t, "shop", "enabled")
	m.namespace(t, "outside", "disabled")
	m.namespace(t, "plain", "")
	m.untilAsked(t, "shop")
	for _, story := range []struct {
		name string
		tell func(*testing.T, *mesh, *webhook)
	}{
		{"a pod of a namespace that opted in", podOfTheMesh},
		{"the pods of a deployment and of a job", podsOfControllers},
		{"who is asked, by labels", labels},
		{"a pod that is injected already", injectedBefore},
		{"a dry run", dryRun},
		{"what the author of a pod is told", messages},
		{"what the metrics say", counted},
		{"another webhook that changes the pod later", otherWebhook}, // changes the configuration, so it is the last
	} {
		t.Run(story.name, func(t *testing.T) { story.tell(t, m, w) })
	}
}

func podOfTheMesh(t *testing.T, m *mesh, _ *webhook) {
	p := create(t, m.cluster, newPod("shop", "orders"))
	if !injected(t, p) {
		t.Fatal("not injected")
	}
	proxy := p.Spec.InitContainers[1]
	args := strings.Join(proxy.Args, " ")
	if !strings.Contains(args, "--service orders") || !strings.Contains(args, "--port 8080") ||
		!strings.Contains(args, "--control-plane sallyport-control-plane.sallyport-system.svc:15010") {
		t.Errorf("%q", proxy.Args)
	}
	bundle := fetch[corev1.ConfigMap](t, m.cluster, "ConfigMap", system, trustBundle).Data["bundle.pem"]
	if got := p.Annotations["sallyport.io/trust-bundle"]; got != bundle {
		t.Errorf("trust bundle %q, want %q", got, bundle)
	}
	if app := p.Spec.Containers[0]; app.Image != "orders:1" || app.Name != "app" {
		t.Errorf("%+v", app)
	}
}

// podsOfControllers: deployments and jobs are stored as they were sent, and their pods, which a controller makes of the
// template under a generated name, are injected. There is no controller here, so the test does as it does.
func podsOfControllers(t *testing.T, m *mesh, _ *webhook) {
	meta := metav1.ObjectMeta{Namespace: "shop", Name: "orders"}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "orders"}}, Spec: orders()}
	d := create(t, m.cluster, &appsv1.Deployment{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, ObjectMeta: meta,
		Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: template.Labels}, Template: template}})
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	j := create(t, m.cluster, &batchv1.Job{TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"}, ObjectMeta: meta, Spec: batchv1.JobSpec{Template: template}})
	for owner, template := range map[metav1.OwnerReference]corev1.PodTemplateSpec{
		{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "orders-1", UID: d.UID}: d.Spec.Template,
		{APIVersion: "batch/v1", Kind: "Job", Name: "orders", UID: j.UID}:         j.Spec.Template,
	} {
		if len(template.Spec.InitContainers) > 0 || template.Annotations != nil {
			t.Errorf("the template of the %s was changed", owner.Kind)
		}
		p := newPod("shop", "")
		p.GenerateName, p.OwnerReferences = owner.Name+"-", []metav1.OwnerReference{owner}
		p.Labels, p.Annotations, p.Spec = template.Labels, template.Annotations, template.Spec
		if got := create(t, m.cluster, p); !injected(t, got) || got.Labels["app"] != "orders" {
			t.Errorf("pod of the %s: %+v", owner.Kind, got.ObjectMeta)
		}
	}
}

func labels(t *testing.T, m *mesh, _ *webhook) {
	for _, tc := range []struct {
		namespace, label string
		want             bool
	}{
		{"shop", "", true}, {"shop", "enabled", true}, {"shop", "disabled", false},
		{"plain", "", false}, {"plain", "enabled", true}, {"plain", "disabled", false},
		{"outside", "", false}, {"outside", "enabled", false},
		{system, "enabled", false},
	} {
		p := newPod(tc.namespace, "p")
		if tc.label != "" {
			p.Labels = map[string]string{"sallyport.io/inject": tc.label}
		}
		if tc.namespace == system {
			p.Spec = restricted()
		}
		got, err := m.try(t, p, true)
		if err != nil {
			t.Errorf("%+v: %v", tc, err)
		} else if injected(t, got) != tc.want {
			t.Errorf("%+v: it is the other way round", tc)
		}
	}
}

// restricted is a pod that the installation's own namespace lets in.
func restricted() corev1.PodSpec {
	s := orders()
	s.ServiceAccountName = injector
	s.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	s.Containers[0].SecurityContext = &corev1.SecurityContext{AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
	return s
}

func injectedBefore(t *testing.T, m *mesh, _ *webhook) {
	first, err := m.try(t, newPod("shop", "twice"), true)
	if err != nil {
		t.Fatal(err)
	}
	again := newPod("shop", "twice")
	again.Annotations, again.Spec = first.Annotations, first.Spec
	second, err := m.try(t, again, true)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(first.Spec, second.Spec) || !reflect.DeepEqual(first.Annotations, second.Annotations) {
		a, _ := json.Marshal(first)
		b, _ := json.Marshal(second)
		t.Errorf("first  %s\nsecond %s", a, b)
	}
}

// otherWebhook has the API server ask ours a second time about the same pod, as administrators may configure it, because
// another one added a container meanwhile.
func otherWebhook(t *testing.T, m *mesh, w *webhook) {
	reviews := func() string {
		text, err := w.get("/metrics")
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ = strings.Cut(text, `sallyport_injector_reviews_total{outcome="skipped"} `)
		return text[:strings.IndexByte(text, '\n')]
	}
	authority := harness.NewAuthority(t, "webhook.test")
	late := httptest.NewUnstartedServer(http.HandlerFunc(addLate))
	late.TLS = authority.Issue("127.0.0.1").Server()
	late.StartTLS()
	defer late.Close()
	bundle, err := os.ReadFile(authority.Path)
	if err != nil {
		t.Fatal(err)
	}
	ours := fetch[admissionregistrationv1.MutatingWebhookConfiguration](t, m.cluster, hooks, "", injector)
	twice := ours.DeepCopy()
	twice.Webhooks[0].ReinvocationPolicy = new(admissionregistrationv1.IfNeededReinvocationPolicy)
	if _, err := of(m.admin, hooks, "").Update(t.Context(), untyped(t, twice), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	other := ours.Webhooks[0].DeepCopy()
	other.Name, other.ClientConfig = "late.example.com", admissionregistrationv1.WebhookClientConfig{URL: &late.URL, CABundle: bundle}
	create(t, m.cluster, &admissionregistrationv1.MutatingWebhookConfiguration{TypeMeta: ours.TypeMeta, ObjectMeta: metav1.ObjectMeta{Name: "zz-late"},
		Webhooks: []admissionregistrationv1.MutatingWebhook{*other}})
	harness.Eventually(t, 20*time.Second, "a pod that both have changed", func() error {
		before := reviews()
		p, err := m.try(t, newPod("shop", "late"), true)
		switch {
		case err != nil:
			return err
		case !injected(t, p) || len(p.Spec.InitContainers) != 2:
			t.Fatalf("%+v", p.Spec.InitContainers)
		case len(p.Spec.Containers) != 2 || p.Spec.Containers[1].Name != "late" || reviews() == before:
			return errors.New("not asked twice")
		}
		return nil
	})
}

// addLate is a webhook that adds a container.
func addLate(w http.ResponseWriter, r *http.Request) {
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || review.Request == nil {
		http.Error(w, "no review", http.StatusBadRequest)
		return
	}
	kind := admissionv1.PatchTypeJSONPatch
	review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true, PatchType: &kind,
		Patch: []byte(`[{"op":"add","path":"/spec/containers/-","value":{"name":"late","image":"late:1"}}]`)}
	review.Request = nil
	json.NewEncoder(w).Encode(&review)
}

func dryRun(t *testing.T, m *mesh, _ *webhook) {
	versions := func() string {
		return fetch[corev1.Secret](t, m.cluster, "Secret", system, authority).ResourceVersion + " " +
			fetch[admissionregistrationv1.MutatingWebhookConfiguration](t, m.cluster, hooks, "", injector).ResourceVersion
	}
	before := versions()
	p, err := m.try(t, newPod("shop", "dry"), true)
	if err != nil || !injected(t, p) {
		t.Fatalf("%v", err)
	}
	if _, err := of(m.admin, "Pod", "shop").Get(t.Context(), "dry", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("it is there: %v", err)
	}
	if after := versions(); after != before {
		t.Errorf("versions of what the injector keeps: %s, before %s", after, before)
	}
}

func messages(t *testing.T, m *mesh, _ *webhook) {
	for _, tc := range []struct {
		name        string
		change      func(*corev1.Pod)
		refused     string
		warned      string
		hasNoEffect bool
	}{
		{"a mistake in an annotation", func(p *corev1.Pod) { p.Annotations = map[string]string{"sallyport.io/inbound-mode": "fast"} },
			`annotation sallyport.io/inbound-mode "fast": must be redirect, tproxy or off`, "", true},
		{"the host's network", func(p *corev1.Pod) { p.Spec.HostNetwork = true; p.Spec.Containers[0].Ports = nil },
			"", "hostNetwork", true},
		{"opted out by annotation", func(p *corev1.Pod) { p.Annotations = map[string]string{"sallyport.io/inject": "disabled"} }, "", "", true},
		{"nothing to say", func(*corev1.Pod) {}, "", "", false},
	} {
		m.warnings.take()
		p := newPod("shop", "p")
		tc.change(p)
		got, err := m.try(t, p, true)
		warned := m.warnings.take()
		switch {
		case tc.refused != "":
			if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("%s: %v", tc.name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case injected(t, got) == tc.hasNoEffect:
			t.Errorf("%s: it is the other way round", tc.name)
		}
		if tc.warned == "" != (warned == "") || !strings.Contains(warned, tc.warned) {
			t.Errorf("%s: warned %q, want %q", tc.name, warned, tc.warned)
		}
	}
}

func counted(t *testing.T, _ *mesh, w *webhook) {
	text, err := w.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, outcome := range []string{"injected", "skipped", "refused"} {
		if line := fmt.Sprintf("sallyport_injector_reviews_total{outcome=%q} ", outcome); !strings.Contains(text, line) || strings.Contains(text, line+"0\n") {
			t.Errorf("no %s", line)
		}
	}
	if !strings.Contains(text, `sallyport_injector_reviews_total{outcome="bad request"} 0`) {
		t.Error("the API server sent a bad request")
	}
}

// TestWebhookIsDown: pods of the mesh wait or run without, as the failure policy says; those of others never notice.
func TestWebhookIsDown(t *testing.T) {
	c := newCluster(t)
	m := c.install(t, "--failure-policy", "Fail")
	m.runControlPlane(t)
	m.namespace(t, "shop", "enabled")
	m.namespace(t, "outside", "disabled")
	m.namespace(t, "plain", "")
	w := m.runInjector(t)
	m.untilAsked(t, "shop")
	w.Kill()

	others := func() {
		t.Helper()
		for _, namespace := range []string{"outside", "plain"} {
			if p, err := m.try(t, newPod(namespace, "p"), true); err != nil || injected(t, p) {
				t.Errorf("a pod of %s: %v", namespace, err)
			}
		}
		p := newPod("shop", "p")
		p.Labels = map[string]string{"sallyport.io/inject": "disabled"}
		if _, err := m.try(t, p, true); err != nil {
			t.Errorf("a pod that opted out: %v", err)
		}
	}
	if _, err := m.try(t, newPod("shop", "p"), true); err == nil || !strings.Contains(err.Error(), `failed calling webhook "namespace.injector.sallyport.io"`) {
		t.Errorf("Fail: %v", err)
	}
	others()
	again := m.runInjector(t)
	m.untilAsked(t, "shop")
	if code := again.Stop(20 * time.Second); code != 0 {
		t.Errorf("the injector ended with %d", code)
	}

	c.install(t, "--failure-policy", "Ignore")
	harness.Eventually(t, 20*time.Second, "pods that start without the webhook", func() error {
		p, err := m.try(t, newPod("shop", "p"), true)
		if err == nil && injected(t, p) {
			err = errors.New("injected")
		}
		return err
	})
	others()
}

// TestCertificatesRotateWhileItRuns has two injectors with an authority that lives for seconds. Through three
// authorities no pod is refused, though the failure policy is Fail, and both agree on what they share.
func TestCertificatesRotateWhileItRuns(t *testing.T) {
	m := newCluster(t).install(t)
	m.runControlPlane(t)
	m.namespace(t, "shop", "enabled")
	short := []string{"--authority-ttl=18s", "--certificate-ttl=3s"}
	m.runInjector(t, short...)
	m.runReplica(t, harness.FreeAddr(t), short...)
	m.untilAsked(t, "shop")
	bundles, overlap := map[string]bool{}, false
	harness.Eventually(t, time.Minute, "third authority", func() error {
		p, err := m.try(t, newPod("shop", "p"), true)
		if err != nil || !injected(t, p) {
			t.Fatalf("after %d caBundles: %v", len(bundles), err)
		}
		config := fetch[admissionregistrationv1.MutatingWebhookConfiguration](t, m.cluster, hooks, "", injector)
		for _, w := range config.Webhooks {
			text := string(w.ClientConfig.CABundle)
			overlap = overlap || strings.Count(text, "BEGIN CERTIFICATE") == 2
			for _, c := range strings.SplitAfter(text, "-----END CERTIFICATE-----\n") {
				if c != "" {
					bundles[c] = true
				}
			}
		}
		if len(bundles) < 3 {
			return fmt.Errorf("%d authorities so far", len(bundles))
		}
		return nil
	})
	if !overlap {
		t.Error("old and new never stood side by side")
	}
}
