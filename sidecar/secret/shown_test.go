package secret_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"

	_ "sallyport/sidecar/config" // every message that the compiler knows, all of which may come in an Any
	"sallyport/sidecar/secret"
	_ "sallyport/sidecar/telemetry"
)

var update = flag.Bool("update", false, "rewrite testdata/shown.txt")

// plant makes a message in which one text holds a secret: fields leads to it. nil: there is no such text.
func plant(mt protoreflect.MessageType, fields []protoreflect.FieldDescriptor, word string) proto.Message {
	m := mt.New()
	set(m, fields, word)
	return m.Interface()
}

func set(m protoreflect.Message, fields []protoreflect.FieldDescriptor, word string) {
	fd := fields[0]
	value := func(fd protoreflect.FieldDescriptor, fresh func() protoreflect.Value) protoreflect.Value {
		switch fd.Kind() {
		case protoreflect.StringKind:
			return protoreflect.ValueOfString(word)
		case protoreflect.BytesKind:
			return protoreflect.ValueOfBytes([]byte(word))
		case protoreflect.MessageKind:
			v := fresh()
			if len(fields) > 1 {
				set(v.Message(), fields[1:], word)
			}
			return v
		}
		return fd.Default()
	}
	switch {
	case fd.IsMap():
		x := m.Mutable(fd).Map()
		key := protoreflect.ValueOfString("name").MapKey()
		if len(fields) == 1 { // the key is the text
			key = protoreflect.ValueOfString(word).MapKey()
		}
		x.Set(key, value(fd.MapValue(), x.NewValue))
	case fd.IsList():
		x := m.Mutable(fd).List()
		x.Append(value(fd, x.NewElement))
	default:
		m.Set(fd, value(fd, func() protoreflect.Value { return m.NewField(fd) }))
	}
}

// leaves calls f for each text of a message: its own, and those one message below.
func leaves(d protoreflect.MessageDescriptor, deep bool, f func(path []protoreflect.FieldDescriptor)) {
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		below := fd.Message()
		if fd.IsMap() {
			if fd.MapKey().Kind() != protoreflect.StringKind {
				continue
			}
			f([]protoreflect.FieldDescriptor{fd})
			below = fd.MapValue().Message()
		} else if fd.Kind() == protoreflect.StringKind || fd.Kind() == protoreflect.BytesKind {
			f([]protoreflect.FieldDescriptor{fd})
		}
		if deep && below != nil {
			leaves(below, false, func(path []protoreflect.FieldDescriptor) { f(append([]protoreflect.FieldDescriptor{fd}, path...)) })
		}
	}
}

// TestOnlyWhatIsListedIsShown plants a secret in every text of every message that this program knows, by itself and through the
// message above it, and compares what a dump shows of them with testdata/shown.txt. Whoever adds a line there says that no
// secret can be in it.
func TestOnlyWhatIsListedIsShown(t *testing.T) {
	var got []string
	planted := 0
	protoregistry.GlobalTypes.RangeMessages(func(mt protoreflect.MessageType) bool {
		d := mt.Descriptor()
		if n := string(d.FullName()); !strings.HasPrefix(n, "envoy.") && !strings.HasPrefix(n, "xds.") && !strings.HasPrefix(n, "udpa.") && !strings.HasPrefix(n, "google.protobuf.") ||
			d.ParentFile().Path() == "google/protobuf/descriptor.proto" || strings.HasPrefix(n, "envoy.admin.") || strings.HasPrefix(n, "envoy.service.") || strings.HasPrefix(n, "envoy.data.accesslog.") {
			return true // not in a configuration
		}
		leaves(d, true, func(path []protoreflect.FieldDescriptor) {
			planted++
			word := fmt.Sprintf("s%016x", rand.Uint64())
			a, err := anypb.New(plant(mt, path, word))
			if err != nil {
				t.Fatal(err)
			}
			shown := strings.Contains(text(t, secret.Redact(a)), word)
			if !shown {
				return
			}
			if secret.Holds(a) != "" {
				t.Errorf("%s: is shown, and not to be kept on disk", line(d, path))
			}
			// What is shown by itself need not be said again of each message above it.
			if len(path) == 2 && strings.Contains(text(t, secret.Redact(plant(messageType(path[1].ContainingMessage()), path[1:], word))), word) {
				return
			}
			got = append(got, line(d, path))
		})
		return true
	})
	slices.Sort(got)
	out := strings.Join(got, "\n") + "\n"
	const golden = "testdata/shown.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Fields(string(want))
	for _, l := range got {
		if !slices.Contains(old, l) {
			t.Errorf("%s is shown, and is not in %s", l, golden)
		}
	}
	for _, l := range old {
		if !slices.Contains(got, l) {
			t.Errorf("%s is in %s, and is not shown", l, golden)
		}
	}
	if planted < 1200 {
		t.Errorf("only %d secrets were planted", planted)
	}
}

func messageType(d protoreflect.MessageDescriptor) protoreflect.MessageType {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err)
	}
	return mt
}

func line(d protoreflect.MessageDescriptor, path []protoreflect.FieldDescriptor) string {
	s := string(d.FullName())
	for _, fd := range path {
		s += "." + string(fd.Name())
	}
	return s
}

// text is everything in a message, in Any fields too.
func text(t testing.TB, m proto.Message) string {
	t.Helper()
	b, err := prototext.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + string(raw)
}
