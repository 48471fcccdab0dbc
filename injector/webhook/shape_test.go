package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"sallyport/injector/manifest"
)

// list is n elements of JSON, %d in them their index.
func list(n int, element string) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strings.ReplaceAll(element, "%d", fmt.Sprint(i)))
	}
	return "[" + b.String() + "]"
}

// podOf is a pod with more in its metadata and its spec.
func podOf(metadata, spec string) string {
	return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"orders-1"` + metadata + `},"spec":{"serviceAccountName":"orders"` + spec + `}}`
}

// disproportionate are pods that are refused before they are decoded, by what is said.
var disproportionate = map[string]string{
	"a list of the pod has 200000 elements, and at most 1000 are taken":                          podOf("", `,"containers":`+list(200_000, "{}")),
	"a list of the pod has 1001 elements":                                                        podOf("", `,"containers":`+list(1001, `{"name":"a%d"}`)),
	"the pod holds 20031 values (objects, lists, strings, numbers), and at most 20000":           podOf("", `,"containers":[{"name":"a"}],"x":`+list(20, list(1000, "0"))),
	"objects and lists of the pod are nested 66 deep, and at most 64":                            podOf("", `,"containers":[{"name":"a"}],"x":`+strings.Repeat("[", 64)+strings.Repeat("]", 64)),
	"100000 characters of the pod's strings are escaped in JSON":                                 podOf(`,"annotations":{"a":"`+strings.Repeat("<", 100_000)+`"}`, `,"containers":[{"name":"a"}]`),
	`the pod's number "1e-2147483648" has more digits, or a larger exponent`:                     podOf("", `,"containers":[{"name":"a","resources":{"limits":{"cpu":"1e-2147483648"}}}]`),
	`the pod's number "` + strings.Repeat("9", maxQuote-len("…")) + `…" has more digits, or a l`: podOf("", `,"containers":[{"name":"a","resources":{"limits":{"cpu":`+strings.Repeat("9", 1_000_000)+`}}}]`),
}

func TestPodsOutOfAllProportionAreRefused(t *testing.T) {
	for want, pod := range disproportionate {
		t.Run(want, func(t *testing.T) {
			got := reviewed(t, newReviewer(false), reviewOf(pod))
			if got.Allowed || got.Result == nil || got.Result.Code != 422 || !strings.HasPrefix(got.Result.Message, "the sidecar cannot be added: "+want) {
				t.Errorf("%+v", got)
			}
			got = reviewed(t, newReviewer(true), reviewOf(pod))
			if !got.Allowed || got.Patch != nil || len(got.Warnings) != 1 || !strings.HasPrefix(got.Warnings[0], "sallyport: not injected: "+want[:30]) {
				t.Errorf("where the policy lets them in: %+v", got)
			}
		})
	}
}

func TestRefusingTakesLittleMemory(t *testing.T) {
	for what, pod := range disproportionate {
		body := reviewOf(pod)
		if got := allocated(func() { post(newReviewer(false), strings.NewReader(body)) }); got > 8<<20 {
			t.Errorf("%.60s: %d bytes were allocated for %d", what, got, len(body))
		}
	}
}

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestLargePodsThatAreTaken(t *testing.T) {
	for name, pod := range map[string]string{
		"as many elements":         podOf("", `,"containers":`+list(1000, `{"name":"a%d"}`)),
		"as many values":           podOf("", `,"containers":[{"name":"a"}],"x":`+list(19, list(1000, "0"))+`,"y":`+list(950, "0")),
		"as deep":                  podOf("", `,"containers":[{"name":"a"}],"x":`+strings.Repeat("[", 62)+strings.Repeat("]", 62)),
		"as long":                  podOf("", `,"containers":[{"name":"a","args":["`+strings.Repeat("x", maxBody-1000)+`"]}]`),
		"a script":                 podOf("", `,"containers":[{"name":"a","args":["`+strings.Repeat(`if [ \"$a\" < 1 ]; then exit; fi\n`, 5000)+`"]}]`),
		"quantities of all kinds":  podOf("", `,"containers":[{"name":"a","resources":{"limits":{"cpu":"100m","memory":"1.5Gi","a/b":"1e3","c/d":12,"e/f":"1E-3"}}}]`),
		"a commit like a quantity": podOf(`,"labels":{"commit":"12e4567"}`, `,"containers":[{"name":"a"}]`),
	} {
		t.Run(name, func(t *testing.T) {
			if got := reviewed(t, newReviewer(false), reviewOf(pod)); !got.Allowed || got.Patch == nil {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestNumbersThatAreCostly(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, "1": false, "-0.5": false, "100m": false, "64Mi": false, "1e3": false, "5E-3": false, "1e": false, "e5": false, "x1e-9999": false,
		"1e-99": false, "1e-100": true, "1E-0001": false, "1e-00001000": true, " +1e-10000000 ": true, "-.5e-2147483648": true,
		"12e4567": false, "1e2147483647": false, "1234567890123456789e2147483647": true, "1.234567890123456789e99999": true,
		strings.Repeat("9", 128): false, strings.Repeat("9", 129): true, strings.Repeat("9", 129) + "Ei": true, strings.Repeat("1", 129) + "e1": true,
		strings.Repeat("0", 129) + ".1": true, strings.Repeat("1.", 70): false, "192.168.0.1": false, "12e45-67": false, strings.Repeat("1", 129) + " and a text": false,
	} {
		if got := costly([]byte(text)); got != want {
			t.Errorf("%.40q: %v", text, got)
		}
	}
}

// TestNumbersThatAreTakenAreCheap: none of them is computed with more than a few hundred digits.
func TestNumbersThatAreTakenAreCheap(t *testing.T) {
	for _, text := range []string{
		"1e-99", "5e-000000000099", "123456789012345678e2147483647", "0.1e2147483647", "1e2147483647", strings.Repeat("9", 128), strings.Repeat("9", 128) + "e99",
		strings.Repeat("9", 128) + "e-99", strings.Repeat("9", 126) + "Ei", "." + strings.Repeat("1", 127) + "e-99",
	} {
		if costly([]byte(text)) {
			t.Errorf("%s is not taken", text)
		} else if got := allocated(func() { resource.ParseQuantity(text) }); got > 8<<10 {
			t.Errorf("%s: %d bytes were allocated", text, got)
		}
	}
}

// decoded is the shape of a text by encoding/json.
func decoded(text []byte) (shape, error) {
	var s shape
	var open []int // elements of an array; of an object -1 before a name, -2 before its value
	for dec := json.NewDecoder(strings.NewReader(string(text))); ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return s, nil
		} else if err != nil {
			return s, err
		}
		if token == json.Delim('}') || token == json.Delim(']') {
			open = open[:len(open)-1]
			continue
		}
		if top := len(open) - 1; top >= 0 {
			switch {
			case open[top] == -1:
				open[top] = -2
				continue
			case open[top] == -2:
				open[top] = -1
			default:
				open[top]++
				s.elements = max(s.elements, open[top])
			}
		}
		s.values++
		switch token {
		case json.Delim('{'):
			open = append(open, -1)
		case json.Delim('['):
			open = append(open, 0)
		}
		s.depth = max(s.depth, len(open))
	}
}

func checkShape(t *testing.T, text []byte) {
	t.Helper()
	want, err := decoded(text)
	if err != nil {
		t.Fatal(err)
	}
	got := shapeOf(text)
	if want.depth > maxDepth { // elements that far down are not counted, as nobody decodes them
		want.elements, got.elements = 0, 0
	}
	if got.values != want.values || got.elements != want.elements || got.depth != want.depth {
		t.Errorf("%.200s: got %+v, want %+v", text, got, want)
	}
}

func TestShapeIsWhatADecoderFinds(t *testing.T) {
	for _, text := range []string{"1", `""`, "null", "[]", "{}", " [ ] ", "{ }", `[1,"a",[],{},null,true,-1.5e3]`, `{"a":{"b":[{"c":1},2]},"d":"}]\"{[,:"}`, "[\n1 ,\t2\r\n]"} {
		checkShape(t, []byte(text))
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		text, err := json.Marshal(object(r, 4))
		if err != nil {
			t.Fatal(err)
		}
		checkShape(t, text)
	}
	if got := shapeOf([]byte(`{"a<":"\n\\\u0041&>","b":"` + "\u2028\u2029€" + `"}`)).escapes; got != 8 {
		t.Errorf("%d escapes", got)
	}
}

// FuzzShape asserts that the shape of JSON is what a decoder finds, and that other text has one too.
func FuzzShape(f *testing.F) {
	for _, text := range []string{reviewOf(podJSON), `[[],{"a":[1,2]}]`, `{"a":"\"`, `]]}`, `"` + "\xe2", `[1e-9999`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if shapeOf(text); json.Valid(text) {
			checkShape(t, text)
		}
	})
}

// injectReally is what main does.
func injectReally(pod *corev1.Pod, _ string) (Result, error) {
	r, err := manifest.Inject(&pod.ObjectMeta, &pod.Spec, manifest.Options{Image: "x", ControlPlane: "c:1", TrustDomain: "t", TrustBundle: strings.Repeat("B", 4096)})
	if err != nil || !r.Injected {
		return Result{Skipped: r.Reason}, err
	}
	return Result{Pod: pod}, nil
}

// TestWeightIsNoLessThanWhatAReviewTakes is about the pods that take the most for their length, their values or their
// escapes, and what of these is bounded together.
func TestWeightIsNoLessThanWhatAReviewTakes(t *testing.T) {
	const ports, probe = `"ports":[{"containerPort":80}]`, `{"httpGet":{"port":1,"path":"%s"}}`
	probes := func(path string) string {
		p := strings.ReplaceAll(probe, "%s", path)
		return ports + `,"livenessProbe":` + p + `,"readinessProbe":` + p + `,"startupProbe":` + p + `,"lifecycle":{"preStop":` + p + `,"postStart":` + p + `}`
	}
	labels := strings.ReplaceAll(list(5000, `"%d`+strings.Repeat("k", 50)+`":""`), "]", "}")
	for name, pod := range map[string]string{
		"a small one":        podOf("", `,"containers":[{"name":"a"}]`),
		"containers":         podOf("", `,"containers":`+list(900, `{"name":"a%d"}`)+`,"initContainers":`+list(900, `{"name":"b%d"}`)+`,"ephemeralContainers":`+list(900, `{"name":"c%d"}`)),
		"statuses":           podOf(`},"status":{"containerStatuses":`+list(900, "{}")+`,"ephemeralContainerStatuses":`+list(900, "{}"), `,"containers":[{"name":"a"}]`),
		"quantities":         podOf("", `,"containers":`+list(500, `{"name":"a%d","resources":{"limits":{"cpu":"1","memory":"12345678901234567890123","a/b":"0.1"}}}`)),
		"small quantities":   podOf("", `,"containers":`+list(20, `{"name":"a%d","resources":{"limits":{`+strings.ReplaceAll(list(600, `"a/%d":"1e-99"`), "]", "}")[1:]+`}}`)),
		"long quantities":    podOf("", `,"containers":`+list(20, `{"name":"a%d","resources":{"limits":{`+strings.ReplaceAll(list(600, `"a/%d":"`+strings.Repeat("9", 128)+`"`), "]", "}")[1:]+`}}`)),
		"labels":             podOf(`,"labels":{`+labels[1:], `,"containers":[{"name":"a"}]`),
		"a long argument":    podOf("", `,"containers":[{"name":"a","args":["`+strings.Repeat("x", 300_000)+`"]}]`),
		"a long probe":       podOf("", `,"containers":[{"name":"a",`+ports+`,"livenessProbe":`+strings.ReplaceAll(probe, "%s", strings.Repeat("$(", 50_000))+`}]`),
		"a longer probe":     podOf("", `,"containers":[{"name":"a",`+ports+`,"livenessProbe":`+strings.ReplaceAll(probe, "%s", strings.Repeat("$(", 1_000_000))+`}]`),
		"an escaped probe":   podOf("", `,"containers":[{"name":"a",`+ports+`,"livenessProbe":`+strings.ReplaceAll(probe, "%s", strings.Repeat("<", 30_000))+`}]`),
		"a quoted probe":     podOf("", `,"containers":[{"name":"a",`+ports+`,"livenessProbe":`+strings.ReplaceAll(probe, "%s", strings.Repeat(`\"`, 30_000))+`}]`),
		"probes":             podOf("", `,"containers":`+list(200, `{"name":"a%d",`+probes("/")+`}`)),
		"more probes":        podOf("", `,"containers":`+list(750, `{"name":"a%d",`+probes("/")+`}`)),
		"as much of as many": podOf("", `,"containers":`+list(750, `{"name":"a%d",`+probes(strings.Repeat("y", 300)+strings.Repeat("<", 14))+`}`)),
	} {
		t.Run(name, func(t *testing.T) {
			v := newReviewer(false)
			v.inject = injectReally
			body := reviewOf(pod)
			shape := shapeOf([]byte(body))
			if err := shape.check(); err != nil || len(body) > maxBody {
				t.Fatal(len(body), err)
			}
			var code int
			got := int(allocated(func() { code = post(v, strings.NewReader(body)).Code }))
			weight, buffers := shape.weight(len(body)), 4*len(body)+10<<10 // the latter are room of another kind
			if code != 200 || got > 2*(weight+buffers) {                   // the race detector drops half of what is pooled
				t.Errorf("status %d; %d bytes were allocated, more than %d + %d for %d bytes, %d values and %d escapes",
					code, got, weight, buffers, len(body), shape.values, shape.escapes)
			}
		})
	}
}

// TestRoomIsEnough is the arithmetic that keeps reviews from waiting for each other.
func TestRoomIsEnough(t *testing.T) {
	first := int64(steps[0] + steps[1])
	buffers := int64(0)
	for n, i := 0, 0; n < maxBody; i++ {
		if n *= 2; i < len(steps) {
			n = steps[i]
		}
		buffers += int64(n)
	}
	for of, r := range map[string][3]int64{"all": {maxPlaces, maxBodies, maxWork}, "peer": {peerPlaces, peerBodies, peerWork}} {
		if r[places]*first+int64(steps[2]) > r[bodies] {
			t.Errorf("%s: who has begun may take all the room for bodies", of)
		}
		if streamUnread < 65_535 || maxUnread < streamUnread || maxStreams < 100 {
			t.Error("a client that has not seen the settings yet breaks them")
		}
		if buffers > r[bodies] || int64((shape{values: 1 << 30, escapes: 1 << 30}).weight(maxBody)) > r[work] {
			t.Errorf("%s: a review that is allowed does not fit", of)
		}
	}
}
