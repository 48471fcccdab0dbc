package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kjson "sigs.k8s.io/json"
)

const (
	maxWarning  = 256 // characters; the API server cuts longer ones
	maxWarnings = 16
	maxMessage  = 2048 // characters of a refusal
	maxQuote    = 253  // characters of what others wrote, as long as a name of Kubernetes may be
	maxUID      = 128  // bytes; the API server's have 36

	workTimeout  = 5 * time.Second // to wait for room to answer; the API server waits 10 s for everything
	writeTimeout = 2 * time.Second // for a peer to take its answer
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
	room    *room
}

// review is what is read of an AdmissionReview; the rest of it is not kept.
type review struct {
	metav1.TypeMeta `json:",inline"`
	Request         *request `json:"request"`
}

type request struct {
	UID         types.UID                   `json:"uid"`
	Resource    metav1.GroupVersionResource `json:"resource"`
	SubResource string                      `json:"subResource"`
	Namespace   string                      `json:"namespace"`
	Name        string                      `json:"name"`
	Operation   admissionv1.Operation       `json:"operation"`
	DryRun      bool                        `json:"dryRun"`
	Object      document                    `json:"object"`
}

// badRequest is an answer to what is no review.
type badRequest struct {
	code int
	text string
}

func (b *badRequest) Error() string { return b.text }

func (v *reviewer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	c := v.room.claim(r.Context())
	defer c.release() // after the answer was taken, as that is memory too
	answer, outcome, err := v.answer(w, r, c)
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // of net/http's own writers
	if err != nil {
		bad := &badRequest{http.StatusInternalServerError, err.Error()}
		errors.As(err, &bad)
		reason := line(bad.text, maxMessage)
		v.metrics.done(outcomeBad, start, 0)
		v.log.Warn("bad request", "peer", r.RemoteAddr, "method", line(r.Method, maxQuote), "path", line(r.URL.Path, maxQuote),
			"code", bad.code, "reason", reason)
		if bad.code == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", http.MethodPost)
		}
		http.Error(w, "sallyport injector: "+reason, bad.code)
		return
	}
	v.metrics.done(outcome, start, len(answer.Response.Patch))
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		v.log.Warn("answer not sent", "peer", r.RemoteAddr, "error", err)
	}
}

func (v *reviewer) answer(w http.ResponseWriter, r *http.Request, c *claim) (*admissionv1.AdmissionReview, string, error) {
	if err := c.try(places, 1); err != nil {
		return nil, "", err
	}
	body, err := readBody(w, r, c)
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithTimeout(r.Context(), workTimeout)
	defer cancel()
	if err := c.take(ctx, work, shapeOf(body).weight(len(body))); err != nil {
		return nil, "", err
	}
	review, err := readReview(body)
	if err != nil {
		return nil, "", err
	}
	req := review.Request
	resp, outcome, err := v.decide(req)
	if err != nil {
		return nil, "", err
	}
	resp.UID = req.UID
	log := v.log.With("namespace", line(req.Namespace, maxQuote), "pod", line(podName(req), maxQuote),
		"dry_run", req.DryRun, "uid", line(string(req.UID), maxUID))
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

func readReview(body []byte) (*review, error) {
	var review review
	if err := unmarshal(body, &review); err != nil {
		return nil, &badRequest{http.StatusBadRequest, "the body is no AdmissionReview: " + err.Error()}
	}
	if review.APIVersion != "admission.k8s.io/v1" || review.Kind != "AdmissionReview" {
		return nil, &badRequest{http.StatusBadRequest, fmt.Sprintf("the body is %s of %s: only AdmissionReview of admission.k8s.io/v1 is answered "+
			"(admissionReviewVersions: [v1])", quote(review.Kind), quote(review.APIVersion))}
	}
	if review.Request == nil || review.Request.UID == "" {
		return nil, &badRequest{http.StatusBadRequest, "the AdmissionReview holds no request with a uid"}
	}
	if n := len(review.Request.UID); n > maxUID {
		return nil, &badRequest{http.StatusBadRequest, fmt.Sprintf("the uid of the request has %d bytes, more than %d", n, maxUID)}
	}
	return &review, nil
}

// decide answers for a pod that is created; what else an administrator may have the API server ask is let in untouched,
// as far as it is about pods.
func (v *reviewer) decide(req *request) (*admissionv1.AdmissionResponse, string, error) {
	allowed := &admissionv1.AdmissionResponse{Allowed: true}
	if res := req.Resource; res.Group != "" || res.Version != "v1" || res.Resource != "pods" {
		return nil, "", &badRequest{http.StatusBadRequest, fmt.Sprintf("the review is about %s, and only pods are injected: "+
			"correct the rules of the webhook configuration", quote(res.Resource+"."+res.Group+"/"+res.Version))}
	}
	if req.SubResource != "" || req.Operation != admissionv1.Create {
		warn(allowed, fmt.Sprintf("not injected: a pod gets its sidecar when it is created, not at %s of %s",
			quote(string(req.Operation)), quote(strings.TrimSuffix("pods/"+req.SubResource, "/"))))
		return allowed, outcomeSkipped, nil
	}
	result, ops, err := v.injected(req)
	var bad *badRequest
	switch {
	case errors.As(err, &bad):
		return nil, "", err
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

// injected returns what Inject says of a pod, and the change. What is out of all proportion is not even decoded.
func (v *reviewer) injected(req *request) (Result, []operation, error) {
	if err := shapeOf(req.Object).check(); err != nil {
		return Result{}, nil, err
	}
	pod, err := readPod(req)
	if err != nil {
		return Result{}, nil, err
	}
	result, err := v.inject(pod.DeepCopy(), req.Namespace)
	if err != nil || result.Pod == nil {
		return result, nil, err
	}
	ops, err := patchFor(req.Object, pod, result.Pod)
	return result, ops, err
}

func readPod(req *request) (*corev1.Pod, error) {
	var pod corev1.Pod
	if err := unmarshal(req.Object, &pod); err != nil {
		return nil, &badRequest{http.StatusBadRequest, "request.object is no pod: " + err.Error()}
	}
	if pod.Kind != "Pod" || pod.APIVersion != "v1" {
		return nil, &badRequest{http.StatusBadRequest, fmt.Sprintf("request.object is %s of %s, not a Pod of v1", quote(pod.Kind), quote(pod.APIVersion))}
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

// line makes one line of a text, as a header value must be, of limited length and without control characters. What is cut
// off is not looked at.
func line(text string, limit int) string {
	more := len(text) > limit
	if more {
		text = text[:limit-len("…")]
	}
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || !unicode.IsPrint(r) }), " ")
	if text = strings.ToValidUTF8(text, ""); more {
		text += "…"
	}
	return text
}

// quote is a line of what others wrote within a line of ours.
func quote(text string) string { return strconv.Quote(line(text, maxQuote)) }

// podName is for the log: a pod that a controller makes has no name yet, only the beginning of one.
func podName(req *request) string {
	if req.Name != "" {
		return req.Name
	}
	var head struct {
		Metadata struct {
			Name         string `json:"name"`
			GenerateName string `json:"generateName"`
		} `json:"metadata"`
	}
	if json.Unmarshal(req.Object, &head) != nil {
		return ""
	}
	if head.Metadata.Name != "" {
		return head.Metadata.Name
	}
	return head.Metadata.GenerateName + "*"
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
