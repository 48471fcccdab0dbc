package manifest

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Compose service gets three others beside it. NAME-sallyport-net holds the network namespace and has everything that
// belongs to it: ports, networks, names. NAME-sallyport-init sets up the redirection in it, and ends. NAME-sallyport is the
// sidecar. The application joins the same namespace, once the rules are in force and the sidecar is ready. What is done is
// asked for by labels, most of them named like the annotations of pods.
//
//   - compose.go: which services. composelabels.go: what their authors ask for.
//   - composenetwork.go: the network's way to the holder and back. composeparts.go: what is added.
//   - composetree.go: keys and values.
const (
	composeNet      = "-sallyport-net"
	composeInit     = "-sallyport-init"
	composeProxy    = "-sallyport"
	composeIdentity = "-sallyport-identity" // the volume
	composeMark     = prefix + "part-of"    // label of what was added: the service that it belongs to
)

var composeServices = []string{composeNet, composeInit, composeProxy}

// composeName is what names of services consist of (schema/compose-spec.json).
var composeName = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)

// composeFile is one on its way through.
type composeFile struct {
	d        *document
	services *yaml.Node // their mapping in the tree
	list     []*composeService
	byName   map[string]*composeService
	volumes  *yaml.Node // a copy of the top-level key, as Compose reads it; nil if there is none
}

type composeService struct {
	name   string
	line   int // in the document
	node   *yaml.Node
	view   *yaml.Node // a copy of it, as Compose reads it
	labels map[string]composeLabel
}

func (f *composeFile) place(s *composeService, line int) string {
	if line == 0 {
		line = s.line
	}
	return fmt.Sprintf("%s:%d: service %s", f.d.file, f.d.line+line-1, s.name)
}

// composeInject adds the sidecars of all services that ask for one.
func composeInject(d *document, o Options) (changed bool, notes []Note, err error) {
	f, err := readCompose(d)
	if err != nil {
		return false, nil, err
	}
	if k := keyOf(d.root, "include"); k != nil {
		notes = append(notes, Note{Place: fmt.Sprintf("%s:%d: include", d.file, d.line+k.Line-1), Text: "the files that it names are not read"})
	}
	var errs []error
	wishes := map[string]*composeWishes{}
	for _, s := range f.list {
		note, err := f.leave(s)
		switch {
		case err != nil:
			errs = append(errs, err)
		case note != nil:
			notes = append(notes, *note)
		case f.owner(s) == "":
			w, err := f.readLabels(s, o)
			errs = append(errs, err, f.check(s))
			wishes[s.name] = w
		}
	}
	if len(wishes) > 0 {
		errs = append(errs, f.checkReferences(wishes))
	}
	if err := errors.Join(errs...); err != nil {
		return false, nil, err
	}
	if len(wishes) == 0 {
		return false, notes, nil
	}
	for _, s := range f.list {
		if w := wishes[s.name]; w != nil {
			if err := f.inject(s, w, o); err != nil {
				return false, nil, fmt.Errorf("%s: %w", f.place(s, 0), err)
			}
		}
	}
	return true, notes, nil
}

func (f *composeFile) inject(s *composeService, w *composeWishes, o Options) error {
	network, err := takeNetwork(s)
	if err != nil {
		return err
	}
	f.services.Content = append(f.services.Content, composeParts(s, w, o, network)...)
	if absent(f.volumes) {
		f.volumes = nodeOf(map[string]any{})
		put(f.d.root, "volumes", nodeOf(map[string]any{}))
	}
	volumes := find(f.d.root, "volumes")
	put(volumes, s.name+composeIdentity, nodeOf(composeVolume(s)))
	return nil
}

// composeUninject removes what was added, and gives the network back.
func composeUninject(d *document) (bool, error) {
	f, err := readCompose(d)
	if err != nil {
		return false, err
	}
	ours := map[string]bool{} // services that have parts
	for _, s := range f.list {
		ours[f.owner(s)] = true
	}
	delete(ours, "")
	if len(ours) == 0 {
		return false, nil
	}
	var errs []error
	for _, s := range f.list {
		if holder := f.byName[s.name+composeNet]; ours[s.name] && holder != nil {
			if err := returnNetwork(s, holder.view); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", f.place(s, 0), err))
			}
		}
	}
	for _, s := range f.list {
		if f.owner(s) != "" {
			drop(f.services, s.name)
		}
	}
	if volumes := find(d.root, "volumes"); !absent(volumes) {
		for name := range ours {
			if f.isOurVolume(name) {
				drop(volumes, name+composeIdentity)
			}
		}
		if len(volumes.Content) == 0 {
			drop(d.root, "volumes")
		}
	}
	return true, errors.Join(errs...)
}

// readCompose reads a document as Compose does: its aliases and merge keys are written out.
func readCompose(d *document) (*composeFile, error) {
	services := find(d.root, "services")
	if services.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d: services: not a mapping", d.file, d.line)
	}
	var whole any
	if err := d.root.Decode(&whole); err != nil {
		return nil, fmt.Errorf("%s: %w", d.file, inLine(err, d.line))
	}
	f := &composeFile{d: d, services: services, byName: map[string]*composeService{}}
	if volumes := find(d.root, "volumes"); volumes != nil {
		f.volumes = clone(volumes)
	}
	for i := 0; i+1 < len(services.Content); i += 2 {
		s := &composeService{name: services.Content[i].Value, line: services.Content[i].Line, node: services.Content[i+1]}
		if s.view = clone(s.node); s.view.Kind != yaml.MappingNode {
			return nil, fmt.Errorf("%s: not a mapping", f.place(s, 0))
		}
		s.labels = composeLabels(s.view)
		f.list = append(f.list, s)
		f.byName[s.name] = s
	}
	return f, nil
}

// owner is the service that this one is a part of, "" if we have not made it.
func (f *composeFile) owner(s *composeService) string {
	for _, suffix := range composeServices {
		if name, ok := strings.CutSuffix(s.name, suffix); ok && s.labels[composeMark].value == name {
			return name
		}
	}
	return ""
}

func (f *composeFile) isOurVolume(service string) bool {
	if absent(f.volumes) || f.volumes.Kind != yaml.MappingNode {
		return false
	}
	v := find(f.volumes, service+composeIdentity)
	return v != nil && v.Kind == yaml.MappingNode && composeLabels(v)[composeMark].value == service
}

// leave says why a service is left alone; nil: it is not, or it is one of ours.
func (f *composeFile) leave(s *composeService) (*Note, error) {
	if f.owner(s) != "" {
		return nil, nil
	}
	inject := s.labels[AnnotationInject]
	note := func(format string, args ...any) (*Note, error) {
		return &Note{Place: f.place(s, 0), Text: fmt.Sprintf(format, args...), Warned: inject.value == enabled}, nil
	}
	switch inject.value {
	case enabled:
	case disabled:
		return note("%s is %s", AnnotationInject, disabled)
	case "":
		text := "it has no label " + AnnotationInject + ": " + enabled
		for _, key := range []string{"extends", "label_file"} {
			if !absent(find(s.view, key)) {
				text += ", and what " + key + " names is not read: resolve it first, by docker compose config"
			}
		}
		return note("%s", text)
	default:
		return nil, fmt.Errorf("%s: label %s %q: must be %s or %s", f.place(s, inject.line), AnnotationInject, inject.value, enabled, disabled)
	}
	mode := valueOf(s.view, "network_mode")
	switch {
	case f.isPart(s.name+composeNet, s.name):
		return &Note{Place: f.place(s, 0), Text: "injected already"}, nil
	case f.isPart(s.name+composeProxy, s.name):
		return nil, fmt.Errorf("%s: it was injected by an earlier version of sallyport: run sallyport uninject first", f.place(s, 0))
	case !slices.Contains([]string{"", "bridge", "default"}, mode):
		return note("it has network_mode %q, and so no network of its own", mode)
	case !absent(find(s.view, "provider")):
		return note("it has a provider, and so no container")
	}
	return nil, nil
}

// isPart says whether there is a service of that name that we have added to another.
func (f *composeFile) isPart(name, of string) bool {
	s := f.byName[name]
	return s != nil && f.owner(s) == of
}

// check refuses what cannot be injected.
func (f *composeFile) check(s *composeService) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%s: "+format, append([]any{f.place(s, 0)}, args...)...)
	}
	if !composeName.MatchString(s.name) {
		return fail("names of services consist of letters, digits, dots, dashes and underscores")
	}
	if tag := foreignTag(s.view); tag != "" {
		return fail("the tag %s is for the merging of several files: give what docker compose config makes of them", tag)
	}
	for _, key := range []string{"extends", "label_file"} {
		if !absent(find(s.view, key)) {
			return fail("what %s names is not read: resolve it first, by docker compose config", key)
		}
	}
	if absent(find(s.view, "image")) && absent(find(s.view, "build")) {
		return fail("it has neither image nor build, so there is more of it elsewhere: give what docker compose config makes of all files")
	}
	if !absent(find(s.view, "pre_start")) {
		return fail("containers of pre_start cannot join another's network: make them a service that this one depends on")
	}
	if user, _, _ := strings.Cut(valueOf(s.view, "user"), ":"); user == strconv.Itoa(sidecarID) {
		return fail("user %d is the sidecar's own user, whose traffic is not redirected: take another", sidecarID)
	}
	for _, suffix := range composeServices {
		if f.byName[s.name+suffix] != nil {
			return fail("there is a service %s%s, and the sidecar needs that name: give it another", s.name, suffix)
		}
	}
	if !absent(f.volumes) {
		if f.volumes.Kind != yaml.MappingNode || foreignTag(&yaml.Node{Tag: f.volumes.Tag}) != "" {
			return fail("the key volumes of the file is not a mapping, so the sidecar's cannot be added")
		}
		if find(f.volumes, s.name+composeIdentity) != nil {
			return fail("there is a volume %s%s, and the sidecar needs that name: give it another", s.name, composeIdentity)
		}
	}
	return f.checkReplicas(s)
}

// checkReplicas refuses several instances: they would share one network namespace, and listen on one port.
func (f *composeFile) checkReplicas(s *composeService) error {
	key, n := "scale", find(s.view, "scale")
	if d := find(s.view, "deploy"); d != nil && absent(n) {
		key, n = "deploy.replicas", find(d, "replicas")
	}
	if absent(n) {
		return nil
	}
	if count, err := strconv.Atoi(n.Value); err != nil || count > 1 {
		return fmt.Errorf("%s: %s %s: a service that is injected has one instance, as all would share one network: make a service of each", f.place(s, n.Line), key, n.Value)
	}
	return nil
}

// checkReferences refuses what other services say about those that change, and what would not be true any more.
func (f *composeFile) checkReferences(chosen map[string]*composeWishes) error {
	var errs []error
	for _, s := range f.list {
		if links := find(s.view, "links"); links != nil {
			for _, l := range links.Content {
				if name, _, _ := strings.Cut(l.Value, ":"); isChosen(chosen, name) {
					errs = append(errs, fmt.Errorf("%s: links: %s is injected, and its container has no network of its own to link to: "+
						"take the link out, services find each other by name on a network that they share", f.place(s, l.Line), name))
				}
			}
		}
		if e := find(s.view, "extends"); e != nil && !isChosen(chosen, s.name) {
			name := e.Value
			if e.Kind == yaml.MappingNode {
				name = valueOf(e, "service")
			}
			if isChosen(chosen, name) && (e.Kind != yaml.MappingNode || absent(find(e, "file"))) {
				errs = append(errs, fmt.Errorf("%s: it extends %s, which is injected, and would join its network: resolve it first, by docker compose config", f.place(s, e.Line), name))
			}
		}
	}
	return errors.Join(errs...)
}

func isChosen(chosen map[string]*composeWishes, name string) bool {
	_, ok := chosen[name]
	return ok
}
