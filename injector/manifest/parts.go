package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	sidecarID  = 1337  // user and group of the sidecar
	healthPort = 15021 // of the sidecar: its own probe, and those that it makes
	meshPort   = 15006 // where the mesh comes in

	// consulSecret is in the pod's namespace, where Consul asks for an ACL token.
	consulSecret = "sallyport-consul"

	tokenDir = "/var/run/secrets/sallyport/token"
	trustDir = "/var/run/secrets/sallyport/trust"
	// maxProbes is less than Linux takes as one variable of the environment (MAX_ARG_STRLEN).
	maxProbes = 100 << 10
	tokenLife = 3600 // seconds; the kubelet replaces it in time
)

func to[T any](v T) *T { return &v }

// initContainer sets up the redirection. It alone may change the pod's network, and ends before anything else begins.
func initContainer(w *wishes, o Options) corev1.Container {
	args := []string{"redirect", "apply", "--inbound-mode", w.mode}
	if w.mode == "tproxy" {
		args = append(args, "--sidecar-gid", strconv.Itoa(sidecarID)) // the sidecar is root then: see proxyContainer
	} else {
		args = append(args, "--sidecar-uid", strconv.Itoa(sidecarID))
	}
	return corev1.Container{
		Name: InitContainer, Image: o.Image, ImagePullPolicy: o.PullPolicy, Args: append(args, w.redirect...),
		SecurityContext: &corev1.SecurityContext{
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN"}},
			RunAsUser:                to(int64(0)),
			RunAsGroup:               to(int64(0)),
			RunAsNonRoot:             to(false),
			ReadOnlyRootFilesystem:   to(true),
			AllowPrivilegeEscalation: to(false),
			SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		// The sidecar's, for a pod's quality of service and a namespace's quota look at this one too; it adds nothing, being
		// over before the sidecar begins.
		Resources: *w.resources.DeepCopy(),
	}
}

// proxyContainer is the sidecar: a native one (KEP-753), which is ready before the application starts and ends after it,
// so that jobs end.
func proxyContainer(w *wishes, o Options, probes map[string]json.RawMessage) (corev1.Container, error) {
	args := []string{"sidecar", "--service", w.service, "--namespace", "$(POD_NAMESPACE)", "--instance", "$(POD_NAMESPACE).$(POD_NAME)", "--port", strconv.Itoa(int(w.port)),
		"--control-plane", o.ControlPlane, "--trust-domain", o.TrustDomain, "--transparent",
		"--service-account-token", tokenDir + "/token", "--ca-bundle", trustDir + "/bundle.pem",
		"--admin", "127.0.0.1:15000", "--health-address", ":" + strconv.Itoa(healthPort)}
	if w.mode == "tproxy" {
		args = append(args, "--inbound-mode", "tproxy")
	}
	if o.Consul != "" && w.port != 0 {
		args = append(args, "--consul", o.Consul, "--listen", "$(POD_IP)") // an address of version 6 would need brackets before a port
	}
	for _, u := range w.upstreams {
		args = append(args, "--upstream", u)
	}
	level := w.logLevel
	if level == "" {
		level = o.LogLevel
	}
	if level != "" {
		args = append(args, "--log-level", level)
	}
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	env := []corev1.EnvVar{field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"), field("POD_IP", "status.podIP")}
	if o.Consul != "" && w.port != 0 {
		env = append(env, corev1.EnvVar{Name: "CONSUL_HTTP_TOKEN", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: consulSecret}, Key: "token", Optional: to(true)}}})
	}
	if len(probes) > 0 {
		text, err := plainJSON(probes)
		if err != nil {
			return corev1.Container{}, err
		}
		if len(text) > maxProbes {
			return corev1.Container{}, fmt.Errorf("its probes and hooks are %d characters long as text, at most %d can be handed to the sidecar", len(text), maxProbes)
		}
		env = append(env, corev1.EnvVar{Name: probesVariable, Value: escapeEnv(text)})
	}
	security := &corev1.SecurityContext{
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		RunAsUser:                to(int64(sidecarID)),
		RunAsGroup:               to(int64(sidecarID)),
		RunAsNonRoot:             to(true),
		ReadOnlyRootFilesystem:   to(true),
		AllowPrivilegeEscalation: to(false),
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if w.mode == "tproxy" {
		// Kubernetes gives capabilities to root only (there are no ambient ones), and listening for TPROXY needs one.
		security.Capabilities.Add = []corev1.Capability{"NET_ADMIN"}
		security.RunAsUser, security.RunAsNonRoot = to(int64(0)), to(false)
	}
	ready := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromInt32(healthPort)}}
	return corev1.Container{
		Name: ProxyContainer, Image: o.Image, ImagePullPolicy: o.PullPolicy, Args: args, Env: env,
		RestartPolicy:   to(corev1.ContainerRestartPolicyAlways),
		Ports:           []corev1.ContainerPort{{Name: "sallyport-mesh", ContainerPort: meshPort, Protocol: corev1.ProtocolTCP}},
		StartupProbe:    &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 1, FailureThreshold: 120, TimeoutSeconds: 3},
		ReadinessProbe:  &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 5, FailureThreshold: 3, TimeoutSeconds: 3},
		SecurityContext: security, Resources: w.resources,
		VolumeMounts: []corev1.VolumeMount{{Name: tokenVolume, MountPath: tokenDir, ReadOnly: true}, {Name: trustVolume, MountPath: trustDir, ReadOnly: true}},
	}, nil
}

// plainJSON does not escape "<", ">" and "&", which are no danger outside of a page and six times as long escaped.
func plainJSON(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// tokens is the service account's token for the control plane: of its audience, bound to the pod, short-lived.
func tokens(o Options) corev1.Volume {
	return corev1.Volume{Name: tokenVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		DefaultMode: to(int32(0o444)), // the pod's fsGroup is the application's affair
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: o.TrustDomain, ExpirationSeconds: to(int64(tokenLife)), Path: "token"}}}}}}
}

// trust is the trust bundle, out of the pod's own annotation: a config map would have to be in every namespace.
func trust() corev1.Volume {
	return corev1.Volume{Name: trustVolume, VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
		Items: []corev1.DownwardAPIVolumeFile{{Path: "bundle.pem", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations['" + annotationBundle + "']"}}}}}}
}
