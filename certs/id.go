// Package certs says how identities are named in the mesh: which SPIFFE ID a service has and which one the control
// plane has. Its sub-packages make (ca, token, issuer), hold (source), hand on (workload) and check (tlsconfig) them.
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
)

// ServiceID returns spiffe://<trust domain>/ns/<namespace>/svc/<service>. An empty namespace means "default". Segments
// are checked by SPIFFE-ID §2.2: letters, digits, dots, dashes, underscores.
func ServiceID(td spiffeid.TrustDomain, namespace, service string) (spiffeid.ID, error) {
	if td.IsZero() {
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID of service %q: no trust domain given", service)
	}
	if namespace == "" {
		namespace = DefaultNamespace
	}
	if err := spiffeid.ValidatePathSegment(namespace); err != nil {
		return spiffeid.ID{}, fmt.Errorf("namespace %q cannot be part of a SPIFFE ID: %w", namespace, err)
	}
	if err := spiffeid.ValidatePathSegment(service); err != nil {
		return spiffeid.ID{}, fmt.Errorf("service name %q cannot be part of a SPIFFE ID: %w", service, err)
	}
	id, err := spiffeid.FromSegments(td, "ns", namespace, "svc", service)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID of service %q in namespace %q: %w", service, namespace, err)
	}
	return id, nil
}

// ParseServiceID is the reverse of ServiceID. ok is false for an ID of another shape.
func ParseServiceID(id spiffeid.ID) (namespace, service string, ok bool) {
	parts := strings.Split(id.Path(), "/") // "", "ns", namespace, "svc", service
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "svc" {
		return "", "", false
	}
	return parts[2], parts[4], true
}

// ControlPlaneID returns the SPIFFE ID which the control plane shows to sidecars, and the only one from which they
// take certificates and configuration.
func ControlPlaneID(td spiffeid.TrustDomain) spiffeid.ID {
	return spiffeid.RequireFromSegments(td, "ns", controlPlaneNamespace, "svc", controlPlaneService)
}
