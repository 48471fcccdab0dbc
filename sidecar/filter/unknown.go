package filter

import (
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"

	"sallyport/sidecar/config/fields"
)

// refuseUnknown reports the fields of m, and of all messages in it, that this
// program's protos do not know. What they say could restrict what is left:
// compile functions look at the fields of the messages that they name, and a
// small message in them is soon forgotten.
func (c *Compiler) refuseUnknown(m Message) {
	err := protorange.Range(m.ProtoReflect(), func(v protopath.Values) error {
		last := v.Index(-1)
		in, is := last.Value.Interface().(protoreflect.Message)
		if !is {
			return nil
		}
		if num, _, n := protowire.ConsumeTag(in.GetUnknown()); n > 0 {
			// The path begins with the message's own type, in parentheses.
			_, path, _ := strings.Cut(v.Path.String(), ")")
			c.Errorf(fields.At(c.Path, strings.TrimPrefix(path, ".")), "%s has a field that is not known (number %d); refused because the rest must not be used without it",
				in.Descriptor().FullName(), num)
		}
		return nil
	})
	if err != nil {
		c.Fail(c.Path, err)
	}
}
