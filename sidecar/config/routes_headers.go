package config

import (
	"sort"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/filter"
	"sallyport/sidecar/filter/list"
	"sallyport/sidecar/route"
)

func (c *routeCompiler) compileLevel(path string, removeRequest []string, addRequest []*corev3.HeaderValueOption,
	removeResponse []string, addResponse []*corev3.HeaderValueOption, overrides map[string]*anypb.Any) level {
	return level{
		request:   append(c.removals(path, "request_headers_to_remove", removeRequest), c.additions(path, "request_headers_to_add", addRequest)...),
		response:  append(c.removals(path, "response_headers_to_remove", removeResponse), c.additions(path, "response_headers_to_add", addResponse)...),
		overrides: c.overrides(path, overrides),
	}
}

// removals come before the additions of the same level, as in Envoy.
func (c *routeCompiler) removals(path, field string, names []string) (out []route.HeaderMutation) {
	for i, n := range names {
		n = strings.ToLower(n)
		c.mutable(fields.Index(path, field, i), n)
		out = append(out, route.HeaderMutation{Action: route.RemoveHeader, Name: n})
	}
	return out
}

func (c *routeCompiler) additions(path, field string, list []*corev3.HeaderValueOption) (out []route.HeaderMutation) {
	for i, o := range list {
		p := fields.Index(path, field, i)
		m := HeaderAddition(c.report, p, o, c.env.HeaderFormat)
		c.mutable(p+".header.key", m.Name)
		out = append(out, m)
	}
	return out
}

// mutable refuses the fields that routing and framing depend on.
func (c *routeCompiler) mutable(path, name string) {
	if name == "host" || strings.HasPrefix(name, ":") {
		c.Errorf(path, "%q: pseudo-header fields and host may not be modified; use prefix_rewrite, host_rewrite_literal and the like", name)
	}
}

var filterConfigFields = fields.Of(&routev3.FilterConfig{}, "config", "is_optional", "disabled").Strict()

// overrides compiles typed_per_filter_config: by the type of each value, since
// the key is whatever name the filter has in the connection manager.
func (c *routeCompiler) overrides(path string, m map[string]*anypb.Any) (out []route.Override) {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		p := fields.Key(path, "typed_per_filter_config", n)
		id, err := c.env.Filters.ID(n)
		if err != nil {
			c.Fail(p, err)
			continue
		}
		o := route.Override{Filter: id}
		a := m[n]
		optional := false
		if a.MessageIs((*routev3.FilterConfig)(nil)) {
			var f routev3.FilterConfig
			if err := a.UnmarshalTo(&f); err != nil {
				c.Errorf(p, "cannot be read as FilterConfig: %v", err)
				continue
			}
			checkFields(c.report, p, &f, filterConfigFields)
			a, o.Disabled, optional = f.GetConfig(), f.GetDisabled(), f.GetIsOptional()
			if a == nil {
				if !o.Disabled {
					c.Errorf(p+".config", "neither config nor disabled is set")
				}
				out = append(out, o)
				continue
			}
			p += ".config"
		}
		k := list.Override(a.GetTypeUrl())
		if k == nil {
			if optional {
				c.Warnf(p, "%s is not implemented; it was marked optional", a.GetTypeUrl())
			} else {
				c.Errorf(p, "%s is not implemented; remove it, or mark it is_optional in a FilterConfig; known: %s", a.GetTypeUrl(), strings.Join(list.Overrides(), ", "))
			}
			continue
		}
		o.Config = k.CompileRoute(c.filterCompiler(p, n), a)
		out = append(out, o)
	}
	return out
}

func (c *routeCompiler) filterCompiler(path, name string) *filter.Compiler {
	return &filter.Compiler{Report: c.report, Path: path, FilterName: name, Metrics: c.env.Metrics, Memory: c.env.Memory, Format: c.env.HeaderFormat}
}

// HeaderAddition compiles a HeaderValueOption that stands at path. A value with %COMMANDS% needs format.
func HeaderAddition(r *report, path string, o *corev3.HeaderValueOption, format func(string) (route.Formatter, error)) route.HeaderMutation {
	return filter.Addition(r, path, o, format)
}

// without is m with some fields cleared, for fields that are reported in other words.
func without[M proto.Message](m M, names ...protoreflect.Name) M {
	pm := m.ProtoReflect()
	for _, n := range names {
		f := pm.Descriptor().Fields().ByName(n)
		if !pm.Has(f) {
			continue
		}
		if pm == m.ProtoReflect() {
			pm = proto.Clone(m).ProtoReflect()
		}
		pm.Clear(f)
	}
	return pm.Interface().(M)
}
