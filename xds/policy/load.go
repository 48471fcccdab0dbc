package policy

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"sallyport/xds/document"
)

// ident is what a document is known by.
type ident struct {
	kind string
	Key
}

// entry is one document that was read: object is *Object[T] of its kind, nil where there are problems.
type entry struct {
	ident
	object   any
	doc      *document.Document
	refs     []string          // files that it refers to
	read     map[string][]byte // their content, by what is written in the document
	problems document.Problems
}

// kind says how the documents of a kind are read.
type kind struct {
	version string
	read    func(c *checker) any
}

// kinds is every kind there is.
var kinds = map[string]kind{
	KindGateway:        {GatewayVersion, readSpec(checkGateway)},
	KindHTTPRoute:      {GatewayVersion, readSpec(checkHTTPRoute)},
	KindSecret:         {coreVersion, readSecret},
	KindMesh:           {GroupVersion, readSpec(checkMesh)},
	KindServiceSubset:  {GroupVersion, readSpec(checkSubset)},
	KindJWT:            {GroupVersion, readSpec(checkJWT)},
	KindRateLimit:      {GroupVersion, readSpec(checkRateLimit)},
	KindLoadBalancer:   {GroupVersion, readSpec(checkLoadBalancer)},
	KindHealthCheck:    {GroupVersion, readSpec(checkHealthCheck)},
	KindCORS:           {GroupVersion, readSpec(checkCORS)},
	KindRetry:          {GroupVersion, readSpec(checkRetry)},
	KindTimeout:        {GroupVersion, readSpec(checkTimeout)},
	KindAuthorization:  {GroupVersion, readSpec(checkAuthorization)},
	KindOutlier:        {GroupVersion, readSpec(checkOutlier)},
	KindCircuitBreaker: {GroupVersion, readSpec(checkCircuitBreaker)},
	KindMutualTLS:      {GroupVersion, readSpec(checkMutualTLS)},
}

func kindNames() []string {
	names := make([]string, 0, len(kinds))
	for n := range kinds {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// readSpec reads a document with a spec of type T.
func readSpec[T any](check func(*checker, *T)) func(*checker) any {
	return func(c *checker) any {
		var shape struct {
			header `json:",inline"`
			Spec   T   `json:"spec"`
			Status any `json:"status"` // written by others: of no concern here
		}
		if c.problems = c.doc.Decode(&shape); len(c.problems) == 0 {
			check(c, &shape.Spec)
		}
		return &Object[T]{Kind: c.kind, Namespace: c.Namespace, Name: c.Name, Spec: shape.Spec, doc: c.doc}
	}
}

func readSecret(c *checker) any {
	var shape struct {
		header `json:",inline"`
		Secret `json:",inline"`
	}
	if c.problems = c.doc.Decode(&shape); len(c.problems) == 0 {
		checkSecret(c, &shape.Secret)
	}
	return &Object[Secret]{Kind: c.kind, Namespace: c.Namespace, Name: c.Name, Spec: shape.Secret, doc: c.doc}
}

// readDocument reads one document and checks what can be seen in it alone.
func readDocument(d *document.Document, open opener) *entry {
	e := &entry{doc: d, ident: ident{d.String("kind"), Key{d.String("metadata.namespace"), d.String("metadata.name")}}}
	if e.Namespace == "" {
		e.Namespace = "default"
	}
	fail := func(field, format string, args ...any) *entry {
		e.problems = append(e.problems, d.Problemf(field, format, args...))
		return e
	}
	k, known := kinds[e.kind]
	switch {
	case e.kind == "":
		return fail("kind", "is required; known: %s", strings.Join(kindNames(), ", "))
	case !known:
		return fail("kind", "%q is not known%s", e.kind, document.DidYouMean(e.kind, kindNames()))
	case d.String("apiVersion") != k.version:
		return fail("apiVersion", "%q is not that of a %s, which is %s", d.String("apiVersion"), e.kind, k.version)
	case e.Name == "":
		return fail("metadata.name", "is required")
	}
	c := &checker{ident: e.ident, doc: d, dir: filepath.Dir(d.File), open: open}
	for _, n := range []struct{ field, name string }{{"metadata.name", e.Name}, {"metadata.namespace", e.Namespace}} {
		if !isName(n.name) {
			return fail(n.field, "%q is not a name: lower-case letters, digits, dots and dashes, at most 253", n.name)
		}
	}
	object := k.read(c)
	e.refs, e.read = c.refs, c.read
	slices.SortStableFunc(c.problems, func(a, b *document.Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Field, b.Field))
	})
	if e.problems = c.problems; len(e.problems) == 0 {
		e.object = object
	}
	return e
}

// isName checks RFC 1123 subdomain names, as Kubernetes has them.
func isName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (c != '-' && c != '.' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return true
}

// Parse reads the documents of one file's text and links them among themselves.
func Parse(file string, data []byte) (*Set, document.Problems) {
	docs, p := document.Parse(file, data)
	if p != nil {
		return nil, document.Problems{p}
	}
	var l loader
	entries := make([]*entry, len(docs))
	for i, d := range docs {
		entries[i] = readDocument(d, fromDisk)
	}
	return l.settle(map[string][]*entry{file: entries}, nil)
}

// Load reads the documents of a folder. The Set is nil where there are problems.
func Load(dir string) (*Set, document.Problems) {
	var l loader
	set, problems := l.load(dir)
	if len(problems) > 0 {
		return nil, problems
	}
	return set, nil
}

// loader remembers what was good last. Not safe for concurrent use.
type loader struct {
	files  map[string][]*entry // what is in force, by file
	refs   []string            // files that documents, also refused ones, refer to
	folder fs.FileInfo         // that was read; nil: none yet, what is in force was kept over a restart
	lost   map[ident]bool      // refused, and no version of it is in force
}

// documents is how many are in force.
func (l *loader) documents() (n int) {
	for _, list := range l.files {
		n += len(list)
	}
	return n
}

// idents are those in force.
func (l *loader) idents() map[ident]*entry {
	out := map[ident]*entry{}
	for _, list := range l.files {
		for _, e := range list {
			out[e.ident] = e
		}
	}
	return out
}

// Limits on a folder.
const (
	maxFiles     = 10_000
	maxDocuments = 50_000
)

// listFiles are the YAML and JSON files in dir, sorted. Hidden ones are left out: a mounted ConfigMap has copies there.
func listFiles(dir string) ([]string, *document.Problem) {
	var out []string
	// Stat follows a link: dir may be one.
	if info, err := os.Stat(dir); err != nil {
		return nil, &document.Problem{File: dir, Text: "cannot be read: " + err.Error()}
	} else if !info.IsDir() {
		return nil, &document.Problem{File: dir, Text: "is not a folder"}
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, &document.Problem{File: dir, Text: "cannot be read: " + err.Error()}
	}
	for _, f := range list {
		path := filepath.Join(dir, f.Name())
		if strings.HasPrefix(f.Name(), ".") {
			continue
		}
		if f.IsDir() {
			below, p := listFiles(path)
			if p != nil {
				return nil, p
			}
			out = append(out, below...)
			continue
		}
		if slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(f.Name())) {
			out = append(out, path)
		}
	}
	if len(out) > maxFiles {
		return nil, &document.Problem{File: dir, Text: "has too many files"}
	}
	return out, nil
}

// load reads the folder. What is wrong keeps its last good version; the problems say what that is.
func (l *loader) load(dir string) (*Set, document.Problems) {
	paths, p := listFiles(dir)
	if p == nil {
		p = l.looksGone(dir, paths)
	}
	if p != nil {
		if l.files == nil {
			return nil, document.Problems{p}
		}
		set, _ := l.settle(l.files, nil)
		return set, document.Problems{p}
	}
	var problems document.Problems
	files := map[string][]*entry{}
	total := 0
	for _, path := range paths {
		data, p := document.ReadFile(path)
		var docs []*document.Document
		if p == nil {
			docs, p = document.Parse(path, data)
		}
		if total += len(docs); p == nil && total > maxDocuments {
			p = &document.Problem{File: path, Text: "there are too many documents in the folder"}
		}
		// A file that is being written, or was cut off, looks like this.
		if n := len(l.files[path]); p == nil && len(docs) == 0 && n > 0 {
			p = &document.Problem{File: path, Text: fmt.Sprintf("is empty; what was in it stays in force (%d). Delete the file to remove its policies", n)}
		}
		if p != nil {
			problems = append(problems, p)
			files[path] = l.files[path]
			continue
		}
		for _, d := range docs {
			files[path] = append(files[path], readDocument(d, fromDisk))
		}
	}
	return l.settle(files, problems)
}

// looksGone says that the folder holds nothing because it is not the one that it was: not mounted, say. A folder whose last
// file is deleted stays the same folder.
func (l *loader) looksGone(dir string, paths []string) *document.Problem {
	info, err := os.Stat(dir)
	if err != nil {
		return &document.Problem{File: dir, Text: "cannot be read: " + err.Error()}
	}
	if n := l.documents(); len(paths) == 0 && n > 0 && (l.folder == nil || !os.SameFile(l.folder, info)) {
		return &document.Problem{File: dir, Text: fmt.Sprintf("is empty, and held policies when it was read last; they stay in force (%d). "+
			"To remove them all, put a file without documents into it, one with a comment say", n)}
	}
	l.folder = info
	return nil
}

// settle decides which version of each document is in force, and makes the Set.
func (l *loader) settle(files map[string][]*entry, problems document.Problems) (*Set, document.Problems) {
	before := l.idents()
	l.refs = nil
	chosen, first, lost := map[string][]*entry{}, map[ident]*entry{}, map[string]bool{}
	for _, path := range sortedPaths(files) {
		for _, e := range files[path] {
			l.refs = append(l.refs, e.refs...)
			if other := first[e.ident]; other != nil && e.Name != "" {
				problems = append(problems, e.doc.Problemf("metadata.name", "there is a %s %s already, at %s:%d", e.kind, e.Key, other.doc.File, other.doc.Line()))
				continue
			}
			first[e.ident] = e
			problems = append(problems, e.problems...)
			if e.object == nil {
				e = before[e.ident]
				lost[path] = lost[path] || e == nil
			}
			if e != nil {
				chosen[path] = append(chosen[path], e)
			}
		}
	}
	for _, path := range sortedPaths(files) { // all are known now: one may have moved to another file
		if lost[path] {
			l.stay(path, first, chosen)
		}
	}
	// References among documents. What refers to nothing falls back to its last good version, and then to nothing; others
	// may refer to it in turn.
	for range 1 + 2*(len(first)+len(before)) { // each round takes a version of one document away
		set, bad := link(chosen)
		if len(bad) == 0 {
			l.files = chosen
			l.lost = map[ident]bool{}
			now := l.idents()
			for id := range first {
				if now[id] == nil {
					l.lost[id] = true
				}
			}
			return set, problems
		}
		for path, list := range chosen {
			for i, e := range list {
				p := bad[e]
				if p == nil {
					continue
				}
				for _, one := range p { // the last good version may have the same fault
					if !slices.ContainsFunc(problems, func(x *document.Problem) bool { return *x == *one }) {
						problems = append(problems, one)
					}
				}
				old := before[e.ident]
				if old == e {
					old = nil
				}
				list[i] = old
				lost[path] = lost[path] || old == nil
			}
			chosen[path] = slices.DeleteFunc(list, func(e *entry) bool { return e == nil })
			if lost[path] {
				l.stay(path, first, chosen)
			}
		}
	}
	set, _ := link(l.files)
	return set, problems
}

// stay keeps the documents of a file that are not in it any more, while one is refused that has no version in force: it may
// be any of them under another name, or under one that cannot be read.
func (l *loader) stay(path string, first map[ident]*entry, chosen map[string][]*entry) {
	for _, old := range l.files[path] {
		if first[old.ident] == nil {
			first[old.ident] = old
			chosen[path] = append(chosen[path], old)
		}
	}
}

func sortedPaths(m map[string][]*entry) []string {
	out := make([]string, 0, len(m))
	for p := range m {
		out = append(out, p)
	}
	sort.Strings(out)
	return out
}

// link puts the documents together. bad are those that refer to what is not there, or contradict another.
func link(files map[string][]*entry) (*Set, map[*entry]document.Problems) {
	s := newSet()
	k := &linker{set: s, bad: map[*entry]document.Problems{}, routes: map[Key]*HTTPRoute{}}
	var all []*entry
	for _, path := range sortedPaths(files) {
		all = append(all, files[path]...)
	}
	slices.SortStableFunc(all, func(a, b *entry) int { return compareKeys(a.Key, b.Key) })
	for _, e := range all { // what others refer to
		switch o := e.object.(type) {
		case *Gateway:
			s.Gateways[e.Key] = o
		case *HTTPRoute:
			s.HTTPRoutes = append(s.HTTPRoutes, o)
			k.routes[e.Key] = o
		case *Object[Secret]:
			s.Secrets[e.Key] = o
		case *Object[ServiceSubset]:
			s.Subsets[e.Key] = o
		}
	}
	for _, e := range all {
		k.entry = e
		switch o := e.object.(type) {
		case *Gateway:
			k.gateway(o)
		case *HTTPRoute:
			k.route(o)
		case *Object[Mesh]:
			if s.mesh != nil {
				k.fail("metadata.name", "there is another Mesh already, at %s:%d; there can be one", s.mesh.doc.File, s.mesh.doc.Line())
				continue
			}
			s.mesh, s.Mesh = o, o.Spec
		case *Object[JWT]:
			attach(k, s.JWT, o, o.Spec.targets)
		case *Object[RateLimit]:
			attach(k, s.RateLimit, o, o.Spec.targets)
		case *Object[MutualTLS]:
			attach(k, s.MutualTLS, o, o.Spec.targets)
		case *Object[LoadBalancer]:
			attach(k, s.LoadBalancer, o, o.Spec.targets)
		case *Object[HealthCheck]:
			attach(k, s.HealthCheck, o, o.Spec.targets)
		case *Object[CORS]:
			attach(k, s.CORS, o, o.Spec.targets)
		case *Object[Retry]:
			attach(k, s.Retry, o, o.Spec.targets)
		case *Object[Timeout]:
			attach(k, s.Timeout, o, o.Spec.targets)
		case *Object[Outlier]:
			attach(k, s.Outlier, o, o.Spec.targets)
		case *Object[CircuitBreaker]:
			attach(k, s.CircuitBreaker, o, o.Spec.targets)
		case *Object[Authorization]:
			for i, r := range o.Spec.TargetRefs {
				if t, ok := k.target(i, r); ok {
					s.Authorization[t] = append(s.Authorization[t], o)
				}
			}
		}
	}
	return s, k.bad
}

type linker struct {
	set    *Set
	routes map[Key]*HTTPRoute
	entry  *entry
	bad    map[*entry]document.Problems
}

func (k *linker) fail(field, format string, args ...any) {
	k.bad[k.entry] = append(k.bad[k.entry], k.entry.doc.Problemf(field, format, args...))
}

func attach[T any](k *linker, a Attached[T], o *Object[T], ts targets) {
	for i, r := range ts.TargetRefs {
		t, ok := k.target(i, r)
		if !ok {
			continue
		}
		if other := a[t]; other != nil && other != o {
			k.fail(document.Index("spec", "targetRefs", i), "%s is attached to that already, at %s:%d", other.ID(), other.doc.File, other.doc.Line())
			continue
		}
		a[t] = o
	}
}

// target finds what a targetRef means. Services are not looked for: the catalog has them, now or later.
func (k *linker) target(i int, r TargetRef) (Target, bool) {
	at := document.Index("spec", "targetRefs", i)
	key := Key{k.entry.Namespace, r.Name}
	t := Target{Kind: r.Kind, Key: key, Section: r.SectionName}
	switch r.Kind {
	case KindGateway:
		if k.set.Gateways[key] == nil {
			k.fail(document.At(at, "name"), "there is no Gateway %s%s", key, document.DidYouMean(r.Name, namesIn(k.set.Gateways, k.entry.Namespace)))
			return t, false
		}
	case KindHTTPRoute:
		route := k.routes[key]
		if route == nil {
			k.fail(document.At(at, "name"), "there is no HTTPRoute %s%s", key, document.DidYouMean(r.Name, namesIn(k.routes, k.entry.Namespace)))
			return t, false
		}
		var rules []string
		for _, rule := range route.Spec.Rules {
			if rule.Name != nil {
				rules = append(rules, string(*rule.Name))
			}
		}
		if r.SectionName != "" && !slices.Contains(rules, r.SectionName) {
			k.fail(document.At(at, "sectionName"), "HTTPRoute %s has no rule named %q%s", key, r.SectionName, document.DidYouMean(r.SectionName, rules))
			return t, false
		}
	}
	return t, true
}

func namesIn[V any](m map[Key]V, namespace string) (out []string) {
	for _, k := range sortedKeys(m) {
		if k.Namespace == namespace {
			out = append(out, k.Name)
		}
	}
	return out
}

func (k *linker) gateway(g *Gateway) {
	for i, l := range g.Spec.Listeners {
		if l.TLS == nil {
			continue
		}
		for j, ref := range l.TLS.CertificateRefs {
			if key := (Key{g.Namespace, string(ref.Name)}); k.set.Secrets[key] == nil {
				at := document.Index(document.At(document.Index("spec", "listeners", i), "tls"), "certificateRefs", j)
				k.fail(document.At(at, "name"), "there is no Secret %s%s", key, document.DidYouMean(key.Name, namesIn(k.set.Secrets, g.Namespace)))
			}
		}
	}
}

func (k *linker) route(r *HTTPRoute) {
	for i, ref := range r.Spec.ParentRefs {
		if isServiceRef(ref.Group, ref.Kind) {
			continue
		}
		at := document.Index("spec", "parentRefs", i)
		key := parentKey(r, ref)
		g := k.set.Gateways[key]
		if g == nil {
			k.fail(document.At(at, "name"), "there is no Gateway %s%s", key, document.DidYouMean(key.Name, namesIn(k.set.Gateways, key.Namespace)))
			continue
		}
		if len(ListenersOf(g, r, ref)) > 0 {
			continue
		}
		var names []string
		for _, l := range g.Spec.Listeners {
			names = append(names, string(l.Name))
		}
		switch {
		case ref.SectionName != nil && !slices.Contains(names, string(*ref.SectionName)):
			k.fail(document.At(at, "sectionName"), "Gateway %s has no listener %q%s", key, *ref.SectionName, document.DidYouMean(string(*ref.SectionName), names))
		case key.Namespace != r.Namespace:
			k.fail(at, "Gateway %s takes no routes of namespace %s; set allowedRoutes.namespaces.from: All on a listener", key, r.Namespace)
		default:
			k.fail(at, "no listener of Gateway %s takes the route: neither port nor hostname match", key)
		}
	}
	for i, rule := range r.Spec.Rules {
		for j, b := range rule.BackendRefs {
			if !isSubsetRef(b.Group, b.Kind) {
				continue
			}
			if key := (Key{r.Namespace, string(b.Name)}); k.set.Subsets[key] == nil {
				at := document.Index(document.Index("spec", "rules", i), "backendRefs", j)
				k.fail(document.At(at, "name"), "there is no ServiceSubset %s%s", key, document.DidYouMean(key.Name, namesIn(k.set.Subsets, r.Namespace)))
			}
		}
	}
}

func parentKey(r *HTTPRoute, ref gatewayv1.ParentReference) Key {
	key := Key{r.Namespace, string(ref.Name)}
	if ref.Namespace != nil {
		key.Namespace = string(*ref.Namespace)
	}
	return key
}
