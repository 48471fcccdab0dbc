package webhook

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// operation is one of a JSON Patch, RFC 6902 §4.
type operation struct {
	Op    string
	Path  string
	Value any // of add and replace; nil is null
}

// MarshalJSON writes the members that the operation has: "value" is required, even as null, by add and replace (§4.1, §4.3).
func (o operation) MarshalJSON() ([]byte, error) {
	if o.Op == "remove" {
		return json.Marshal(struct {
			Op   string `json:"op"`
			Path string `json:"path"`
		}{o.Op, o.Path})
	}
	return json.Marshal(struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}{o.Op, o.Path, o.Value})
}

const (
	// maxPatch bounds a patch, roughly. One that works is shorter: the annotations of a pod are at most 256 KiB, an argument
	// or a variable 128 KiB (MAX_ARG_STRLEN of Linux).
	maxPatch = 512 << 10
	// maxAlign bounds the table that aligns two arrays; longer ones are replaced whole.
	maxAlign = 1 << 20
)

var errLargePatch = fmt.Errorf("what the sidecar changes in the pod takes more than %d KiB: its probes and hooks are too many or too long",
	maxPatch>>10)

// patchFor returns the operations that bring the change from before to after into raw. raw is the document as the API
// server has it; before and after are what our types made of it, so that a field that these do not know stays as it
// is, and one that they write where raw has none (creationTimestamp: null, status: {}) is no change.
func patchFor(raw []byte, before, after any) ([]operation, error) {
	var d differ
	d.value("", raw, plain(reflect.ValueOf(before)), plain(reflect.ValueOf(after)))
	if d.size > maxPatch {
		return nil, errLargePatch
	}
	return d.ops, nil
}

// differ stops when the size of the operations is too large.
type differ struct {
	ops  []operation
	size int
}

func (d *differ) emit(op, path string, v reflect.Value) {
	d.size += len(path) + size(v, maxPatch)
	if d.size > maxPatch {
		return
	}
	o := operation{Op: op, Path: path}
	if v.IsValid() {
		o.Value = v.Interface()
	}
	d.ops = append(d.ops, o)
}

// value appends what makes of a, which stands at path, b. doc is what the document really has there; where it is not of
// a's shape it is replaced whole, as operations inside it would not apply.
func (d *differ) value(path string, doc document, a, b reflect.Value) {
	if d.size > maxPatch || same(a, b) {
		return
	}
	if bm, ok := members(b); ok {
		am, okA := members(a)
		dm, okD := doc.members()
		if okA && okD {
			d.object(path, dm, am, bm)
			return
		}
	} else if bs, ok := elements(b); ok {
		as, okA := elements(a)
		ds, okD := doc.elements()
		if okA && okD && len(ds) == len(as) && d.array(path, ds, as, bs) {
			return
		}
	}
	d.emit("replace", path, b)
}

func (d *differ) object(path string, doc map[string]document, a, b map[string]reflect.Value) {
	for _, k := range sortedKeys(a) {
		if _, stays := b[k]; stays {
			continue
		}
		if _, there := doc[k]; there {
			d.emit("remove", path+"/"+escape(k), reflect.Value{})
		}
	}
	for _, k := range sortedKeys(b) {
		p := path + "/" + escape(k)
		old, had := a[k]
		in, there := doc[k]
		switch {
		case had && there:
			d.value(p, in, old, b[k])
		case had && same(old, b[k]):
			// Written by our types alone, and not changed.
		default:
			d.emit("add", p, b[k]) // replaces what may be there (§4.1)
		}
	}
}

// array changes elements one after the other, so that at each step everything left of the index is already as in b. It
// reports false, having done nothing, where a table of the two would be too large.
func (d *differ) array(path string, doc []document, a, b []reflect.Value) bool {
	pairs, ok := align(a, b)
	if !ok {
		return false
	}
	i, j := 0, 0
	at := func(n int) string { return path + "/" + strconv.Itoa(n) }
	// What has no partner on either side at the same place is one replacement rather than a removal and an addition.
	gap := func(toA, toB int) {
		for i < toA && j < toB {
			d.emit("replace", at(j), b[j])
			i, j = i+1, j+1
		}
		for ; i < toA; i++ {
			d.emit("remove", at(j), reflect.Value{})
		}
		for ; j < toB; j++ {
			d.emit("add", at(j), b[j])
		}
	}
	for _, p := range pairs {
		gap(p[0], p[1])
		d.value(at(j), doc[i], a[i], b[j])
		i, j = i+1, j+1
	}
	gap(len(a), len(b))
	return true
}

// align finds the longest common subsequence of two arrays: pairs of indexes whose elements are the same thing.
func align(a, b []reflect.Value) ([][2]int, bool) {
	ka, kb := identities(a), identities(b)
	start := 0
	for start < len(ka) && start < len(kb) && ka[start] == kb[start] {
		start++
	}
	end := 0
	for end < len(ka)-start && end < len(kb)-start && ka[len(ka)-1-end] == kb[len(kb)-1-end] {
		end++
	}
	ma, mb := ka[start:len(ka)-end], kb[start:len(kb)-end]
	if (len(ma)+1)*(len(mb)+1) > maxAlign {
		return nil, false
	}
	var pairs [][2]int
	for i := range start {
		pairs = append(pairs, [2]int{i, i})
	}
	w := len(mb) + 1
	lcs := make([]int, (len(ma)+1)*w) // [i*w+j]: of ma[i:] and mb[j:]
	for i := len(ma) - 1; i >= 0; i-- {
		for j := len(mb) - 1; j >= 0; j-- {
			if ma[i] == mb[j] {
				lcs[i*w+j] = lcs[(i+1)*w+j+1] + 1
			} else {
				lcs[i*w+j] = max(lcs[(i+1)*w+j], lcs[i*w+j+1])
			}
		}
	}
	for i, j := 0, 0; i < len(ma) && j < len(mb); {
		switch {
		case ma[i] == mb[j]:
			pairs = append(pairs, [2]int{start + i, start + j})
			i, j = i+1, j+1
		case lcs[(i+1)*w+j] >= lcs[i*w+j+1]:
			i++
		default:
			j++
		}
	}
	for n := end; n > 0; n-- {
		pairs = append(pairs, [2]int{len(a) - n, len(b) - n})
	}
	return pairs, true
}

// identities are by what elements are recognized: their name, as containers, volumes and variables have one, or else
// their whole content.
func identities(list []reflect.Value) []string {
	ids := make([]string, len(list))
	for i, v := range list {
		if name := nameOf(v); name != "" {
			ids[i] = "name " + name
		} else if v.IsValid() {
			data, _ := json.Marshal(v.Interface()) // was made from JSON just now
			ids[i] = string(data)
		}
	}
	return ids
}

// escape is RFC 6901 §3.
func escape(key string) string {
	return strings.ReplaceAll(strings.ReplaceAll(key, "~", "~0"), "/", "~1")
}
