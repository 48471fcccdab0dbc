package install

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Objects are the manifests, in an order in which they can be created.
func Objects(o Options) ([]runtime.Object, error) {
	o, err := o.check()
	if err != nil {
		return nil, err
	}
	objects := []runtime.Object{
		o.namespace(),
		o.account(ControlPlane), o.account(Injector),
		o.trustBundle(), o.authority(),
	}
	objects = append(objects, o.roles()...)
	return append(objects,
		o.stateClaim(), o.controlPlane(), o.controlPlaneService(), o.controlPlaneTraffic(),
		o.injector(), o.injectorService(), o.injectorTraffic(), o.injectorBudget(),
		// Last: from then on the API server asks.
		o.webhooks(),
	), nil
}

func typed(apiVersion, kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
}

// named is the metadata of an object of the namespace, global that of one of the cluster.
func (o Options) named(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: o.Namespace, Name: name, Labels: labels(name)}
}

func (o Options) global(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Labels: labels(name)}
}

func labels(name string) map[string]string {
	return map[string]string{"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "sallyport"}
}

func selector(name string) map[string]string {
	return map[string]string{"app.kubernetes.io/name": name}
}

// namespace is one whose pods the injector leaves alone, and where only pods like ours may run.
func (o Options) namespace() *corev1.Namespace {
	n := &corev1.Namespace{TypeMeta: typed("v1", "Namespace"), ObjectMeta: o.global(o.Namespace)}
	n.Labels = map[string]string{
		"app.kubernetes.io/part-of":          "sallyport",
		Label:                                LabelDisabled,
		"pod-security.kubernetes.io/enforce": "restricted",
	}
	return n
}

func (o Options) account(name string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{TypeMeta: typed("v1", "ServiceAccount"), ObjectMeta: o.named(name), AutomountServiceAccountToken: new(false)}
}

// trustBundle is filled by the control plane, authority by the injector.
func (o Options) trustBundle() *corev1.ConfigMap {
	return &corev1.ConfigMap{TypeMeta: typed("v1", "ConfigMap"), ObjectMeta: o.named(TrustBundle)}
}

func (o Options) authority() *corev1.Secret {
	return &corev1.Secret{TypeMeta: typed("v1", "Secret"), ObjectMeta: o.named(Authority), Type: corev1.SecretTypeOpaque}
}

func (o Options) service(name string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{TypeMeta: typed("v1", "Service"), ObjectMeta: o.named(name), Spec: corev1.ServiceSpec{
		Selector: selector(name), Ports: ports,
	}}
}

func (o Options) controlPlaneService() *corev1.Service {
	return o.service(ControlPlane, corev1.ServicePort{Name: "grpc-xds", Port: portXDS, TargetPort: intstr.FromString("xds"), Protocol: corev1.ProtocolTCP})
}

func (o Options) injectorService() *corev1.Service {
	return o.service(Injector, corev1.ServicePort{Name: "https", Port: 443, TargetPort: intstr.FromString("https"), Protocol: corev1.ProtocolTCP})
}

// traffic lets in what the ports are for and nothing else. From where: sidecars are in every namespace, and the API
// server has no address that a policy could name.
func (o Options) traffic(name string, ports ...int) *networkingv1.NetworkPolicy {
	rule := networkingv1.NetworkPolicyIngressRule{}
	for _, p := range ports {
		rule.Ports = append(rule.Ports, networkingv1.NetworkPolicyPort{Protocol: new(corev1.ProtocolTCP), Port: new(intstr.FromInt(p))})
	}
	return &networkingv1.NetworkPolicy{TypeMeta: typed("networking.k8s.io/v1", "NetworkPolicy"), ObjectMeta: o.named(name), Spec: networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: selector(name)},
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		Ingress:     []networkingv1.NetworkPolicyIngressRule{rule},
	}}
}

func (o Options) controlPlaneTraffic() *networkingv1.NetworkPolicy {
	return o.traffic(ControlPlane, portXDS, portXDSStatus)
}

func (o Options) injectorTraffic() *networkingv1.NetworkPolicy {
	return o.traffic(Injector, portWebhook, portWebhookStatus)
}

// injectorBudget keeps one replica while nodes are drained. With a single one it would keep the node.
func (o Options) injectorBudget() *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{TypeMeta: typed("policy/v1", "PodDisruptionBudget"), ObjectMeta: o.named(Injector), Spec: policyv1.PodDisruptionBudgetSpec{
		MaxUnavailable: new(intstr.FromInt(1)),
		Selector:       &metav1.LabelSelector{MatchLabels: selector(Injector)},
	}}
}
