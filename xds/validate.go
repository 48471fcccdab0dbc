package xds

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/xds/build"
	"sallyport/xds/catalog"
	"sallyport/xds/document"
	"sallyport/xds/policy"
)

// Problem is one mistake, on one line: "file:line:column: field: what is wrong".
type Problem = document.Problem

// Validate reads a catalog file and a folder of policies as a control plane would, looks whether what they name exists and
// can do what is asked of it, and builds the configuration of every proxy that there could be. Either may be "", and is then not looked at: without a
// catalog, services are taken to exist.
func Validate(catalogFile, policiesDir string) []*Problem {
	var problems document.Problems
	snapshot := &catalog.Snapshot{}
	if catalogFile != "" {
		s, p := catalog.LoadFile(catalogFile)
		problems = append(problems, p...)
		if s != nil {
			snapshot = s
		}
	}
	set := policy.Empty()
	if policiesDir != "" {
		s, p := policy.Load(policiesDir)
		problems = append(problems, p...)
		if s != nil {
			set = s
		}
	}
	if len(problems) > 0 {
		return order(problems)
	}
	if catalogFile != "" {
		problems = append(problems, references(snapshot, set)...)
		for _, c := range build.Conflicts(snapshot, set) {
			problems = append(problems, c.Problem)
		}
	}
	problems = append(problems, attempt(snapshot, set, cmp.Or(policiesDir, catalogFile))...)
	return order(problems)
}

func order(p document.Problems) []*Problem {
	slices.SortStableFunc(p, func(a, b *Problem) int { return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line)) })
	return p
}

// references looks for services that policies name and the catalog does not have. A running control plane waits for them.
func references(c *catalog.Snapshot, s *policy.Set) (out document.Problems) {
	lacks := func(k policy.Key) (string, bool) {
		n := catalog.Name{Namespace: k.Namespace, Name: k.Name}
		if c.Services[n] != nil {
			return "", false
		}
		var names []string
		for _, other := range c.Names() {
			if other.Namespace == k.Namespace {
				names = append(names, other.Name)
			}
		}
		return fmt.Sprintf("the catalog has no service %s%s", n, document.DidYouMean(k.Name, names)), true
	}
	for _, r := range s.HTTPRoutes {
		for i, ref := range r.Spec.ParentRefs {
			if ref.Kind != nil && *ref.Kind == policy.KindService {
				if text, bad := lacks(policy.Key{Namespace: r.Namespace, Name: string(ref.Name)}); bad {
					out = append(out, r.Problemf(document.At(document.Index("spec", "parentRefs", i), "name"), "%s", text))
				}
			}
		}
		for i, rule := range r.Spec.Rules {
			for j, ref := range rule.BackendRefs {
				b := s.BackendOf(r, ref.BackendObjectReference)
				if text, bad := lacks(b.Service); bad && b.Subset == nil {
					at := document.Index(document.Index("spec", "rules", i), "backendRefs", j)
					out = append(out, r.Problemf(document.At(at, "name"), "%s", text))
				}
			}
		}
	}
	for _, sub := range s.Subsets {
		if text, bad := lacks(policy.Key{Namespace: sub.Namespace, Name: sub.Spec.Service}); bad {
			out = append(out, sub.Problemf("spec.service", "%s", text))
		}
	}
	s.Targets(func(problem func(string, ...any) *document.Problem, t policy.Target) {
		if t.Kind != policy.KindService {
			return
		}
		if text, bad := lacks(t.Key); bad {
			out = append(out, problem("%s", text))
		}
	})
	return out
}

// attempt builds the sidecar of each service, which calls all the others, and the edge of each gateway.
func attempt(c *catalog.Snapshot, s *policy.Set, file string) (out document.Problems) {
	in := build.Input{Catalog: c, Policy: s, TrustDomain: spiffeid.RequireTrustDomainFromString("example.org")}
	if s.Mesh.TrustDomain != "" {
		in.TrustDomain = spiffeid.TrustDomain{}
	}
	var proxies []build.Proxy
	for i, n := range c.Names() {
		if i == 1000 {
			break // enough to see whether it can be done
		}
		proxies = append(proxies, build.Proxy{Kind: build.Sidecar, Namespace: n.Namespace, Service: n.Name, Port: 8080,
			Upstreams: []build.Upstream{{Service: n, Port: 9000}}})
	}
	for _, g := range s.GatewayNames() {
		for _, kind := range []build.Kind{build.Edge, build.L4} {
			proxies = append(proxies, build.Proxy{Kind: kind, Namespace: g.Namespace, Gateway: g.Name})
		}
	}
	for _, p := range proxies {
		if _, err := build.Build(in, p); err != nil {
			out = append(out, &Problem{File: file, Text: err.Error()})
		}
	}
	return out
}
