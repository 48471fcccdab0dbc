package install

import (
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// WebhookPath is where the injector takes reviews.
const WebhookPath = "/inject"

// webhookTimeout is what the API server waits for, seconds. The injector needs milliseconds; the rest is for a busy node.
const webhookTimeout = 10

// webhooks is the configuration of two webhooks, of which a pod meets at most one:
//
//	namespace  pod       which
//	enabled    disabled  none
//	enabled    anything  "namespace."
//	disabled   anything  none: a namespace that opted out is never asked about, so that nothing here can block it
//	no label   enabled   "pod."
//	no label   anything  none
//
// The cluster's own namespaces are left out whatever their labels are: what the cluster needs to start must not wait for
// a webhook that starts later.
func (o Options) webhooks() *admissionregistrationv1.MutatingWebhookConfiguration {
	system := metav1.LabelSelectorRequirement{Key: corev1.LabelMetadataName, Operator: metav1.LabelSelectorOpNotIn,
		Values: []string{"kube-system", "kube-public", "kube-node-lease", o.Namespace}}
	enabled := metav1.LabelSelectorRequirement{Key: Label, Operator: metav1.LabelSelectorOpIn, Values: []string{LabelEnabled}}
	return &admissionregistrationv1.MutatingWebhookConfiguration{
		TypeMeta: typed("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"), ObjectMeta: o.global(Injector),
		Webhooks: []admissionregistrationv1.MutatingWebhook{
			o.webhook("namespace.injector.sallyport.io",
				[]metav1.LabelSelectorRequirement{enabled, system},
				[]metav1.LabelSelectorRequirement{{Key: Label, Operator: metav1.LabelSelectorOpNotIn, Values: []string{LabelDisabled}}}),
			o.webhook("pod.injector.sallyport.io",
				[]metav1.LabelSelectorRequirement{{Key: Label, Operator: metav1.LabelSelectorOpDoesNotExist}, system},
				[]metav1.LabelSelectorRequirement{enabled}),
		},
	}
}

// webhook has no caBundle: the injector writes it, and applying again leaves it alone.
func (o Options) webhook(name string, namespaces, objects []metav1.LabelSelectorRequirement) admissionregistrationv1.MutatingWebhook {
	return admissionregistrationv1.MutatingWebhook{
		Name: name,
		ClientConfig: admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{
			Namespace: o.Namespace, Name: Injector, Path: new(WebhookPath), Port: new(int32(443)),
		}},
		Rules: []admissionregistrationv1.RuleWithOperations{{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
			Rule: admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"},
				Scope: new(admissionregistrationv1.NamespacedScope)},
		}},
		FailurePolicy:           new(admissionregistrationv1.FailurePolicyType(o.FailurePolicy)),
		MatchPolicy:             new(admissionregistrationv1.Equivalent),
		NamespaceSelector:       &metav1.LabelSelector{MatchExpressions: namespaces},
		ObjectSelector:          &metav1.LabelSelector{MatchExpressions: objects},
		SideEffects:             new(admissionregistrationv1.SideEffectClassNone),
		TimeoutSeconds:          new(int32(webhookTimeout)),
		AdmissionReviewVersions: []string{"v1"},
		// A pod that has its sidecar is not changed by a second call, so there is none.
		ReinvocationPolicy: new(admissionregistrationv1.NeverReinvocationPolicy),
	}
}
