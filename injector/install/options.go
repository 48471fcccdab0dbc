package install

import (
	"cmp"
	"fmt"
	"net/url"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"sallyport/certs"
)

// Defaults of Options.
const (
	DefaultNamespace     = "sallyport-system"
	DefaultImage         = "sallyport:latest"
	DefaultConsul        = "http://consul-server.consul.svc:8500"
	DefaultFailurePolicy = "Fail"
	DefaultReplicas      = 2
)

// Names of what is installed. Other packages' defaults agree with them; a test compares.
const (
	ControlPlane = "sallyport-control-plane" // deployment, service, account, roles
	Injector     = "sallyport-injector"      // deployment, service, account, roles, webhook configuration
	TrustBundle  = "sallyport-trust-bundle"  // config map
	Authority    = "sallyport-injector-authority"
	Policies     = "sallyport-policies" // config map that the administrator makes, optional
	ConsulSecret = "sallyport-consul"   // secret that the administrator makes, optional; key token

	// Label says, on namespaces and pods, whether pods get a sidecar.
	Label         = "sallyport.io/inject"
	LabelEnabled  = "enabled"
	LabelDisabled = "disabled"
)

// Options of Objects. The zero value is good.
type Options struct {
	Namespace     string // default DefaultNamespace
	Image         string // of control plane, injector and sidecars; default DefaultImage
	TrustDomain   string // default certs.DefaultTrustDomain
	Consul        string // URL of Consul's API; default DefaultConsul
	FailurePolicy string // Fail or Ignore; default DefaultFailurePolicy
	Replicas      int    // of the injector; default DefaultReplicas
}

// check fills in the defaults and says what is wrong, by flag.
func (o Options) check() (Options, error) {
	o.Namespace, o.Image = cmp.Or(o.Namespace, DefaultNamespace), cmp.Or(o.Image, DefaultImage)
	o.TrustDomain, o.Consul = cmp.Or(o.TrustDomain, certs.DefaultTrustDomain), cmp.Or(o.Consul, DefaultConsul)
	o.FailurePolicy, o.Replicas = cmp.Or(o.FailurePolicy, DefaultFailurePolicy), cmp.Or(o.Replicas, DefaultReplicas)
	if wrong := validation.IsDNS1123Label(o.Namespace); len(wrong) > 0 {
		return o, fmt.Errorf("--namespace %q: %s", o.Namespace, wrong[0])
	}
	if strings.ContainsAny(o.Image, " \t\r\n") {
		return o, fmt.Errorf("--image %q: must be the name of an image, as in registry.example/sallyport:1.0", o.Image)
	}
	if _, err := spiffeid.TrustDomainFromString(o.TrustDomain); err != nil {
		return o, fmt.Errorf("--trust-domain %q: %w", o.TrustDomain, err)
	}
	u, err := url.Parse(o.Consul)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
		return o, fmt.Errorf("--consul %q: must be a URL as in %s", o.Consul, DefaultConsul)
	}
	switch admissionregistrationv1.FailurePolicyType(o.FailurePolicy) {
	case admissionregistrationv1.Fail, admissionregistrationv1.Ignore:
	default:
		return o, fmt.Errorf("--failure-policy %q: must be Fail (no pod without its sidecar) or Ignore (pods start also while the injector is away)", o.FailurePolicy)
	}
	if o.Replicas < 1 || o.Replicas > 100 {
		return o, fmt.Errorf("--replicas %d: must be 1 to 100", o.Replicas)
	}
	return o, nil
}
