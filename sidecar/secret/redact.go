package secret

import (
	"github.com/cncf/xds/go/udpa/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

const redacted = "[redacted]"

// Redact returns a copy of m in which every field that Envoy's protos call
// sensitive (udpa.annotations.sensitive) is blotted out, in Any fields too:
// what /config_dump may show. What cannot be decoded is left out.
func Redact[M proto.Message](m M) M {
	c := proto.Clone(m).(M)
	redact(c.ProtoReflect(), false, 0)
	return c
}

func redact(m protoreflect.Message, hide bool, depth int) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil || depth > 50 {
			a.Value = nil
			return
		}
		redact(inner.ProtoReflect(), hide, depth+1)
		if b, err := (proto.MarshalOptions{Deterministic: true}).Marshal(inner); err == nil {
			a.Value = b
		} else {
			a.Value = nil
		}
		return
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		secret := hide || sensitive(fd)
		switch {
		case fd.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				if fd.MapValue().Message() != nil {
					redact(e.Message(), secret, depth+1)
				} else if secret {
					v.Map().Set(k, blot(fd.MapValue(), e))
				}
				return true
			})
		case fd.IsList():
			for i := range v.List().Len() {
				if e := v.List().Get(i); fd.Message() != nil {
					redact(e.Message(), secret, depth+1)
				} else if secret {
					v.List().Set(i, blot(fd, e))
				}
			}
		case fd.Message() != nil:
			redact(v.Message(), secret, depth+1)
		case secret:
			m.Set(fd, blot(fd, v))
		}
		return true
	})
}

func sensitive(fd protoreflect.FieldDescriptor) bool {
	o := fd.Options()
	return o != nil && proto.HasExtension(o, annotations.E_Sensitive) && proto.GetExtension(o, annotations.E_Sensitive).(bool)
}

func blot(fd protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(redacted)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(redacted))
	}
	return fd.Default()
}
