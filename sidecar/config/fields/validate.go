package fields

import (
	"strings"

	"google.golang.org/protobuf/proto"
)

// validator is what protoc-gen-validate makes of the rules in Envoy's protos.
type validator interface {
	proto.Message
	ValidateAll() error
}

// violation is the error of one rule.
type violation interface {
	Field() string
	Reason() string
	Cause() error
}

// Validate checks m, which stands at path, and the messages in it against the
// rules in Envoy's proto files (lengths, ranges, required fields), and reports
// every violation under the path of its field. It says whether all hold. Any
// fields are opaque to it: whoever unpacks one validates it.
func Validate(r *Report, path string, m validator) bool {
	n := r.Count()
	if err := m.ValidateAll(); err != nil {
		violations(r, path, err)
	}
	return r.Count() == n
}

func violations(r *Report, path string, err error) {
	if many, ok := err.(interface{ AllErrors() []error }); ok {
		for _, e := range many.AllErrors() {
			violations(r, path, e)
		}
		return
	}
	v, ok := err.(violation)
	if !ok {
		r.Errorf(path, "%s", err)
		return
	}
	p := At(path, snake(v.Field()))
	if v.Cause() != nil {
		if _, ok := v.Cause().(violation); ok {
			violations(r, p, v.Cause())
			return
		}
		if _, ok := v.Cause().(interface{ AllErrors() []error }); ok {
			violations(r, p, v.Cause())
			return
		}
		r.Errorf(p, "%s: %s", v.Reason(), v.Cause())
		return
	}
	r.Errorf(p, "%s", v.Reason())
}

// snake turns a Go field name, with an index if it has one, into the proto's:
// "VirtualHosts[0]" is virtual_hosts[0].
func snake(s string) string {
	name, index := s, ""
	if i := strings.IndexByte(s, '['); i >= 0 {
		name, index = s[:i], s[i:]
	}
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			if i > 0 {
				b.WriteByte('_')
			}
			c |= 0x20
		}
		b.WriteByte(c)
	}
	return b.String() + index
}
