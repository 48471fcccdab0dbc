package secret

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/cncf/xds/go/udpa/annotations"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

const redacted = "[redacted]"

// Redact returns a copy of m that may be shown (/config_dump): every text in it, in Any fields too, is blotted out unless it
// is on the list of what may be shown. Of an Any of a type that this program does not know the type remains.
func Redact[M proto.Message](m M) M {
	c := proto.Clone(m).(M)
	w := walk{change: true}
	w.message(c.ProtoReflect(), judged, "", 0)
	return c
}

// Holds says where in m something is that must not be kept on disk, "" where there is nothing: a key, a credential, and any
// text of which nobody has said what it is. It is less than what Redact blots out: the value of an ordinary header is not
// shown, but is no secret.
func Holds(m proto.Message) (path string) {
	w := walk{}
	w.message(m.ProtoReflect(), judged, "", 0)
	return w.found
}

// class is what may be done with a text.
type class uint8

const (
	open   class = iota // show it, keep it
	hidden              // keep it
	secret              // neither
)

// view is what is known of the texts below a field.
type view uint8

const (
	judged view = iota // each by its own field
	opened             // all are open
	hid                // all are hidden, unless one of them is a secret by its own field
	closed             // all are secret
)

func (v view) class(m mark) class {
	switch {
	case v == opened || v == judged && m != unlisted:
		return open
	case v == hid:
		return hidden
	}
	return secret
}

func viewOf(c class) view { return [...]view{open: opened, hidden: hid, secret: closed}[c] }

// walk goes over every text of a message.
type walk struct {
	change bool   // blot out what is not open
	found  string // the first secret
}

// maxDepth bounds the nesting of Any fields.
const maxDepth = 50

func (w *walk) message(m protoreflect.Message, v view, path string, depth int) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		w.any(a, v, path, depth)
		return
	}
	name := m.Descriptor().FullName()
	fields := marks()[name]
	m.Range(func(fd protoreflect.FieldDescriptor, x protoreflect.Value) bool {
		at := join(path, string(fd.Name()))
		inner, c := v, v.class(fields[fd.Name()])
		switch {
		case v == closed:
		case sensitive(fd):
			inner, c = closed, secret
		case fields[fd.Name()] == allBelow:
			inner = opened
		case v == judged:
			if own, ok := special(name, m, fd); ok {
				inner, c = viewOf(own), own
			}
		}
		switch {
		case fd.IsMap():
			w.mapping(m, fd, x.Map(), inner, c, at, depth)
		case fd.IsList():
			for i := range x.List().Len() {
				e, at := x.List().Get(i), fmt.Sprintf("%s[%d]", at, i)
				if fd.Message() != nil {
					w.message(e.Message(), inner, at, depth+1)
				} else if n, changed := w.leaf(fd, e, c, at); changed {
					x.List().Set(i, n)
				}
			}
		case fd.Message() != nil:
			w.message(x.Message(), inner, at, depth+1)
		case v == judged && slices.Contains(urls, fd.FullName()):
			clean, credentials := cleanURL(x.String())
			if credentials {
				w.note(at)
			}
			if w.change {
				m.Set(fd, protoreflect.ValueOfString(clean))
			}
		default:
			if n, changed := w.leaf(fd, x, c, at); changed {
				m.Set(fd, n)
			}
		}
		return true
	})
	if len(m.GetUnknown()) > 0 {
		w.note(path)
		if w.change {
			m.SetUnknown(nil)
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// any goes over the message in an Any. What cannot be read is not shown.
func (w *walk) any(a *anypb.Any, v view, path string, depth int) {
	inner, err := a.UnmarshalNew()
	if err != nil || depth > maxDepth {
		if len(a.Value) > 0 {
			w.note(path)
		}
		if w.change {
			a.Value = nil
		}
		return
	}
	w.message(inner.ProtoReflect(), v, path, depth+1)
	if !w.change {
		return
	}
	a.Value, err = proto.MarshalOptions{Deterministic: true}.Marshal(inner)
	if err != nil {
		a.Value = nil
	}
}

func (w *walk) mapping(m protoreflect.Message, fd protoreflect.FieldDescriptor, x protoreflect.Map, v view, c class, path string, depth int) {
	ofStruct := m.Descriptor().FullName() == structMessage
	if ofStruct && v == hid {
		c = open // names of values inside of values
	}
	var renamed []string
	x.Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
		inner, at := v, path+"["+k.String()+"]"
		if fd.MapKey().Kind() == protoreflect.StringKind && c != open {
			if c == secret {
				at = path
				w.note(at)
			}
			renamed = append(renamed, k.String())
		}
		if ofStruct && (v == judged || v == hid) { // only their names say what its values are
			if inner = hid; credential(k.String()) {
				inner = closed
			}
		}
		if fd.MapValue().Message() != nil {
			w.message(e.Message(), inner, at, depth+1)
		} else if n, changed := w.leaf(fd.MapValue(), e, c, at); changed {
			x.Set(k, n)
		}
		return true
	})
	if !w.change {
		return
	}
	slices.Sort(renamed)
	for i, k := range renamed {
		key := protoreflect.ValueOfString(k).MapKey()
		value := x.Get(key)
		x.Clear(key)
		x.Set(protoreflect.ValueOfString(fmt.Sprintf("%s %d", redacted, i+1)).MapKey(), value)
	}
}

// pemKey is in every private key that is written as PEM, wherever it was put: beside its certificate, for one.
const pemKey = "PRIVATE KEY-----"

// leaf judges one value, and says what stands in its place.
func (w *walk) leaf(fd protoreflect.FieldDescriptor, x protoreflect.Value, c class, path string) (protoreflect.Value, bool) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		if x.String() == "" {
			return x, false
		}
		if strings.Contains(x.String(), pemKey) {
			c = secret
		}
	case protoreflect.BytesKind:
		if len(x.Bytes()) == 0 {
			return x, false
		}
		if bytes.Contains(x.Bytes(), []byte(pemKey)) {
			c = secret
		}
	default:
		return x, false // a number tells nothing
	}
	if c == secret {
		w.note(path)
	}
	if c == open || !w.change {
		return x, false
	}
	if fd.Kind() == protoreflect.BytesKind {
		return protoreflect.ValueOfBytes([]byte(redacted)), true
	}
	return protoreflect.ValueOfString(redacted), true
}

func (w *walk) note(path string) {
	if w.found == "" {
		w.found = cmp.Or(path, "the whole of it")
	}
}

func sensitive(fd protoreflect.FieldDescriptor) bool {
	o := fd.Options()
	return o != nil && proto.HasExtension(o, annotations.E_Sensitive) && proto.GetExtension(o, annotations.E_Sensitive).(bool)
}

// Messages whose texts are judged by more than their field.
const (
	structMessage = "google.protobuf.Struct"
	headerValue   = "envoy.config.core.v3.HeaderValue"
	headerMatcher = "envoy.config.route.v3.HeaderMatcher"
	queryMatcher  = "envoy.config.route.v3.QueryParameterMatcher"
	jwtProvider   = "envoy.extensions.filters.http.jwt_authn.v3.JwtProvider"
)

// urls are fields with a URL, or the path of one, of which user, query and fragment are not shown.
var urls = []protoreflect.FullName{"envoy.config.core.v3.HttpUri.uri", "envoy.config.core.v3.HealthCheck.HttpHealthCheck.path",
	"envoy.config.route.v3.RedirectAction.path_redirect", "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TunnelingConfig.post_path"}

// special is the class of a field, and of everything below it, that depends on its neighbors; ok says that it is such a field.
func special(message protoreflect.FullName, m protoreflect.Message, fd protoreflect.FieldDescriptor) (c class, ok bool) {
	sibling := func(name protoreflect.Name) string { return m.Get(m.Descriptor().Fields().ByName(name)).String() }
	switch message {
	case headerValue:
		if fd.Name() == "value" || fd.Name() == "raw_value" {
			return headerClass(sibling("key"), m.Get(fd).String()), true
		}
	case headerMatcher:
		if fd.Name() != "name" {
			return headerClass(sibling("name"), ""), true
		}
	case queryMatcher:
		if fd.Name() != "name" {
			if credential(sibling("name")) {
				return secret, true
			}
			return hidden, true
		}
	case jwtProvider:
		if fd.Name() == "local_jwks" {
			d, _ := m.Get(fd).Message().Interface().(*corev3.DataSource)
			keys := slices.Concat(d.GetInlineBytes(), []byte(d.GetInlineString()))
			if len(keys) > 0 { // not in a file
				return jwksClass(keys), true
			}
		}
	}
	return 0, false
}
