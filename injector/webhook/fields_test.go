package webhook

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// populate sets all there is in a value: pointers to something, lists and maps of one.
func populate(v reflect.Value) {
	switch x := v.Addr().Interface().(type) {
	case *resource.Quantity:
		*x = resource.MustParse("1500m")
		return
	case *metav1.Time:
		*x = metav1.NewTime(time.Unix(1e9, 0))
		return
	case *metav1.FieldsV1:
		*x = *metav1.NewFieldsV1(`{"f:spec":{}}`)
		return
	case *intstr.IntOrString:
		*x = intstr.FromString("http")
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		populate(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		populate(v.Index(0))
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		populate(key)
		populate(value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			populate(v.Field(i))
		}
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint8:
		v.SetUint(7)
	default:
		panic(v.Type())
	}
}

// written is a value put together of its members and elements.
func written(t *testing.T, v reflect.Value) any {
	if m, ok := members(v); ok {
		out := map[string]any{}
		for name, member := range m {
			out[name] = written(t, member)
		}
		return out
	}
	if list, ok := elements(v); ok {
		out := []any{}
		for _, element := range list {
			out = append(out, written(t, element))
		}
		return out
	}
	if !v.IsValid() {
		return nil
	}
	return generic(t, v.Interface())
}

func TestMembersAreWhatJSONWrites(t *testing.T) {
	var full, hollow corev1.Pod
	populate(reflect.ValueOf(&full).Elem())
	hollow.Labels, hollow.Spec.Containers, hollow.Spec.Volumes = map[string]string{}, []corev1.Container{{Env: []corev1.EnvVar{}}}, []corev1.Volume{}
	for name, v := range map[string]any{
		"a pod with all there is": &full, "an empty one": &corev1.Pod{}, "one that is hollow": &hollow,
		"maps and lists": map[string]any{"a": []any{nil, 1, "b", json.Number("1e400"), map[string]any{}}, "c": nil},
	} {
		if got, want := written(t, plain(reflect.ValueOf(v))), generic(t, v); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %s", name, cmp.Diff(want, got))
		}
	}
}

// TestPatchesOfTypedPods changes, in a pod with all there is, what lies in structs, pointers, lists and maps, and what writes
// its JSON itself.
func TestPatchesOfTypedPods(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		ops    int
	}{
		"nothing":             {func(p *corev1.Pod) {}, 0},
		"a label more":        {func(p *corev1.Pod) { p.Labels["a/b"] = "c" }, 1},
		"no labels":           {func(p *corev1.Pod) { p.Labels = nil }, 1},
		"hollow labels":       {func(p *corev1.Pod) { p.Labels = map[string]string{} }, 1},
		"a time":              {func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(time.Unix(2e9, 0)) }, 1},
		"no time":             {func(p *corev1.Pod) { p.CreationTimestamp = metav1.Time{} }, 1},
		"a quantity":          {func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Limits["text"] = resource.MustParse("2") }, 1},
		"the port of a probe": {func(p *corev1.Pod) { p.Spec.Containers[0].LivenessProbe.HTTPGet.Port = intstr.FromInt32(80) }, 1},
		"another probe": {func(p *corev1.Pod) {
			p.Spec.Containers[0].LivenessProbe.HTTPGet, p.Spec.Containers[0].LivenessProbe.GRPC.Port = nil, 8
		}, 2},
		"an inlined name": {func(p *corev1.Pod) { p.Spec.EphemeralContainers[0].Image = "other" }, 1},
		"a container in front": {func(p *corev1.Pod) {
			p.Spec.InitContainers = append([]corev1.Container{{Name: "a"}}, p.Spec.InitContainers...)
		}, 1},
		"a volume behind": {func(p *corev1.Pod) { p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "b"}) }, 1},
		"bytes":           {func(p *corev1.Pod) { p.ManagedFields[0].FieldsV1 = metav1.NewFieldsV1(`{"f:x":{}}`) }, 1},
		"no status":       {func(p *corev1.Pod) { p.Status = corev1.PodStatus{} }, -1},
	} {
		t.Run(name, func(t *testing.T) {
			var before corev1.Pod
			populate(reflect.ValueOf(&before).Elem())
			after := before.DeepCopy()
			tc.change(after)
			raw, err := json.Marshal(&before)
			if err != nil {
				t.Fatal(err)
			}
			checkPatch(t, raw, &before, after)
			if ops := patch(t, raw, &before, after); tc.ops >= 0 && len(ops) != tc.ops {
				t.Errorf("%+v", ops)
			}
		})
	}
}

func TestSizeStopsAtTheLimit(t *testing.T) {
	for _, tc := range []struct {
		v           any
		limit, want int
	}{
		{nil, 9, 0}, {"abc", 9, 3}, {[]string{"abc", "de"}, 9, 5}, {map[string]any{"a": "bc"}, 9, 3}, {&corev1.Volume{Name: "abcd"}, 9, 4},
		{[]string{"abc", "de", "f"}, 3, 5}, {corev1.Container{Name: "a", Args: []string{"b"}, LivenessProbe: &corev1.Probe{}}, 9, 2},
	} {
		if got := size(reflect.ValueOf(tc.v), tc.limit); got != tc.want {
			t.Errorf("%v: %d", tc.v, got)
		}
	}
}
