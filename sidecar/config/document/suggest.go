package document

import (
	"strings"

	"github.com/agnivade/levenshtein"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// nearest is the candidate that a person who wrote name most likely meant, or "".
func nearest(name string, candidates []string) string {
	if len(name) > 200 {
		return ""
	}
	best, at := "", max(len(name)/3, 2)+1
	for _, c := range candidates {
		if d := len(c) - len(name); d >= at || -d >= at {
			continue
		}
		if d := levenshtein.ComputeDistance(name, c); d < at {
			best, at = c, d
		}
	}
	return best
}

// DidYouMean is "; did you mean X?" where one of the candidates looks like name, or "".
func DidYouMean(name string, candidates []string) string { return didYouMean(name, candidates) }

func didYouMean(name string, candidates []string) string {
	if n := nearest(name, candidates); n != "" {
		return "; did you mean " + n + "?"
	}
	return ""
}

func nearestField(name string, known protoreflect.FieldDescriptors) string {
	names := make([]string, known.Len())
	for i := range names {
		names[i] = string(known.Get(i).Name())
	}
	return didYouMean(snake(name), names)
}

// snake is a field's name where its JSON name was written.
func snake(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			if i > 0 && b.Len() > 0 && s[i-1] != '_' {
				b.WriteByte('_')
			}
			c += 'a' - 'A'
		}
		b.WriteByte(c)
	}
	return b.String()
}

// nearestType looks for the type that was meant among those this binary has.
func nearestType(url string) string {
	const host = "type.googleapis.com/"
	name, ok := strings.CutPrefix(url, host)
	if !ok {
		if i := strings.LastIndexByte(url, '/'); i >= 0 {
			name = url[i+1:]
		}
	}
	if _, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name)); err == nil {
		return "; did you mean " + host + name + "?"
	}
	best, at := "", 4 // a slip of the pen: another filter is not what was meant
	protoregistry.GlobalTypes.RangeMessages(func(mt protoreflect.MessageType) bool {
		c := string(mt.Descriptor().FullName())
		if d := len(c) - len(name); d >= at || -d >= at || len(name) > 200 {
			return true
		}
		if d := levenshtein.ComputeDistance(name, c); d < at {
			best, at = c, d
		}
		return true
	})
	if best == "" {
		return ": not implemented"
	}
	return "; did you mean " + host + best + "?"
}
