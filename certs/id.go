// Package certs says how identities are named in the mesh: which SPIFFE ID a service has, which one a gateway, and which one
// the control plane. Its sub-packages make (ca, token, issuer), hold (source), hand on (workload) and check (tlsconfig) them.
// The functions here are pure; the data plane and the control plane both call them, on any goroutine.
package certs

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// DefaultTrustDomain is the trust domain of a mesh that names none.
	DefaultTrustDomain = "sallyport.local"
	// DefaultNamespace is the namespace of a service that names none.
	DefaultNamespace = "default"

	controlPlaneNamespace = "sallyport"
	controlPlaneService   = "control-plane"

	serviceClass = "svc"
	gatewayClass = "gw"
)

// ServiceID returns spiffe://<trust domain>/ns/<namespace>/svc/<service>. An empty namespace means "default". Segments
// are checked by SPIFFE-ID §2.2: letters, digits, dots, dashes, underscores.
func ServiceID(td spiffeid.TrustDomain, namespace, service string) (spiffeid.ID, error) {
	return identity(td, namespace, "service", serviceClass, service)
}

// GatewayID returns spiffe://<trust domain>/ns/<namespace>/gw/<gateway>: the identity of an edge, or an L4 tier, of a Gateway.
// Gateways are a class of their own. A gateway's proxies are given the keys of its public certificates, which nobody may get
// by naming a service like a gateway.
func GatewayID(td spiffeid.TrustDomain, namespace, gateway string) (spiffeid.ID, error) {
	return identity(td, namespace, "gateway", gatewayClass, gateway)
}

func identity(td spiffeid.TrustDomain, namespace, kind, class, name string) (spiffeid.ID, error) {
	if td.IsZero() {
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID of %s %q: no trust domain given", kind, name)
	}
	if namespace == "" {
		namespace = DefaultNamespace
	}
	if err := spiffeid.ValidatePathSegment(namespace); err != nil {
		return spiffeid.ID{}, fmt.Errorf("namespace %q cannot be part of a SPIFFE ID: %w", namespace, err)
	}
	if err := spiffeid.ValidatePathSegment(name); err != nil {
		return spiffeid.ID{}, fmt.Errorf("%s name %q cannot be part of a SPIFFE ID: %w", kind, name, err)
	}
	id, err := spiffeid.FromSegments(td, "ns", namespace, class, name)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID of %s %q in namespace %q: %w", kind, name, namespace, err)
	}
	return id, nil
}

// ParseServiceID is the reverse of ServiceID. ok is false for an ID of another shape.
func ParseServiceID(id spiffeid.ID) (namespace, service string, ok bool) {
	return parse(id, serviceClass)
}

// ParseGatewayID is the reverse of GatewayID. ok is false for an ID of another shape.
func ParseGatewayID(id spiffeid.ID) (namespace, gateway string, ok bool) {
	return parse(id, gatewayClass)
}

func parse(id spiffeid.ID, class string) (namespace, name string, ok bool) {
	parts := strings.Split(id.Path(), "/") // "", "ns", namespace, class, name
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != class {
		return "", "", false
	}
	return parts[2], parts[4], true
}

// GatewayHint says what to do where a proxy of a gateway has, or brings a token for, the identity of the service of that
// name: until gateways had a class of their own, that was its identity. It is "" where this is not the matter.
func GatewayHint(have, want spiffeid.ID) string {
	namespace, gateway, ok := ParseGatewayID(want)
	if !ok {
		return ""
	}
	if ns, service, ok := ParseServiceID(have); !ok || ns != namespace || service != gateway {
		return ""
	}
	return fmt.Sprintf("; a gateway's identity is no longer that of a service: create a token with "+
		"sallyport token create --gateway %s --namespace %s, and join with it (and with an empty --identity-dir)", gateway, namespace)
}

// ControlPlaneID returns the SPIFFE ID which the control plane shows to sidecars, and the only one from which they
// take certificates and configuration.
func ControlPlaneID(td spiffeid.TrustDomain) spiffeid.ID {
	return spiffeid.RequireFromSegments(td, "ns", controlPlaneNamespace, "svc", controlPlaneService)
}
