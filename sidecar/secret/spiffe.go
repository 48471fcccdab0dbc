package secret

import (
	"crypto/x509"
	"fmt"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"sallyport/sidecar/config/fields"
)

var (
	spiffeFields = fields.Of(&tlsv3.SPIFFECertValidatorConfig{}, "trust_domains").Strict()
	domainFields = fields.Of(&tlsv3.SPIFFECertValidatorConfig_TrustDomain{}, "name", "trust_bundle").Strict()
)

// spiffe compiles envoy.tls.cert_validator.spiffe: a bundle per trust domain,
// each trusted for the identities of that domain and no other.
func (x *reader) spiffe(path, typeURL string, value []byte, v *validation) {
	path = fields.At(path, "typed_config")
	if typeURL != spiffeValidator {
		x.r.Errorf(path, "%s is not implemented; only %s is", typeURL, spiffeValidator)
		return
	}
	var m tlsv3.SPIFFECertValidatorConfig
	if err := decode(value, &m); err != nil {
		x.r.Errorf(path, "cannot be decoded")
		return
	}
	if !fields.Validate(x.r, path, &m) {
		return
	}
	fields.Check(x.r, path, &m, spiffeFields)
	if v.pool != nil {
		// The bundles are what is trusted; a second list beside them would let more in.
		x.r.Errorf(path, "cannot be together with trusted_ca")
	}
	domains := map[string]*x509.CertPool{}
	for i, d := range m.GetTrustDomains() {
		at := fields.Index(path, "trust_domains", i)
		fields.Check(x.r, at, d, domainFields)
		if domains[d.GetName()] != nil {
			x.r.Errorf(fields.At(at, "name"), "%q is given twice", d.GetName())
		}
		bundle := fields.At(at, "trust_bundle")
		if d.GetTrustBundle() == nil {
			x.r.Errorf(bundle, "is required")
			continue
		}
		if b := x.read(bundle, d.GetTrustBundle()); b != nil {
			domains[d.GetName()] = x.pool(bundle, b)
		}
	}
	if len(m.GetTrustDomains()) == 0 {
		x.r.Errorf(fields.At(path, "trust_domains"), "is required")
	}
	v.spiffe = true
	v.byDomain = func(name string) (*x509.CertPool, error) {
		p := domains[name]
		if p == nil {
			return nil, fmt.Errorf("no bundle for trust domain %q", name)
		}
		return p, nil
	}
}
