package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"go.yaml.in/yaml/v3"
	kjson "sigs.k8s.io/json"
)

// pod is one, or the template of one, in a document.
type pod struct {
	place string
	line  int        // of the document
	node  *yaml.Node // of the object that has metadata and spec
	meta  metav1.ObjectMeta
	spec  corev1.PodSpec
}

func (p *pod) note(text string) Note { return Note{Place: p.place, Text: text} }

// templates is where the kinds that run pods have the template.
var templates = map[string][]string{
	"Pod": {}, "Deployment": {"spec", "template"}, "StatefulSet": {"spec", "template"}, "DaemonSet": {"spec", "template"},
	"ReplicaSet": {"spec", "template"}, "ReplicationController": {"spec", "template"}, "Job": {"spec", "template"},
	"CronJob": {"spec", "jobTemplate", "spec", "template"},
}

// groups are their API groups; an object of another group may have the same kind.
var groups = map[string]string{"Pod": "v1", "ReplicationController": "v1", "Deployment": "apps/", "StatefulSet": "apps/", "DaemonSet": "apps/",
	"ReplicaSet": "apps/", "Job": "batch/", "CronJob": "batch/"}

// objects changes the pod of an object, or those of a List.
func (f *file) objects(d *document, n *yaml.Node) (changed bool, count int, err error) {
	at := fmt.Sprintf("%s:%d", f.name, d.line+n.Line-1)
	if n.Kind != yaml.MappingNode {
		return false, 0, fmt.Errorf("%s: not a Kubernetes object: want a mapping with apiVersion and kind", at)
	}
	kind, version := valueOf(n, "kind"), valueOf(n, "apiVersion")
	if kind == "" || version == "" {
		return false, 0, fmt.Errorf("%s: not a Kubernetes object: it has no apiVersion and kind", at)
	}
	if kind == "List" && version == "v1" {
		return f.list(d, n, at)
	}
	place := at + ": " + kind
	if m := find(n, "metadata"); m != nil && valueOf(m, "name") != "" {
		place += "/" + valueOf(m, "name")
	}
	path, ok := templates[kind]
	if group := groups[kind]; !ok || version != group && (group == "v1" || !strings.HasPrefix(version, group)) {
		return false, 1, nil // nothing that runs pods
	}
	p := &pod{place: place, line: d.line, node: n}
	for _, key := range path {
		next := find(p.node, key)
		if next == nil || next.Kind != yaml.MappingNode {
			return false, 1, fmt.Errorf("%s: it has no %s", place, strings.Join(path, "."))
		}
		p.node = next
	}
	changed, err = f.pod(p)
	return changed, 1, err
}

func (f *file) list(d *document, n *yaml.Node, at string) (changed bool, count int, err error) {
	items := find(n, "items")
	if items == nil || items.Kind != yaml.SequenceNode {
		return false, 0, fmt.Errorf("%s: List has no items", at)
	}
	if len(items.Content) > maxItems {
		return false, 0, fmt.Errorf("%s: List has %d items, at most %d are taken", at, len(items.Content), maxItems)
	}
	var errs []error
	for _, item := range items.Content {
		c, k, err := f.objects(d, item)
		changed, count, errs = changed || c, count+k, append(errs, err)
	}
	return changed, count + 1, errors.Join(errs...)
}

// pod changes one in the tree.
func (f *file) pod(p *pod) (bool, error) {
	var t corev1.PodTemplateSpec
	tree, err := decode(p.node)
	if err != nil {
		return false, fmt.Errorf("%s: %w", p.place, inLine(err, p.line))
	}
	text, err := json.Marshal(tree)
	if err == nil {
		// As the API server reads it: names count by letter case.
		err = kjson.UnmarshalCaseSensitivePreserveInts(text, &t)
	}
	if err != nil {
		return false, fmt.Errorf("%s: not a pod: %w", p.place, err)
	}
	if len(t.Spec.Containers) == 0 {
		return false, fmt.Errorf("%s: not a pod: it has no containers", p.place)
	}
	before, err := generic(&t)
	if err != nil {
		return false, fmt.Errorf("%s: %w", p.place, err)
	}
	p.meta, p.spec = *t.ObjectMeta.DeepCopy(), *t.Spec.DeepCopy()
	changed, err := f.change(p)
	if err != nil {
		return false, fmt.Errorf("%s: %w", p.place, err)
	}
	if !changed {
		return false, nil
	}
	after, err := generic(&corev1.PodTemplateSpec{ObjectMeta: p.meta, Spec: p.spec})
	if err != nil {
		return false, fmt.Errorf("%s: %w", p.place, err)
	}
	merge(p.node, before, after)
	return true, nil
}

// decode is what a tree says to Kubernetes, whose YAML has no dates: 2020-01-01 is a string.
func decode(n *yaml.Node) (v any, err error) {
	dates := datesOf(n, nil)
	for _, d := range dates {
		d.Tag = "!!str"
	}
	err = n.Decode(&v)
	for _, d := range dates {
		d.Tag = "!!timestamp"
	}
	return v, err
}

// datesOf are those that package yaml has found, not the author said to be.
func datesOf(n *yaml.Node, found []*yaml.Node) []*yaml.Node {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!timestamp" && n.Style&yaml.TaggedStyle == 0 {
		found = append(found, n)
	}
	for _, child := range n.Content {
		found = datesOf(child, found)
	}
	return found
}

// generic is an object as JSON has it.
func generic(v any) (any, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var out any
	return out, d.Decode(&out)
}

func valueOf(n *yaml.Node, key string) string {
	v := find(n, key)
	if v == nil || v.Kind != yaml.ScalarNode {
		return ""
	}
	return v.Value
}
