package kubernetes

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/integration/harness"
)

// TestPodsCallEachOtherByConsul: the services of pods are found by Consul, which has no namespaces, and keep those of
// Kubernetes, which are part of their identities.
func TestPodsCallEachOtherByConsul(t *testing.T) {
	consul := harness.NewConsul(t).Run()
	consul.Intend("*", "*", true)
	m := newCluster(t).install(t, "--consul", consul.URL())
	m.consul = consul
	m.runControlPlane(t)
	m.runInjector(t)
	backends := map[string]*harness.Backend{}
	for _, ns := range []string{"shop", "evil"} {
		m.namespace(t, ns, "enabled")
		create(t, m.cluster, &corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "storefront"}})
		m.untilAsked(t, ns)
		// The same name in both, as two StatefulSets would have it.
		backends[ns] = harness.NewBackend(t, ns).Handle(func(*harness.Message) string { return harness.OK("orders of " + ns) }).HTTP1()
		pod := newPod(ns, "orders-0")
		pod.Spec.Containers[0].Ports[0].ContainerPort = int32(backends[ns].Port())
		pod = create(t, m.cluster, pod)
		m.sidecar(t, pod, m.request(t, ns, "orders", trustDomain, pod)).Start(t)
	}
	// caller starts a sidecar of a storefront and returns where its application reaches the orders of a namespace.
	caller := func(ns, orders string) string {
		port := harness.FreePort(t)
		pod := newPod(ns, "storefront-of-"+orders)
		pod.Spec.ServiceAccountName = "storefront"
		pod.Spec.Containers[0].Ports = nil
		upstream := "orders:" + strconv.Itoa(port)
		if orders != ns {
			upstream = orders + "/" + upstream
		}
		pod.Annotations = map[string]string{"sallyport.io/port": strconv.Itoa(harness.FreePort(t)), "sallyport.io/upstreams": upstream}
		pod = create(t, m.cluster, pod)
		m.sidecar(t, pod, m.request(t, ns, "storefront", trustDomain, pod)).Start(t)
		return "127.0.0.1:" + strconv.Itoa(port)
	}
	answers := func(addr string, code int, body string) {
		t.Helper()
		harness.Eventually(t, 20*time.Second, fmt.Sprintf("%d %s", code, body), func() error {
			r, err := harness.TryGet(addr, "/")
			if err == nil && (r.Status() != code || body != "" && string(r.Body) != body) {
				err = fmt.Errorf("%s %s", r.Start, r.Body)
			}
			return err
		})
	}
	near, across := caller("shop", "shop"), caller("evil", "shop")
	answers(near, 200, "orders of shop")
	answers(caller("evil", "evil"), 200, "orders of evil")
	answers(across, 200, "orders of shop")

	// An allowance for storefront is for the one near to orders; its denial is for all.
	consul.Intend("*", "orders", false)
	consul.Intend("storefront", "orders", true)
	answers(across, 403, "")
	answers(near, 200, "orders of shop")
	consul.Intend("*", "orders", true)
	answers(across, 200, "orders of shop")
	consul.Intend("storefront", "orders", false)
	answers(across, 403, "")
	answers(near, 403, "")

	services, err := consul.Client.Agent().Services()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"shop.orders-0", "shop.orders-0-sidecar-proxy", "evil.orders-0", "evil.orders-0-sidecar-proxy"} {
		if services[id] == nil {
			t.Errorf("%s is not registered", id)
		}
	}
}
