package secret

import (
	"crypto/tls"
	"strings"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"sallyport/sidecar/config/fields"
)

var paramsFields = fields.Of(&tlsv3.TlsParameters{}, "tls_minimum_protocol_version", "tls_maximum_protocol_version", "cipher_suites", "ecdh_curves").Strict()

var versions = map[tlsv3.TlsParameters_TlsProtocol]uint16{
	tlsv3.TlsParameters_TLSv1_0: tls.VersionTLS10,
	tlsv3.TlsParameters_TLSv1_1: tls.VersionTLS11,
	tlsv3.TlsParameters_TLSv1_2: tls.VersionTLS12,
	tlsv3.TlsParameters_TLSv1_3: tls.VersionTLS13,
}

// suites are BoringSSL's names of the TLS 1.2 cipher suites that crypto/tls has.
var suites = map[string]uint16{
	"ECDHE-ECDSA-AES128-GCM-SHA256": tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-RSA-AES128-GCM-SHA256":   tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-ECDSA-AES256-GCM-SHA384": tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-RSA-AES256-GCM-SHA384":   tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-ECDSA-CHACHA20-POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-RSA-CHACHA20-POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-ECDSA-AES128-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
	"ECDHE-RSA-AES128-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	"ECDHE-ECDSA-AES256-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
	"ECDHE-RSA-AES256-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
	"AES128-GCM-SHA256":             tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
	"AES256-GCM-SHA384":             tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	"AES128-SHA":                    tls.TLS_RSA_WITH_AES_128_CBC_SHA,
	"AES256-SHA":                    tls.TLS_RSA_WITH_AES_256_CBC_SHA,
}

var curves = map[string]tls.CurveID{
	"X25519":         tls.X25519,
	"X25519MLKEM768": tls.X25519MLKEM768,
	"P-256":          tls.CurveP256,
	"P-384":          tls.CurveP384,
	"P-521":          tls.CurveP521,
}

// params puts tls_params into c. Without them: TLS 1.2 and 1.3, Go's suites
// and curves, which are better than Envoy's and include X25519MLKEM768.
func params(r *fields.Report, path string, m *tlsv3.TlsParameters, c *tls.Config) {
	c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS13
	if m == nil {
		return
	}
	fields.Check(r, path, m, paramsFields)
	if v := versions[m.GetTlsMinimumProtocolVersion()]; v != 0 {
		c.MinVersion = v
	}
	if v := versions[m.GetTlsMaximumProtocolVersion()]; v != 0 {
		c.MaxVersion = v
	}
	if c.MinVersion > c.MaxVersion {
		r.Errorf(path, "the minimum version is above the maximum")
	}
	for i, name := range m.GetCipherSuites() {
		// "[A|B]" are suites of equal preference; crypto/tls orders them by itself.
		for n := range strings.SplitSeq(strings.Trim(name, "[]"), "|") {
			id, ok := suites[n]
			if !ok {
				r.Errorf(fields.Index(path, "cipher_suites", i), "%q is not a cipher suite that is implemented", n)
				continue
			}
			c.CipherSuites = append(c.CipherSuites, id)
		}
	}
	for i, name := range m.GetEcdhCurves() {
		id, ok := curves[name]
		if !ok {
			r.Errorf(fields.Index(path, "ecdh_curves", i), "%q is not a curve that is implemented; use X25519MLKEM768, X25519, P-256, P-384 or P-521", name)
			continue
		}
		c.CurvePreferences = append(c.CurvePreferences, id)
	}
}
