// Package webhook is the mutating admission webhook (admission.k8s.io/v1) that gives pods their sidecar as they are
// created. It owns the HTTPS server that the API server calls, the certificate authority that this server's certificates
// come from, and the caBundle of its MutatingWebhookConfiguration; what is put into a pod is package manifest's affair,
// which main connects by Options.Inject. All of it runs on ordinary goroutines: one that keeps the certificates, and
// net/http's.
//
// The authority is in a secret that all replicas share; each makes its own certificate, in memory. A webhook has no side
// effects: a dry run is answered like any other request.
package webhook
