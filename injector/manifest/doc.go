// Package manifest puts the sidecar into Kubernetes pods and Docker Compose services, and takes it out again. The
// commands "sallyport inject" and "uninject" call it with files, package webhook with pods that are being created; both
// get the same pod. It runs on the caller's goroutine, reads nothing and keeps nothing.
//
// A pod is changed as what it is, a corev1.Pod. In a file that change is then made to the tree of the document itself, so
// that order, comments and fields that this version of Kubernetes does not know stay; documents in which there is
// nothing to inject stay byte for byte.
//
//   - pod.go: Inject and Uninject for a pod. parts.go: the containers and volumes. probes.go: the kubelet's probes.
//   - annotations.go: what the author of a pod may ask for.
//   - file.go: a file from its bytes to its bytes. document.go: its documents. print.go, json.go: changed ones as text.
//   - objects.go: where the kinds have their pods. merge.go: a change of an object made to its tree.
//   - anchors.go, fold.go: aliases and merges, which are written out for the change.
//   - original.go: the comment by which uninject gives back the very bytes. lines.go: errors with their lines.
//   - compose.go: Docker Compose, and what the files named after it are about.
package manifest
