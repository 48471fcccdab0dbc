package install

import (
	"encoding/json"
	"fmt"
	"io"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// Print writes the manifests as YAML documents, for kubectl apply -f -.
func Print(w io.Writer, o Options) error {
	objects, err := Objects(o)
	if err != nil {
		return err
	}
	for _, object := range objects {
		text, err := Marshal(object)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "---\n%s", text); err != nil {
			return err
		}
	}
	return nil
}

// Marshal writes an object as YAML without what only our types add to it: a status, and members that are null.
func Marshal(object runtime.Object) ([]byte, error) {
	data, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	var v map[string]any
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, err
	}
	delete(v, "status")
	dropNulls(v)
	return yaml.Marshal(v)
}

func dropNulls(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e == nil {
				delete(v, k)
			}
			dropNulls(e)
		}
	case []any:
		for _, e := range v {
			dropNulls(e)
		}
	}
}
