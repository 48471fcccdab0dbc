package catalog

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/xds/document"
	"sallyport/xds/filewatch"
)

// File is the catalog in a YAML file.
type File struct {
	path string
	poll time.Duration
	log  *slog.Logger

	// Owned by Run.
	seen   bool
	digest [sha256.Size]byte // of what was read last
	last   *Snapshot         // what was published last

	mu     sync.Mutex
	status Status
}

// filePoll is how often the content is compared without having been told of a change.
const filePoll = time.Second

// NewFile makes a source of the file. poll 0 is one second.
func NewFile(path string, poll time.Duration, log *slog.Logger) *File {
	if poll <= 0 {
		poll = filePoll
	}
	if log == nil {
		log = slog.Default()
	}
	return &File{path: path, poll: poll, log: log, status: Status{Source: path}}
}

// Status implements Source.
func (f *File) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// Run implements Source. A file that is wrong leaves in force what was read last; at the start that is nothing, and it
// is read again until it is right.
func (f *File) Run(ctx context.Context, publish func(*Snapshot)) error {
	path, err := filepath.Abs(f.path)
	if err != nil {
		path = f.path
	}
	told := make(chan struct{}, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		filewatch.Watch(ctx, f.poll, func() []string { return []string{path} }, func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
	})
	// The content is compared as well: a file can change without its size and times, and not all file systems tell.
	tick := time.NewTicker(f.poll)
	defer tick.Stop()
	for ctx.Err() == nil {
		f.read(publish)
		select {
		case <-ctx.Done():
		case <-told:
		case <-tick.C:
		}
	}
	return nil
}

// read takes the file in if it is another than last time.
func (f *File) read(publish func(*Snapshot)) {
	data, p := document.ReadFile(f.path)
	digest := sha256.Sum256(data)
	if p != nil {
		digest = sha256.Sum256([]byte("\x00" + p.Error()))
	}
	if f.seen && digest == f.digest {
		return
	}
	f.seen, f.digest = true, digest
	var s *Snapshot
	problems := document.Problems{p}
	if p == nil {
		s, problems = ParseFile(f.path, data)
	}
	if err := problems.Err(); err != nil {
		for _, p := range problems {
			f.log.Error("catalog file refused, what was read last stays in force", "problem", p.Error())
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.status.Connected, f.status.Error, f.status.LastError = false, err.Error(), err.Error()
		return
	}
	same := f.last != nil && reflect.DeepEqual(f.last, s)
	f.mu.Lock()
	recovered := f.status.Error != ""
	f.status.Connected, f.status.Error = true, ""
	if !same {
		f.status.Loaded, f.status.Changed = true, time.Now()
	}
	f.mu.Unlock()
	if recovered {
		f.log.Info("catalog file is right again", "path", f.path)
	}
	if !same {
		f.last = s
		publish(s)
	}
}

// What the file looks like.
type (
	fileCatalog struct {
		Services         []fileService   `json:"services"`
		Intentions       []fileIntention `json:"intentions"`
		DefaultIntention string          `json:"defaultIntention"`
	}
	fileService struct {
		Name      string         `json:"name"`
		Namespace string         `json:"namespace"`
		Protocol  string         `json:"protocol"`
		Instances []fileInstance `json:"instances"`
	}
	fileInstance struct {
		ID       string            `json:"id"`
		Address  string            `json:"address"`
		Port     uint32            `json:"port"`
		Sidecar  *fileEndpoint     `json:"sidecar"`
		Health   string            `json:"health"`
		Weight   *uint32           `json:"weight"`
		Tags     []string          `json:"tags"`
		Meta     map[string]string `json:"meta"`
		Locality struct {
			Region string `json:"region"`
			Zone   string `json:"zone"`
		} `json:"locality"`
	}
	fileEndpoint struct {
		Address string `json:"address"`
		Port    uint32 `json:"port"`
	}
	fileIntention struct {
		Source      string           `json:"source"`
		Destination string           `json:"destination"`
		Action      string           `json:"action"`
		Permissions []filePermission `json:"permissions"`
	}
	filePermission struct {
		Action     string       `json:"action"`
		Path       string       `json:"path"`
		PathPrefix string       `json:"pathPrefix"`
		PathRegex  string       `json:"pathRegex"`
		Methods    []string     `json:"methods"`
		Headers    []fileHeader `json:"headers"`
	}
	fileHeader struct {
		Name       string `json:"name"`
		Exact      string `json:"exact"`
		Prefix     string `json:"prefix"`
		Suffix     string `json:"suffix"`
		Contains   string `json:"contains"`
		Regex      string `json:"regex"`
		Present    bool   `json:"present"`
		Invert     bool   `json:"invert"`
		IgnoreCase bool   `json:"ignoreCase"`
	}
)

// Limits on a file.
const (
	maxServices  = 50_000
	maxInstances = 200_000
	maxWeight    = 65_535
)

// LoadFile reads a catalog file.
func LoadFile(path string) (*Snapshot, document.Problems) {
	data, p := document.ReadFile(path)
	if p != nil {
		return nil, document.Problems{p}
	}
	return ParseFile(path, data)
}

// ParseFile reads the text of a catalog file; path stands for it in problems.
func ParseFile(path string, data []byte) (*Snapshot, document.Problems) {
	docs, p := document.Parse(path, data)
	if p != nil {
		return nil, document.Problems{p}
	}
	s := &Snapshot{Services: map[Name]*Service{}}
	// A file that is being written, or was cut off, looks like this.
	if len(docs) == 0 {
		return nil, document.Problems{{File: path, Text: "is empty; write \"services: []\" for a catalog without services"}}
	}
	if len(docs) > 1 {
		return nil, document.Problems{docs[1].Problemf("", `a catalog is one document; remove what follows "---"`)}
	}
	r := &fileReader{doc: docs[0], out: s, ids: map[string]string{}}
	var c fileCatalog
	if r.problems = docs[0].Decode(&c); len(r.problems) > 0 {
		return nil, r.problems
	}
	r.catalog(&c)
	if len(r.problems) > 0 {
		return nil, r.problems
	}
	s.sort()
	return s, nil
}

type fileReader struct {
	doc       *document.Document
	out       *Snapshot
	ids       map[string]string // namespace, service and id → field
	instances int
	problems  document.Problems
}

func (r *fileReader) fail(field, format string, args ...any) {
	if len(r.problems) < 20 {
		r.problems = append(r.problems, r.doc.Problemf(field, format, args...))
	}
}

func (r *fileReader) catalog(c *fileCatalog) {
	if c.Services == nil {
		r.fail("services", "is required; write \"services: []\" for a catalog without services")
		return
	}
	if c.DefaultIntention != "" {
		r.oneOf("defaultIntention", c.DefaultIntention, string(Allow), string(Deny))
		r.out.DefaultIntention = Action(c.DefaultIntention)
	}
	if len(c.Services) > maxServices {
		r.fail("services", "has %d entries; at most %d are allowed", len(c.Services), maxServices)
		return
	}
	for i := range c.Services {
		at := document.Index("", "services", i)
		v := r.service(at, &c.Services[i])
		if _, twice := r.out.Services[v.Name]; twice {
			r.fail(document.At(at, "name"), "%q occurs twice; list all instances under one service", v.Name)
		}
		r.out.Services[v.Name] = v
	}
	seen := map[[2]Name]bool{}
	for i := range c.Intentions {
		at := document.Index("", "intentions", i)
		in := r.intention(at, &c.Intentions[i])
		key := [2]Name{in.Source, in.Destination}
		if seen[key] {
			r.fail(at, "there is another intention from %s to %s; write one with permissions", in.Source, in.Destination)
		}
		seen[key] = true
		if v := r.out.Services[in.Destination]; v != nil && !v.Protocol.IsHTTP() && len(in.Permissions) > 0 {
			r.fail(document.At(at, "permissions"), "%s speaks tcp, whose requests cannot be told apart; set action instead", in.Destination)
		}
		r.out.Intentions = append(r.out.Intentions, in)
	}
}

// segment checks a name, which becomes part of a SPIFFE ID and of the names of xDS resources.
func (r *fileReader) segment(field, s string) {
	if s == "" {
		r.fail(field, "is required")
	} else if err := spiffeid.ValidatePathSegment(s); err != nil {
		r.fail(field, "%q is not a name: letters, digits, dots, dashes and underscores are allowed", s)
	}
}

// oneOf checks a word.
func (r *fileReader) oneOf(field, s string, known ...string) {
	if !slices.Contains(known, s) {
		r.fail(field, "%q is not known%s", s, document.DidYouMean(s, known))
	}
}

func (r *fileReader) service(at string, in *fileService) *Service {
	if in.Namespace == "" {
		in.Namespace = DefaultNamespace
	}
	v := &Service{Name: Name{in.Namespace, in.Name}, Protocol: HTTP}
	r.segment(document.At(at, "name"), in.Name)
	r.segment(document.At(at, "namespace"), in.Namespace)
	if in.Protocol != "" {
		r.oneOf(document.At(at, "protocol"), in.Protocol, Protocols...)
		v.Protocol = Protocol(in.Protocol)
	}
	if r.instances += len(in.Instances); r.instances > maxInstances {
		r.fail(document.At(at, "instances"), "more than %d instances in all", maxInstances)
		return v
	}
	for i := range in.Instances {
		v.Instances = append(v.Instances, r.instance(document.Index(at, "instances", i), v.Name, &in.Instances[i]))
	}
	return v
}

func (r *fileReader) instance(at string, service Name, in *fileInstance) Instance {
	out := Instance{ID: in.ID, Endpoint: Endpoint{in.Address, in.Port}, Healthy: true, Weight: 1, Tags: in.Tags, Meta: in.Meta,
		Region: in.Locality.Region, Zone: in.Locality.Zone}
	r.endpoint(at, in.Address, in.Port)
	if out.ID == "" {
		out.ID = netip.AddrPortFrom(addr(in.Address), uint16(in.Port)).String()
	}
	key := service.String() + "/" + out.ID
	if first := r.ids[key]; first != "" {
		r.fail(at, "has the same id %q as %s; give each instance an id of its own", out.ID, first)
	}
	r.ids[key] = at
	if in.Sidecar != nil {
		out.Sidecar = Endpoint{in.Sidecar.Address, in.Sidecar.Port}
		if out.Sidecar.Address == "" {
			out.Sidecar.Address = in.Address
		}
		r.endpoint(document.At(at, "sidecar"), out.Sidecar.Address, in.Sidecar.Port)
	}
	if in.Health != "" {
		r.oneOf(document.At(at, "health"), in.Health, "passing", "critical")
		out.Healthy = in.Health == "passing"
	}
	if in.Weight != nil {
		if out.Weight = *in.Weight; out.Weight < 1 || out.Weight > maxWeight {
			r.fail(document.At(at, "weight"), "%d is not between 1 and %d", out.Weight, maxWeight)
		}
	}
	return out
}

func addr(s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}

func (r *fileReader) endpoint(at, address string, port uint32) {
	switch {
	case address == "":
		r.fail(document.At(at, "address"), "is required: the IP address of the instance")
	case !addr(address).IsValid():
		r.fail(document.At(at, "address"), "%q is not an IP address", address)
	}
	if port < 1 || port > 65535 {
		r.fail(document.At(at, "port"), "%d is not a port", port)
	}
}

func (r *fileReader) party(field, s string) Name {
	if s == "" {
		r.fail(field, "is required: NAME, NAMESPACE/NAME or *")
		return Name{}
	}
	if s == Wildcard {
		return Name{Wildcard, Wildcard}
	}
	n := ParseName(s, DefaultNamespace)
	if n.Name != Wildcard {
		r.segment(field, n.Name)
	}
	if n.Namespace == Wildcard && n.Name == Wildcard {
		return n
	}
	r.segment(field, n.Namespace)
	return n
}

func (r *fileReader) intention(at string, in *fileIntention) Intention {
	out := Intention{Source: r.party(document.At(at, "source"), in.Source), Destination: r.party(document.At(at, "destination"), in.Destination)}
	out.Precedence = precedence(out.Source, out.Destination)
	switch {
	case in.Action != "" && in.Permissions != nil:
		r.fail(document.At(at, "permissions"), "cannot be together with action: each permission has its own")
	case in.Permissions != nil && len(in.Permissions) == 0:
		r.fail(document.At(at, "permissions"), "is empty; set action instead")
	case in.Permissions == nil:
		r.oneOf(document.At(at, "action"), in.Action, string(Allow), string(Deny))
		out.Action = Action(in.Action)
	}
	for i := range in.Permissions {
		out.Permissions = append(out.Permissions, r.permission(document.Index(at, "permissions", i), &in.Permissions[i]))
	}
	return out
}

func (r *fileReader) permission(at string, in *filePermission) Permission {
	r.oneOf(document.At(at, "action"), in.Action, string(Allow), string(Deny))
	out := Permission{Action: Action(in.Action)}
	set := 0
	for _, m := range []struct {
		field, value string
		kind         MatchKind
	}{{"path", in.Path, Exact}, {"pathPrefix", in.PathPrefix, Prefix}, {"pathRegex", in.PathRegex, Regex}} {
		if m.value == "" {
			continue
		}
		set++
		out.Path = Match{m.kind, m.value}
		if m.kind != Regex && !strings.HasPrefix(m.value, "/") {
			r.fail(document.At(at, m.field), "%q must begin with /", m.value)
		}
		r.match(document.At(at, m.field), out.Path)
	}
	if set > 1 {
		r.fail(at, "only one of path, pathPrefix and pathRegex may be set")
	}
	for i, m := range in.Methods {
		if m == "" || strings.ToUpper(m) != m {
			r.fail(document.Index(at, "methods", i), "%q is not a method: they are written in capitals", m)
		}
	}
	out.Methods = in.Methods
	for i := range in.Headers {
		out.Headers = append(out.Headers, r.header(document.Index(at, "headers", i), &in.Headers[i]))
	}
	return out
}

func (r *fileReader) match(field string, m Match) {
	if m.Kind == Regex {
		if _, err := regexp.Compile(m.Value); err != nil {
			r.fail(field, "%q is not a regular expression: %v", m.Value, err)
		}
	}
}

func (r *fileReader) header(at string, in *fileHeader) HeaderMatch {
	out := HeaderMatch{Name: strings.ToLower(in.Name), Invert: in.Invert, IgnoreCase: in.IgnoreCase}
	if in.Name == "" {
		r.fail(document.At(at, "name"), "is required")
	}
	set := 0
	for _, m := range []struct {
		field, value string
		kind         MatchKind
	}{{"exact", in.Exact, Exact}, {"prefix", in.Prefix, Prefix}, {"suffix", in.Suffix, Suffix}, {"contains", in.Contains, Contains}, {"regex", in.Regex, Regex}} {
		if m.value != "" {
			set++
			out.Match = Match{m.kind, m.value}
			r.match(document.At(at, m.field), out.Match)
		}
	}
	if in.Present {
		set++
		out.Match = Match{Kind: Present}
	}
	if set != 1 {
		r.fail(at, "needs exactly one of exact, prefix, suffix, contains, regex, present")
	}
	return out
}
