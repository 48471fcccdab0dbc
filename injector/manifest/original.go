package manifest

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

const originalComment = "# sallyport: for uninject: "

// sameObject says whether the original means what the tree means now.
func sameObject(original string, root *yaml.Node) bool {
	var was, is any
	return yaml.Unmarshal([]byte(original), &was) == nil && root.Decode(&is) == nil && reflect.DeepEqual(meaning(was), meaning(is))
}

// meaning is a value without empty objects and lists, which come and go with what is put into them.
func meaning(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if e = meaning(e); e != nil {
				out[k] = e
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case []any:
		var out []any
		for _, e := range v {
			out = append(out, meaning(e))
		}
		if len(out) == 0 {
			return nil
		}
		return out
	default:
		return v
	}
}

// takeOriginal finds the original in the last comment and removes that from the tree.
func takeOriginal(root *yaml.Node, text string) string {
	packed := ""
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, originalComment); ok {
			packed = strings.TrimSpace(rest)
		}
	}
	if packed == "" {
		return ""
	}
	forget(root)
	original, err := unpack(packed)
	if err != nil {
		return "" // edited: the object itself says enough
	}
	return original
}

// forget removes the comment that holds the original from a tree.
func forget(n *yaml.Node) {
	for _, c := range []*string{&n.HeadComment, &n.LineComment, &n.FootComment} {
		if !strings.Contains(*c, originalComment) {
			continue
		}
		var kept []string
		for line := range strings.Lines(*c) {
			if !strings.HasPrefix(line, originalComment) {
				kept = append(kept, line)
			}
		}
		*c = strings.TrimRight(strings.Join(kept, ""), "\n")
	}
	for _, child := range n.Content {
		forget(child)
	}
}

func pack(text string) (string, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(z, text); err != nil {
		return "", err
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(b.Bytes()), nil
}

func unpack(packed string) (string, error) {
	data, err := base64.StdEncoding.DecodeString(packed)
	if err != nil {
		return "", err
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(z, maxSize+1))
	if err == nil && len(text) > maxSize {
		err = errors.New("too large")
	}
	return string(text), err
}
