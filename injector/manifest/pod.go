package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Names of what is put into a pod.
const (
	InitContainer  = "sallyport-init"
	ProxyContainer = "sallyport-proxy"
	tokenVolume    = "sallyport-token"
	trustVolume    = "sallyport-trust"
)

// Options are the same for all pods of a mesh.
type Options struct {
	Image        string // of this program
	PullPolicy   corev1.PullPolicy
	ControlPlane string // HOST:PORT
	TrustDomain  string
	TrustBundle  string // PEM, by which sidecars recognize the control plane before they send a token
	Consul       string // URL of the agent that sidecars register with; "": they do not
	LogLevel     string // default, "" is info
}

// Check says what is missing.
func (o *Options) Check() error {
	switch {
	case o.Image == "":
		return errors.New("--image is required: the container image of sallyport")
	case o.ControlPlane == "":
		return errors.New("--control-plane HOST:PORT is required")
	case o.TrustDomain == "":
		return errors.New("--trust-domain is required")
	case o.TrustBundle == "":
		return errors.New("--ca-bundle FILE is required: the trust bundle by which sidecars recognize the control plane (bundle.pem in its state folder)")
	}
	return nil
}

// Result of an injection.
type Result struct {
	Injected bool
	Reason   string   // why not
	Asked    bool     // the author asked for it, so the reason is worth a warning
	Warnings []string // about what was injected
}

func leftAlone(asked bool, format string, args ...any) Result {
	return Result{Reason: fmt.Sprintf(format, args...), Asked: asked}
}

// state is what Uninject must know, as the annotation Status.
type state struct {
	Version int `json:"version"`
	// Probes are the original ones, by the path at which the sidecar makes them.
	Probes     map[string]json.RawMessage `json:"probes,omitempty"`
	Containers []string                   `json:"initContainers"`
	Volumes    []string                   `json:"volumes"`
	// Resources are those of the whole pod, where it has any: the sidecar's were added to them.
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`
}

const stateVersion = 1

// Inject puts the sidecar into a pod, or into the template of one. An error is for the author of the pod: an annotation
// that cannot be understood, something that cannot go together. Then, and where nothing is injected, the pod is as before.
func Inject(meta *metav1.ObjectMeta, spec *corev1.PodSpec, o Options) (Result, error) {
	asked := meta.Annotations[AnnotationInject] == enabled || meta.Labels[AnnotationInject] == enabled
	switch {
	case meta.Annotations[AnnotationStatus] != "" && isInjected(meta, spec):
		return leftAlone(false, "injected already"), nil
	case meta.Annotations[AnnotationStatus] != "":
		// Who writes it would be left out of the mesh without a word; it stays behind, too, where containers are copied by hand.
		return Result{}, fmt.Errorf("annotation %s: it speaks of a sidecar that is not in the pod: remove the annotation, and the pod gets one", AnnotationStatus)
	case meta.Annotations[AnnotationInject] == disabled || meta.Labels[AnnotationInject] == disabled:
		return leftAlone(false, "%s is %s", AnnotationInject, disabled), nil
	case spec.HostNetwork:
		return leftAlone(true, "it is on the host's network (hostNetwork), whose traffic is not its own"), nil
	case spec.OS != nil && spec.OS.Name == corev1.Windows:
		return leftAlone(asked, "it is a Windows pod"), nil
	}
	if v := meta.Annotations[AnnotationInject]; v != "" && v != enabled {
		return Result{}, fmt.Errorf("annotation %s %q: must be %s or %s", AnnotationInject, v, enabled, disabled)
	}
	if name := taken(spec); name != "" {
		return leftAlone(true, "it has a %s of its own", name), nil
	}
	a, err := readAnnotations(meta, spec)
	if err != nil {
		return Result{}, err
	}
	if a.service == "" {
		return leftAlone(true, "it has no service account of its own, and the account is its identity in the mesh: give it a serviceAccountName, the name of its service"), nil
	}
	if err := errors.Join(checkNames(spec), checkUsers(spec, a.mode)); err != nil {
		return Result{}, err
	}
	var warnings []string
	if a.undeclared {
		warnings = append(warnings, "it declares no containerPort, so nothing comes in; if it serves, annotate it with "+prefix+"port: PORT, if it only calls, with 0")
	}
	st := state{Version: stateVersion, Containers: []string{InitContainer, ProxyContainer}, Volumes: []string{tokenVolume, trustVolume}}
	var probes map[string]json.RawMessage
	containers, inits := slices.Clone(spec.Containers), slices.Clone(spec.InitContainers)
	if a.mode != "off" {
		if st.Probes, probes, err = moveProbes(containers, inits); err != nil {
			return Result{}, err
		}
	}
	st.Resources = spec.Resources
	text, err := plainJSON(st)
	if err != nil {
		return Result{}, err
	}
	proxy, err := proxyContainer(a, o, probes)
	if err != nil {
		return Result{}, err
	}
	spec.Containers = containers
	spec.InitContainers = append([]corev1.Container{initContainer(a, o), proxy}, inits...)
	spec.Volumes = append(slices.Clone(spec.Volumes), tokens(o), trust())
	spec.Resources = withSidecar(spec.Resources, proxy.Resources)
	meta.Annotations = maps.Clone(meta.Annotations)
	if meta.Annotations == nil {
		meta.Annotations = map[string]string{}
	}
	meta.Annotations[AnnotationStatus] = text
	meta.Annotations[annotationBundle] = o.TrustBundle
	return Result{Injected: true, Warnings: warnings}, nil
}

// isInjected says that what the annotation Status speaks of is there.
func isInjected(meta *metav1.ObjectMeta, spec *corev1.PodSpec) bool {
	var st state
	if json.Unmarshal([]byte(meta.Annotations[AnnotationStatus]), &st) != nil {
		return false
	}
	has := map[string]bool{}
	for i := range spec.InitContainers {
		c := &spec.InitContainers[i]
		has[c.Name] = c.Name != ProxyContainer || c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	}
	for i := range spec.Volumes {
		has[spec.Volumes[i].Name] = true
	}
	return has[InitContainer] && has[ProxyContainer] && has[tokenVolume] && has[trustVolume]
}

// withSidecar adds the sidecar's resources to those of the whole pod, which must cover the sum of its containers' (KEP-2837).
func withSidecar(pod *corev1.ResourceRequirements, sidecar corev1.ResourceRequirements) *corev1.ResourceRequirements {
	if pod == nil {
		return nil
	}
	out := pod.DeepCopy()
	for name, q := range out.Requests {
		q.Add(sidecar.Requests[name])
		out.Requests[name] = q
	}
	for name, q := range out.Limits {
		more, limited := sidecar.Limits[name]
		if !limited {
			more = sidecar.Requests[name]
		}
		q.Add(more)
		out.Limits[name] = q
	}
	return out
}

// Uninject takes out what Inject has put in. false: it is not injected.
func Uninject(meta *metav1.ObjectMeta, spec *corev1.PodSpec) (bool, error) {
	text := meta.Annotations[AnnotationStatus]
	if text == "" {
		return false, nil
	}
	var st state
	if err := json.Unmarshal([]byte(text), &st); err != nil || st.Version != stateVersion {
		return false, fmt.Errorf("annotation %s: not of this version of sallyport: take the sidecar out with the one that put it in", AnnotationStatus)
	}
	containers, inits := slices.Clone(spec.Containers), slices.Clone(spec.InitContainers)
	inits = slices.DeleteFunc(inits, func(c corev1.Container) bool { return slices.Contains(st.Containers, c.Name) })
	if err := returnProbes(containers, inits, st.Probes); err != nil {
		return false, err
	}
	spec.Containers, spec.InitContainers = containers, orNil(inits)
	if st.Resources != nil {
		spec.Resources = st.Resources
	}
	spec.Volumes = orNil(slices.DeleteFunc(slices.Clone(spec.Volumes), func(v corev1.Volume) bool { return slices.Contains(st.Volumes, v.Name) }))
	meta.Annotations = maps.Clone(meta.Annotations)
	delete(meta.Annotations, AnnotationStatus)
	delete(meta.Annotations, annotationBundle)
	if len(meta.Annotations) == 0 {
		meta.Annotations = nil
	}
	return true, nil
}

func orNil[T any](s []T) []T {
	if len(s) == 0 {
		return nil
	}
	return s
}

// taken is a name of ours that something else in the pod has.
func taken(spec *corev1.PodSpec) string {
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if n := list[i].Name; n == InitContainer || n == ProxyContainer {
				return "container " + n
			}
		}
	}
	for i := range spec.Volumes {
		if n := spec.Volumes[i].Name; n == tokenVolume || n == trustVolume {
			return "volume " + n
		}
	}
	return ""
}

// checkNames refuses what the API server refuses too, later: the probes of a container are known by its name.
func checkNames(spec *corev1.PodSpec) error {
	seen := map[string]bool{}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			switch name := list[i].Name; {
			case name == "":
				return fmt.Errorf("container %d (%q) has no name", i+1, list[i].Image)
			case seen[name]:
				return fmt.Errorf("two containers are called %s", name)
			default:
				seen[name] = true
			}
		}
	}
	return nil
}

// checkUsers refuses applications that the rules would take for the sidecar, which is known by its user, or by its group
// where it is root (see proxyContainer).
func checkUsers(spec *corev1.PodSpec, mode string) error {
	check := func(place string, user, group *int64) error {
		if user != nil && *user == sidecarID {
			return fmt.Errorf("%ssecurityContext.runAsUser %d is the sidecar's own user, whose traffic is not redirected: take another", place, sidecarID)
		}
		if group != nil && *group == sidecarID && mode == "tproxy" {
			return fmt.Errorf("%ssecurityContext.runAsGroup %d is the sidecar's own group, whose traffic is not redirected: take another", place, sidecarID)
		}
		return nil
	}
	if s := spec.SecurityContext; s != nil {
		if err := check("", s.RunAsUser, s.RunAsGroup); err != nil {
			return err
		}
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if s := list[i].SecurityContext; s != nil {
				if err := check("container "+list[i].Name+": ", s.RunAsUser, s.RunAsGroup); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func listOf(s string) []string {
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}
