package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
)

const (
	// maxBody bounds a review. The API server's own limit of an object is 3 MiB, and a review has it once.
	maxBody = 3<<20 + 64<<10

	maxWarning  = 256 // characters; the API server cuts longer ones
	maxWarnings = 16
	maxMessage  = 2048 // characters of a refusal

	// maxMemory bounds the bodies that are held at a time; a review takes a few times its size while it is answered.
	maxMemory = 32 << 20
)

// Result of an injection.
type Result struct {
	Pod      *corev1.Pod // with its sidecar; nil where nothing is to change
	Skipped  string      // why nothing is: "already injected", "hostNetwork: …"
	Warn     bool        // whether the author of the pod should hear of Skipped
	Warnings []string    // to be told also where it was injected
}

// Inject makes a pod with its sidecar. It must not change the pod it is given and has no side effects. namespace is where
// the pod is created: the object itself may not say. An error is a pod whose author asks for what cannot be done; one
// that wraps ErrNotReady is not the pod's fault.
type Inject func(pod *corev1.Pod, namespace string) (Result, error)

// ErrNotReady is wrapped by an error of Inject that says that no pod can be injected at the moment. The API server then
// does as the failurePolicy of its webhook says.
var ErrNotReady = errors.New("the injector is not ready")

// reviewer answers admission reviews. Safe for concurrent use.
type reviewer struct {
	inject  Inject
	allow   bool // let a pod that cannot be injected in as it is
	log     *slog.Logger
	metrics *metrics
	memory  *semaphore.Weighted
}

// badRequest is an answer to what is no review.
type badRequest struct {
	code int
	text string
}

func (b *badRequest) Error() string { return b.text }

func (v *reviewer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	answer, outcome, err := v.answer(w, r)
	if err != nil {
		bad := &badRequest{http.StatusInternalServerError, err.Error()}
		errors.As(err, &bad)
		v.metrics.done(outcomeBad, start, 0)
		v.log.Warn("bad request", "peer", r.RemoteAddr, "method", r.Method, "path", r.URL.Path, "code", bad.code, "reason", bad.text)
		if bad.code == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", http.MethodPost)
		}
		http.Error(w, "sallyport injector: "+bad.text, bad.code)
		return
	}
	v.metrics.done(outcome, start, len(answer.Response.Patch))
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		v.log.Warn("answer not sent", "peer", r.RemoteAddr, "error", err)
	}
}

func (v *reviewer) answer(w http.ResponseWriter, r *http.Request) (*admissionv1.AdmissionReview, string, error) {
	size := min(r.ContentLength, maxBody) // more is refused by readReview
	if size < 0 {
		size = maxBody // not told
	}
	if err := v.memory.Acquire(r.Context(), size); err != nil {
		return nil, "", &badRequest{http.StatusServiceUnavailable, "too many reviews at once"}
	}
	defer v.memory.Release(size)
	review, err := readReview(w, r)
	if err != nil {
		return nil, "", err
	}
	req := review.Request
	resp, outcome, err := v.decide(req)
	if err != nil {
		return nil, "", err
	}
	resp.UID = req.UID
	log := v.log.With("namespace", req.Namespace, "pod", podName(req), "dry_run", req.DryRun != nil && *req.DryRun, "uid", string(req.UID))
	switch {
	case resp.Result != nil:
		log.Warn("pod "+outcome, "reason", resp.Result.Message)
	case outcome == outcomeSkipped:
		log.Debug("pod "+outcome, "warnings", strings.Join(resp.Warnings, "; "))
	default:
		log.Info("pod "+outcome, "patch_bytes", len(resp.Patch), "warnings", strings.Join(resp.Warnings, "; "))
	}
	// "apiVersion and kind … must be those of the request": a reviewer of v1 answers v1.
	return &admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: resp}, outcome, nil
}

func readReview(w http.ResponseWriter, r *http.Request) (*admissionv1.AdmissionReview, error) {
	if r.Method != http.MethodPost {
		return nil, &badRequest{http.StatusMethodNotAllowed, "admission reviews are POSTed, not " + r.Method}
	}
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mt != "application/json" {
		return nil, &badRequest{http.StatusUnsupportedMediaType, fmt.Sprintf("Content-Type %q: must be application/json", r.Header.Get("Content-Type"))}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &badRequest{http.StatusRequestEntityTooLarge, fmt.Sprintf("the review is larger than %d bytes", large.Limit)}
	case err != nil:
		return nil, &badRequest{http.StatusBadRequest, "the review was cut off: " + err.Error()}
	}
	var review admissionv1.AdmissionReview
	if err := unmarshal(body, &review); err != nil {
		return nil, &badRequest{http.StatusBadRequest, "the body is no AdmissionReview: " + err.Error()}
	}
	if review.APIVersion != "admission.k8s.io/v1" || review.Kind != "AdmissionReview" {
		return nil, &badRequest{http.StatusBadRequest, fmt.Sprintf("the body is %q of %q: only AdmissionReview of admission.k8s.io/v1 is answered "+
			"(admissionReviewVersions: [v1])", review.Kind, review.APIVersion)}
	}
	if review.Request == nil || review.Request.UID == "" {
		return nil, &badRequest{http.StatusBadRequest, "the AdmissionReview holds no request with a uid"}
	}
	return &review, nil
}

// decide answers for a pod that is created; what else an administrator may have the API server ask is let in untouched,
// as far as it is about pods.
func (v *reviewer) decide(req *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, string, error) {
	allowed := &admissionv1.AdmissionResponse{Allowed: true}
	if req.Resource.Group != "" || req.Resource.Version != "v1" || req.Resource.Resource != "pods" {
		return nil, "", &badRequest{http.StatusBadRequest, fmt.Sprintf("the review is about %s.%s/%s, and only pods are injected: "+
			"correct the rules of the webhook configuration", req.Resource.Resource, req.Resource.Group, req.Resource.Version)}
	}
	if req.SubResource != "" || req.Operation != admissionv1.Create {
		warn(allowed, fmt.Sprintf("not injected: a pod gets its sidecar when it is created, not at %s of pods/%s", req.Operation, req.SubResource))
		return allowed, outcomeSkipped, nil
	}
	pod, err := readPod(req)
	if err != nil {
		return nil, "", err
	}
	result, err := v.inject(pod.DeepCopy(), req.Namespace)
	switch {
	case errors.Is(err, ErrNotReady):
		return nil, "", &badRequest{http.StatusServiceUnavailable, err.Error()}
	case err != nil && v.allow:
		warn(allowed, "not injected: "+err.Error())
		return allowed, outcomeFailed, nil
	case err != nil:
		return refused(err), outcomeRefused, nil
	}
	for _, text := range result.Warnings {
		warn(allowed, text)
	}
	if result.Pod == nil {
		if result.Warn {
			warn(allowed, "not injected: "+result.Skipped)
		}
		return allowed, outcomeSkipped, nil
	}
	ops, err := patchFor(req.Object.Raw, pod, result.Pod)
	if err != nil {
		return nil, "", err
	}
	if len(ops) == 0 {
		return allowed, outcomeSkipped, nil
	}
	kind := admissionv1.PatchTypeJSONPatch
	if allowed.Patch, err = json.Marshal(ops); err != nil {
		return nil, "", err
	}
	allowed.PatchType = &kind
	return allowed, outcomeInjected, nil
}

func readPod(req *admissionv1.AdmissionRequest) (*corev1.Pod, error) {
	var pod corev1.Pod
	if err := unmarshal(req.Object.Raw, &pod); err != nil {
		return nil, &badRequest{http.StatusBadRequest, "request.object is no pod: " + err.Error()}
	}
	if pod.Kind != "Pod" || pod.APIVersion != "v1" {
		return nil, &badRequest{http.StatusBadRequest, fmt.Sprintf("request.object is %q of %q, not a Pod of v1", pod.Kind, pod.APIVersion)}
	}
	if len(pod.Spec.Containers) == 0 {
		return nil, &badRequest{http.StatusBadRequest, "request.object is no pod: it has no containers"}
	}
	return &pod, nil
}

// unmarshal reads JSON as the API server does, by the letter case of names, and takes no name twice: which of the two
// counts would be read differently by others, and the patch is made for one of them.
func unmarshal(data []byte, v any) error {
	strict, err := kjson.UnmarshalStrict(data, v, kjson.DisallowDuplicateFields)
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	return err
}

// refused tells the author of the pod what to change. The alternative, a pod that silently runs outside of the mesh,
// sends in plain text what its author wanted encrypted.
func refused(err error) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Message: line("the sidecar cannot be added: "+err.Error(), maxMessage),
	}}
}

func warn(r *admissionv1.AdmissionResponse, text string) {
	if len(r.Warnings) < maxWarnings {
		r.Warnings = append(r.Warnings, line("sallyport: "+text, maxWarning))
	}
}

// line makes one line of a text, as a header value must be, of limited length.
func line(text string, limit int) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit-len("…")], "") + "…"
	}
	return text
}

// podName is for the log: a pod that a controller makes has no name yet, only the beginning of one.
func podName(req *admissionv1.AdmissionRequest) string {
	if req.Name != "" {
		return req.Name
	}
	var head struct {
		Metadata struct {
			Name         string `json:"name"`
			GenerateName string `json:"generateName"`
		} `json:"metadata"`
	}
	if json.Unmarshal(req.Object.Raw, &head) != nil {
		return ""
	}
	if head.Metadata.Name != "" {
		return head.Metadata.Name
	}
	return head.Metadata.GenerateName + "*"
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }
