package config

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"sallyport/sidecar/config/fields"
)

// Static are the compiled static resources of a bootstrap, in its order.
type Static struct {
	Clusters  []*Cluster
	Listeners []*Listener
}

// CompileStatic compiles the static resources of b: all or none. Its errors
// name the place in the file. Secrets go into env.Secrets.
func CompileStatic(b *Bootstrap, env Env) (*Static, error) {
	s := &Static{}
	var errs []error
	res := b.GetStaticResources()
	for i, m := range res.GetSecrets() {
		if env.Secrets != nil {
			errs = append(errs, b.At("secrets", i, env.Secrets.SetStatic(m)))
		}
	}
	dynamic := b.Dynamic()
	names := make(map[string]int, len(res.GetClusters()))
	known := make([]string, 0, len(res.GetClusters()))
	for i, m := range res.GetClusters() {
		c, err := CompileCluster(m, env)
		if first, twice := names[m.GetName()]; twice && err == nil {
			err = &fields.Error{Path: "name", Text: "is the name of another cluster, clusters[" + strconv.Itoa(first) + "]; a name may occur once"}
		}
		names[m.GetName()] = i
		known = append(known, m.GetName())
		if err == nil && m.GetName() == dynamic.Cluster {
			// The control plane's client does what the engine does not.
			c.Warnings = slices.DeleteFunc(c.Warnings, func(w Warning) bool { return strings.HasSuffix(w.Path, "http2_protocol_options.connection_keepalive") })
		}
		errs = append(errs, b.At("clusters", i, err))
		s.Clusters = append(s.Clusters, c)
	}
	listeners := map[string]int{}
	for i, m := range res.GetListeners() {
		var missing []string
		each := env
		each.Cluster = func(name string) any {
			if _, ok := names[name]; !ok && !slices.Contains(missing, name) {
				missing = append(missing, name)
			}
			if env.Cluster == nil {
				return nil
			}
			return env.Cluster(name)
		}
		if m.GetName() == "" {
			// Envoy makes a name up; ours is one that an operator recognizes.
			c := &compiler{report: &report{}}
			m.Name = c.address("address", m.GetAddress()).String()
		}
		l, err := CompileListener(m, each)
		if first, twice := listeners[m.GetName()]; twice && err == nil {
			err = &fields.Error{Path: "name", Text: "is the name of another listener, listeners[" + strconv.Itoa(first) + "]; a name may occur once"}
		}
		listeners[m.GetName()] = i
		errs = append(errs, b.At("listeners", i, err))
		if err == nil && !dynamic.CDS {
			for _, name := range missing {
				errs = append(errs, b.UnknownCluster(i, name, known))
			}
		}
		s.Listeners = append(s.Listeners, l)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

// Warnings of the static resources.
func (s *Static) Warnings() (out []Warning) {
	for _, c := range s.Clusters {
		out = append(out, c.Warnings...)
	}
	for _, l := range s.Listeners {
		out = append(out, l.Warnings...)
	}
	return out
}
