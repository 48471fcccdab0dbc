package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"unicode"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
)

const podJSON = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"orders-1","namespace":"shop"},` +
	`"spec":{"containers":[{"name":"app","image":"orders:1","future":1}]}}`

// reviewOf is what the API server sends for a new pod.
func reviewOf(object string) string {
	return `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1","kind":{"group":"","version":"v1","kind":"Pod"},` +
		`"resource":{"group":"","version":"v1","resource":"pods"},"namespace":"shop","name":"orders-1","operation":"CREATE","dryRun":true,"object":` + object + `}}`
}

// addSidecar stands for package manifest.
func addSidecar(p *corev1.Pod, namespace string) (Result, error) {
	switch {
	case p.Annotations["ask"] == "impossible":
		return Result{}, errors.New("annotation ask: impossible\nis not possible")
	case p.Annotations["ask"] == "echo":
		return Result{}, errors.New(p.Annotations["echo"])
	case p.Annotations["ask"] == "later":
		return Result{}, fmt.Errorf("%w: later", ErrNotReady)
	case p.Annotations["ask"] == "much":
		p.Annotations["much"] = strings.Repeat("x", maxPatch)
		return Result{Pod: p}, nil
	case p.Spec.HostNetwork:
		return Result{Skipped: "hostNetwork", Warn: true}, nil
	case p.Annotations["injected"] != "":
		return Result{Skipped: "already injected"}, nil
	}
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations["injected"] = namespace
	p.Spec.InitContainers = append([]corev1.Container{{Name: "sidecar", Image: "sallyport"}}, p.Spec.InitContainers...)
	return Result{Pod: p, Warnings: []string{"mind the gap"}}, nil
}

func newReviewer(allow bool) *reviewer {
	return &reviewer{inject: addSidecar, allow: allow, log: slog.New(slog.DiscardHandler), metrics: newMetrics(), room: newRoom()}
}

func post(v *reviewer, body io.Reader) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, Path, body)
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	v.ServeHTTP(w, r)
	return w
}

func reviewed(t *testing.T, v *reviewer, body string) *admissionv1.AdmissionResponse {
	t.Helper()
	w := post(v, strings.NewReader(body))
	var out admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &out); w.Code != http.StatusOK || err != nil || out.Response == nil {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	if out.APIVersion != "admission.k8s.io/v1" || out.Kind != "AdmissionReview" || out.Response.UID != "u-1" {
		t.Errorf("%+v", out)
	}
	return out.Response
}

func TestPodGetsItsSidecarByASmallPatch(t *testing.T) {
	got := reviewed(t, newReviewer(false), reviewOf(podJSON))
	if !got.Allowed || got.PatchType == nil || *got.PatchType != admissionv1.PatchTypeJSONPatch {
		t.Fatalf("%+v", got)
	}
	want := `[{"op":"add","path":"/metadata/annotations","value":{"injected":"shop"}},` +
		`{"op":"add","path":"/spec/initContainers","value":[{"name":"sidecar","image":"sallyport","resources":{}}]}]`
	if string(got.Patch) != want {
		t.Errorf("patch %s\nwant %s", got.Patch, want)
	}
	if w := []string{"sallyport: mind the gap"}; !reflect.DeepEqual(got.Warnings, w) {
		t.Errorf("warnings %q", got.Warnings)
	}
}

func TestSecondReviewChangesNothing(t *testing.T) {
	v := newReviewer(false)
	first := reviewed(t, v, reviewOf(podJSON))
	var ops []operation
	if err := json.Unmarshal(first.Patch, &ops); err != nil {
		t.Fatal(err)
	}
	object, err := json.Marshal(apply(t, []byte(podJSON), ops))
	if err != nil {
		t.Fatal(err)
	}
	if second := reviewed(t, v, reviewOf(string(object))); !second.Allowed || second.Patch != nil || len(second.Warnings) > 0 {
		t.Errorf("%+v", second)
	}
}

func TestWhatCannotBeInjected(t *testing.T) {
	annotated := func(v string) string {
		return reviewOf(strings.Replace(podJSON, `"name":"orders-1"`, `"name":"orders-1","annotations":{"ask":"`+v+`"}`, 1))
	}
	host := reviewOf(strings.Replace(podJSON, `"spec":{`, `"spec":{"hostNetwork":true,`, 1))
	for name, tc := range map[string]struct {
		body          string
		allow         bool
		allowed       bool
		message, warn string
	}{
		"its author is told why it may not run":       {annotated("impossible"), false, false, "the sidecar cannot be added: annotation ask: impossible is not possible", ""},
		"or why it runs without":                      {annotated("impossible"), true, true, "", "sallyport: not injected: annotation ask: impossible is not possible"},
		"no change is larger than any that works":     {annotated("much"), false, false, "the sidecar cannot be added: what the sidecar changes in the pod takes more than 512 KiB: its probes and hooks are too many or too long", ""},
		"what is left alone is said":                  {host, false, true, "", "sallyport: not injected: hostNetwork"},
		"an update is none of the webhook's business": {strings.Replace(reviewOf(podJSON), "CREATE", "UPDATE", 1), false, true, "", `when it is created, not at "UPDATE" of "pods"`},
	} {
		t.Run(name, func(t *testing.T) {
			got := reviewed(t, newReviewer(tc.allow), tc.body)
			if got.Allowed != tc.allowed || got.Patch != nil {
				t.Errorf("%+v", got)
			}
			if !got.Allowed && (got.Result == nil || got.Result.Message != tc.message || got.Result.Code != 422) {
				t.Errorf("%+v", got.Result)
			}
			if warnings := strings.Join(got.Warnings, "|"); tc.warn == "" != (warnings == "") || !strings.Contains(warnings, tc.warn) {
				t.Errorf("warnings %q, want %q", warnings, tc.warn)
			}
		})
	}
}

func TestBadRequestsGetAClearAnswer(t *testing.T) {
	good := reviewOf(podJSON)
	for name, tc := range map[string]struct {
		body string
		code int
		want string
	}{
		"nothing":                      {"", 400, "the body is no AdmissionReview: unexpected end of JSON input"},
		"no JSON":                      {`{"a`, 400, "the body is no AdmissionReview"},
		"another document behind":      {good + good, 400, "the body is no AdmissionReview"},
		"another version":              {strings.Replace(good, "admission.k8s.io/v1", "admission.k8s.io/v1beta1", 1), 400, `of "admission.k8s.io/v1beta1": only AdmissionReview of admission.k8s.io/v1`},
		"another kind":                 {podJSON, 400, `the body is "Pod" of "v1"`},
		"no request":                   {`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, 400, "no request with a uid"},
		"no uid":                       {strings.Replace(good, `"uid":"u-1",`, "", 1), 400, "no request with a uid"},
		"a uid of great length":        {strings.Replace(good, `"u-1"`, `"`+strings.Repeat("u", maxUID+1)+`"`, 1), 400, "the uid of the request has 129 bytes, more than 128"},
		"what is not UTF-8":            {reviewOf(strings.Replace(podJSON, "orders:1", "\xff", 1)), 400, "the body is not UTF-8"},
		"another resource":             {strings.Replace(good, `"resource":{"group":"","version":"v1","resource":"pods"}`, `"resource":{"group":"apps","version":"v1","resource":"deployments"}`, 1), 400, `the review is about "deployments.apps/v1"`},
		"an object that is no pod":     {reviewOf(`{"apiVersion":"v1","kind":"Secret","data":{}}`), 400, `request.object is "Secret" of "v1", not a Pod`},
		"an object of a wrong type":    {reviewOf(`{"apiVersion":"v1","kind":"Pod","spec":{"containers":"all"}}`), 400, "request.object is no pod"},
		"an object that is no object":  {reviewOf(`[1]`), 400, "request.object is no pod"},
		"a name twice":                 {strings.Replace(good, `"spec":{`, `"spec":{},"spec":{`, 1), 400, `duplicate field "spec"`},
		"a pod without containers":     {reviewOf(`{"apiVersion":"v1","kind":"Pod"}`), 400, "it has no containers"},
		"too much":                     {`{"a":"` + strings.Repeat("x", maxBody) + `"}`, 413, "larger than 2097152 bytes"},
		"nothing can be injected now":  {strings.Replace(good, `"name":"orders-1","namespace"`, `"annotations":{"ask":"later"},"name":"orders-1","namespace"`, 1), 503, "the injector is not ready: later"},
		"arrays in arrays without end": {reviewOf(strings.Repeat("[", 20_000)), 400, "the body is no AdmissionReview"},
	} {
		t.Run(name, func(t *testing.T) {
			w := post(newReviewer(true), strings.NewReader(tc.body))
			if w.Code != tc.code || !strings.Contains(w.Body.String(), tc.want) || strings.Count(w.Body.String(), "\n") != 1 {
				t.Errorf("%d %q, want %d %q", w.Code, w.Body, tc.code, tc.want)
			}
		})
	}
}

func TestWhatIsNoPostOfJSON(t *testing.T) {
	for _, tc := range []struct {
		method, contentType string
		code                int
	}{
		{http.MethodGet, "application/json", 405}, {http.MethodPut, "application/json", 405},
		{http.MethodPost, "text/plain", 415}, {http.MethodPost, "", 415}, {http.MethodPost, "application/json; charset=utf-8", 200},
	} {
		r := httptest.NewRequest(tc.method, Path, strings.NewReader(reviewOf(podJSON)))
		r.Header.Set("Content-Type", tc.contentType)
		w := httptest.NewRecorder()
		newReviewer(true).ServeHTTP(w, r)
		if w.Code != tc.code || (w.Code == 405) != (w.Header().Get("Allow") == "POST") {
			t.Errorf("%s %q: %d %s", tc.method, tc.contentType, w.Code, w.Body)
		}
	}
}

// TestWordsOfOthersAreCut: what a request says is in answer and log no longer than a line, without what a terminal obeys.
func TestWordsOfOthersAreCut(t *testing.T) {
	words := strings.Repeat(`\u001b[2J\n\u202eä`, 5000)
	good := reviewOf(podJSON)
	with := func(old, next string) string {
		if !strings.Contains(good, old) {
			t.Fatal(old)
		}
		return strings.Replace(good, old, next, 1)
	}
	for name, tc := range map[string]struct {
		method, contentType, body string
		code                      int
	}{
		"method":            {strings.Repeat("M", 30_000), "application/json", good, 405},
		"content type":      {"POST", strings.Repeat("t", 30_000), good, 415},
		"apiVersion":        {"POST", "application/json", with(`"admission.k8s.io/v1"`, `"`+words+`"`), 400},
		"kind":              {"POST", "application/json", with(`"AdmissionReview"`, `"`+words+`"`), 400},
		"uid":               {"POST", "application/json", with(`"u-1"`, `"`+words+`"`), 400},
		"resource":          {"POST", "application/json", with(`"resource":"pods"`, `"resource":"`+words+`"`), 400},
		"operation":         {"POST", "application/json", with(`"CREATE"`, `"`+words+`"`), 200},
		"subresource":       {"POST", "application/json", with(`"operation"`, `"subResource":"`+words+`","operation"`), 200},
		"namespace":         {"POST", "application/json", strings.Replace(with(`"namespace":"shop","name"`, `"namespace":"`+words+`","name"`), `"spec":{`, `"spec":{"hostNetwork":true,`, 1), 200},
		"name":              {"POST", "application/json", with(`"name":"orders-1","operation"`, `"name":"`+words+`","operation"`), 200},
		"name of the pod":   {"POST", "application/json", strings.Replace(with(`"name":"orders-1","operation"`, `"operation"`), `"orders-1"`, `"`+words+`"`, 1), 200},
		"kind of object":    {"POST", "application/json", with(`"kind":"Pod","metadata"`, `"kind":"`+words+`","metadata"`), 400},
		"a name twice":      {"POST", "application/json", with(`"spec":{`, `"metadata":{"labels":{"`+words+`":"","`+words+`":""}},"spec":{`), 400},
		"what is no number": {"POST", "application/json", with(`"image":`, `"stdin":"`+words+`","image":`), 400},
		"an annotation":     {"POST", "application/json", with(`"name":"orders-1","namespace":"shop"}`, `"annotations":{"ask":"echo","echo":"`+words+`"}}`), 200},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			v := newReviewer(false)
			v.log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			r := httptest.NewRequest("POST", Path, strings.NewReader(tc.body))
			r.Method = tc.method
			r.Header.Set("Content-Type", tc.contentType)
			w := httptest.NewRecorder()
			v.ServeHTTP(w, r)
			if w.Code != tc.code || w.Body.Len() > maxMessage+1000 {
				t.Errorf("%d, %d bytes: %.300s", w.Code, w.Body.Len(), w.Body)
			}
			if strings.ContainsFunc(strings.TrimSuffix(w.Body.String(), "\n"), unprintable) {
				t.Errorf("answer %.300q", w.Body)
			}
			var said map[string]any
			if err := json.Unmarshal(log.Bytes(), &said); err != nil { // one line
				t.Fatalf("%v: %.300s", err, log.Bytes())
			}
			for key, value := range said {
				if text, _ := value.(string); len(text) > maxMessage || strings.ContainsFunc(text, unprintable) {
					t.Errorf("%s has %d bytes: %.300q", key, len(text), text)
				}
			}
		})
	}
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

func TestWarningsAreLimited(t *testing.T) {
	var r admissionv1.AdmissionResponse
	for range 2 * maxWarnings {
		warn(&r, strings.Repeat("ä\n", 500))
	}
	if len(r.Warnings) != maxWarnings || len(r.Warnings[0]) > maxWarning || strings.Contains(r.Warnings[0], "\n") || !strings.HasSuffix(r.Warnings[0], "…") {
		t.Errorf("%d warnings: %q", len(r.Warnings), r.Warnings[0])
	}
}

// FuzzReview asserts that whatever is POSTed gets one answer: a line that says what is wrong, or a review whose patch
// applies to the object that was sent and makes of it the pod that was meant.
func FuzzReview(f *testing.F) {
	f.Add([]byte(reviewOf(podJSON)))
	v := newReviewer(false)
	f.Fuzz(func(t *testing.T, body []byte) {
		w := post(v, strings.NewReader(string(body)))
		if w.Code != http.StatusOK {
			if w.Code < 400 || w.Code == 500 || strings.Count(w.Body.String(), "\n") != 1 {
				t.Fatalf("%d %q", w.Code, w.Body)
			}
			return
		}
		var in review
		var out admissionv1.AdmissionReview
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || out.Response == nil {
			t.Fatalf("%v: %q", err, w.Body)
		}
		if err := unmarshal(body, &in); err != nil || out.Response.UID != in.Request.UID {
			t.Fatalf("accepted: %v", err)
		}
		if out.Response.Patch == nil {
			return
		}
		var ops []operation
		if err := json.Unmarshal(out.Response.Patch, &ops); err != nil {
			t.Fatal(err)
		}
		patched, err := json.Marshal(apply(t, in.Request.Object, ops))
		if err != nil {
			t.Fatal(err)
		}
		var before, got corev1.Pod
		if err := errors.Join(unmarshal(in.Request.Object, &before), unmarshal(patched, &got)); err != nil {
			t.Fatal(err)
		}
		want, err := addSidecar(&before, in.Request.Namespace)
		if err != nil {
			t.Fatal(err)
		}
		a, errA := json.Marshal(want.Pod)
		b, errB := json.Marshal(&got)
		if errA != nil || errB != nil || string(a) != string(b) {
			t.Fatalf("got %s\nwant %s", b, a)
		}
	})
}
