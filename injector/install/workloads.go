package install

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	portXDS           = 15010
	portXDSStatus     = 15011
	portWebhook       = 15017
	portWebhookStatus = 15014

	user = 65532 // of our pods; that of sidecars is another, whose packets are not redirected

	stateDir    = "/var/lib/sallyport"
	policiesDir = "/etc/sallyport/policies"
	drain       = 5  // seconds for which an ending injector still answers
	grace       = 30 // seconds until it is killed
)

// Address is where sidecars find the control plane.
func (o Options) address() string {
	return ControlPlane + "." + o.Namespace + ".svc:" + strconv.Itoa(portXDS)
}

func (o Options) pod(name string, c corev1.Container, volumes ...corev1.Volume) corev1.PodTemplateSpec {
	c.Name, c.Image = name, o.Image
	c.SecurityContext = &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false),
		ReadOnlyRootFilesystem:   new(true),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
	l := labels(name)
	l[Label] = LabelDisabled
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: l},
		Spec: corev1.PodSpec{
			ServiceAccountName:            name,
			AutomountServiceAccountToken:  new(true),
			EnableServiceLinks:            new(false),
			TerminationGracePeriodSeconds: new(int64(grace)),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true), RunAsUser: new(int64(user)), RunAsGroup: new(int64(user)), FSGroup: new(int64(user)),
				// The state folder refuses files that a group may read; kubelet would make them so at every start otherwise.
				FSGroupChangePolicy: new(corev1.FSGroupChangeOnRootMismatch),
				SeccompProfile:      &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{c},
			Volumes:    volumes,
		},
	}
}

// stateClaim holds the keys of the certificate authority: with them lost, every sidecar would have to be restarted.
func (o Options) stateClaim() *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{TypeMeta: typed("v1", "PersistentVolumeClaim"), ObjectMeta: o.named(ControlPlane), Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}},
	}}
}

// controlPlane is a single one, as the authority's folder has one owner; sidecars go on without it (docs/principles.md).
func (o Options) controlPlane() *appsv1.Deployment {
	pod := o.pod(ControlPlane, corev1.Container{
		Args: []string{"control-plane",
			"--listen=:" + strconv.Itoa(portXDS),
			"--status-listen=:" + strconv.Itoa(portXDSStatus),
			"--consul=" + o.Consul,
			"--policies=" + policiesDir,
			"--state=" + stateDir + "/state",
			"--trust-domain=" + o.TrustDomain,
			"--kubernetes=in-cluster",
			"--kubernetes-trust-bundle=" + o.Namespace + "/" + TrustBundle,
		},
		Env: []corev1.EnvVar{{Name: "CONSUL_HTTP_TOKEN", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: ConsulSecret}, Key: "token", Optional: new(true),
		}}}},
		Ports:          []corev1.ContainerPort{port("xds", portXDS), port("status", portXDSStatus)},
		Resources:      resources("100m", "128Mi", "1Gi"),
		ReadinessProbe: probe("/ready", "status"),
		LivenessProbe:  &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("status")}}, PeriodSeconds: 10, FailureThreshold: 6},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "state", MountPath: stateDir},
			{Name: "policies", MountPath: policiesDir, ReadOnly: true},
		},
	},
		corev1.Volume{Name: "state", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: ControlPlane}}},
		corev1.Volume{Name: "policies", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: Policies}, Optional: new(true)}}},
	)
	return &appsv1.Deployment{TypeMeta: typed("apps/v1", "Deployment"), ObjectMeta: o.named(ControlPlane), Spec: appsv1.DeploymentSpec{
		Replicas: new(int32(1)),
		Selector: &metav1.LabelSelector{MatchLabels: selector(ControlPlane)},
		Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
		Template: pod,
	}}
}

func (o Options) injector() *appsv1.Deployment {
	onError := "deny"
	if o.FailurePolicy == "Ignore" {
		onError = "allow"
	}
	pod := o.pod(Injector, corev1.Container{
		Args: []string{"injector",
			"--listen=:" + strconv.Itoa(portWebhook),
			"--status-listen=:" + strconv.Itoa(portWebhookStatus),
			"--kubernetes=in-cluster",
			"--namespace=" + o.Namespace,
			"--trust-bundle=" + TrustBundle,
			"--control-plane=" + o.address(),
			"--image=" + o.Image,
			"--trust-domain=" + o.TrustDomain,
			"--consul=" + o.Consul,
			"--on-error=" + onError,
			"--drain-time=" + strconv.Itoa(drain) + "s",
		},
		// Of 256Mi, of which reviews may take half.
		Env:            []corev1.EnvVar{{Name: "GOMEMLIMIT", Value: "192MiB"}},
		Ports:          []corev1.ContainerPort{port("https", portWebhook), port("status", portWebhookStatus)},
		Resources:      resources("50m", "64Mi", "256Mi"),
		ReadinessProbe: probe("/ready", "status"),
		LivenessProbe:  probe("/healthz", "status"),
	})
	pod.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 100, PodAffinityTerm: corev1.PodAffinityTerm{
			LabelSelector: &metav1.LabelSelector{MatchLabels: selector(Injector)}, TopologyKey: corev1.LabelHostname,
		}}},
	}}
	return &appsv1.Deployment{TypeMeta: typed("apps/v1", "Deployment"), ObjectMeta: o.named(Injector), Spec: appsv1.DeploymentSpec{
		Replicas: new(int32(o.Replicas)),
		Selector: &metav1.LabelSelector{MatchLabels: selector(Injector)},
		// A new one first: with none there is nobody to answer the API server.
		Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{
			MaxUnavailable: new(intstr.FromInt(0)), MaxSurge: new(intstr.FromInt(1)),
		}},
		Template: pod,
	}}
}

func port(name string, number int32) corev1.ContainerPort {
	return corev1.ContainerPort{Name: name, ContainerPort: number, Protocol: corev1.ProtocolTCP}
}

func probe(path, port string) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString(port)}}, PeriodSeconds: 5, TimeoutSeconds: 3}
}

// resources has no limit of the CPU, as throttling would only delay what others wait for.
func resources(cpu, memory, memoryLimit string) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memoryLimit)},
	}
}
