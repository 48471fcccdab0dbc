package secret

import (
	"crypto/tls"
	"fmt"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"sallyport/sidecar/config/fields"
)

var (
	commonFields = fields.Of(&tlsv3.CommonTlsContext{}, "tls_params", "tls_certificates", "tls_certificate_sds_secret_configs",
		"validation_context", "validation_context_sds_secret_config", "combined_validation_context", "alpn_protocols").Strict()

	combinedFields = fields.Of(&tlsv3.CommonTlsContext_CombinedCertificateValidationContext{}, "default_validation_context",
		"validation_context_sds_secret_config").Strict()

	// Session tickets and OCSP policy only make handshakes faster or answers fresher.
	serverFields = fields.Of(&tlsv3.DownstreamTlsContext{}, "common_tls_context", "require_client_certificate", "require_sni",
		"disable_stateless_session_resumption", "disable_stateful_session_resumption").
		Harmless(&tlsv3.DownstreamTlsContext{}, "prefer_client_ciphers", "full_scan_certs_on_sni_mismatch").
		Refuse(&tlsv3.DownstreamTlsContext{}, "ocsp_staple_policy")

	clientFields = fields.Of(&tlsv3.UpstreamTlsContext{}, "common_tls_context", "sni", "auto_host_sni", "auto_sni_san_validation", "max_session_keys").
			Harmless(&tlsv3.UpstreamTlsContext{}, "enforce_rsa_key_usage"). // crypto/tls always does
			Refuse(&tlsv3.UpstreamTlsContext{}, "allow_renegotiation")
)

// common is what both kinds of context are made of.
type common struct {
	store        *Store
	server       bool
	certificates []*slot
	validations  []*slot // merged in this order
	names        []string
	dynamic      bool // a validation context comes by SDS
	template     tls.Config
	built        atomic.Pointer[built]
}

// built is the configuration for one version of the secrets. Immutable.
type built struct {
	generation uint64
	from       []*material
	config     *tls.Config
	err        error
	expires    time.Time // when the last of our certificates ends; zero: there is none
}

// Server is a compiled DownstreamTlsContext. Safe for concurrent use.
type Server struct {
	common
	require, needSNI bool
}

// Client is a compiled UpstreamTlsContext. Safe for concurrent use.
type Client struct {
	common
	sni              string
	hostSNI, needSAN bool
}

// ClientOptions are what a cluster adds to its context.
type ClientOptions struct {
	AutoSNI bool     // auto_sni: the server's name is the host that is asked for
	AutoSAN bool     // auto_san_validation: and its certificate must be for that
	ALPN    []string // offered where the context names none: what the cluster speaks
}

// Server compiles a DownstreamTlsContext, which stands at path. Nil where r got an error.
func (s *Store) Server(r *fields.Report, path string, m *tlsv3.DownstreamTlsContext) *Server {
	n := r.Count()
	fields.Check(r, path, m, serverFields)
	c := &Server{require: m.GetRequireClientCertificate().GetValue(), needSNI: m.GetRequireSni().GetValue()}
	c.init(s, r, fields.At(path, "common_tls_context"), m.GetCommonTlsContext(), true)
	if len(c.certificates) == 0 {
		r.Errorf(fields.At(path, "common_tls_context"), "needs tls_certificates or tls_certificate_sds_secret_configs: a server has a certificate")
	}
	if c.require && !c.mayJudge() {
		r.Errorf(fields.At(path, "require_client_certificate"), "is set, but nothing says whose certificates are good; add validation_context with trusted_ca")
	}
	if len(c.validations) > 0 || m.GetDisableStatelessSessionResumption() {
		// A resumed session does not show the certificate again: it
		// would outlive a change of what is trusted.
		c.template.SessionTicketsDisabled = true
	}
	if r.Count() > n {
		return nil
	}
	return c
}

// Client compiles an UpstreamTlsContext, which stands at path. Nil where r got an error.
func (s *Store) Client(r *fields.Report, path string, m *tlsv3.UpstreamTlsContext, o ClientOptions) *Client {
	n := r.Count()
	fields.Check(r, path, m, clientFields)
	c := &Client{sni: m.GetSni(), hostSNI: m.GetAutoHostSni() || o.AutoSNI, needSAN: m.GetAutoSniSanValidation() || o.AutoSAN}
	c.init(s, r, fields.At(path, "common_tls_context"), m.GetCommonTlsContext(), false)
	if len(c.template.NextProtos) == 0 {
		c.template.NextProtos = o.ALPN
	}
	if !c.mayJudge() {
		if c.needSAN {
			r.Errorf(fields.At(path, "common_tls_context"), "the server's name is to be verified (auto_san_validation), but nothing says which authorities are trusted; add validation_context with trusted_ca")
		} else {
			r.Warnf(fields.At(path, "common_tls_context.validation_context"), "without trusted_ca any server's certificate is accepted")
		}
	}
	keys := 1
	if k := m.GetMaxSessionKeys(); k != nil {
		keys = int(k.GetValue())
	}
	c.template.SessionTicketsDisabled = keys == 0
	if r.Count() > n {
		return nil
	}
	return c
}

// mayJudge says that a validation context is there, or will come, that does not accept everything.
func (c *common) mayJudge() bool {
	for _, sl := range c.validations {
		m := sl.v.Load()
		if m == nil || m.err != nil || m.validation.judges() {
			return true
		}
	}
	return false
}

func (c *common) init(s *Store, r *fields.Report, path string, m *tlsv3.CommonTlsContext, server bool) {
	c.store, c.server = s, server
	c.template.DynamicRecordSizingDisabled = true
	fields.Check(r, path, m, commonFields)
	params(r, fields.At(path, "tls_params"), m.GetTlsParams(), &c.template)
	c.template.NextProtos = m.GetAlpnProtocols()
	if len(m.GetTlsCertificates()) > 0 && len(m.GetTlsCertificateSdsSecretConfigs()) > 0 {
		r.Errorf(fields.At(path, "tls_certificate_sds_secret_configs"), "cannot be together with tls_certificates")
	}
	for i, t := range m.GetTlsCertificates() {
		at := fields.Index(path, "tls_certificates", i)
		if mat := s.loadCertificate(r, at, t); mat != nil {
			c.certificates = append(c.certificates, s.fresh(at, mat))
		}
	}
	for i, t := range m.GetTlsCertificateSdsSecretConfigs() {
		if sl := c.sds(r, fields.Index(path, "tls_certificate_sds_secret_configs", i), t); sl != nil {
			c.certificates = append(c.certificates, sl)
		}
	}
	switch t := m.GetValidationContextType().(type) {
	case *tlsv3.CommonTlsContext_ValidationContext:
		c.validation(r, fields.At(path, "validation_context"), t.ValidationContext)
	case *tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig:
		c.validationSDS(r, fields.At(path, "validation_context_sds_secret_config"), t.ValidationContextSdsSecretConfig)
	case *tlsv3.CommonTlsContext_CombinedValidationContext:
		at := fields.At(path, "combined_validation_context")
		v := t.CombinedValidationContext
		fields.Check(r, at, v, combinedFields)
		c.validation(r, fields.At(at, "default_validation_context"), v.GetDefaultValidationContext())
		c.validationSDS(r, fields.At(at, "validation_context_sds_secret_config"), v.GetValidationContextSdsSecretConfig())
	}
	// Names of peers mean nothing while anybody may issue them.
	names, open := false, true
	for _, sl := range c.validations {
		m := sl.v.Load()
		if m == nil || m.err != nil || m.validation.trusts() {
			open = false
		}
		names = names || m != nil && m.err == nil && (len(m.validation.sans) > 0 || m.validation.spiffe)
	}
	if names && open {
		r.Errorf(path, "subject alternative names are matched, but without trusted_ca anybody can make a certificate with any name; add trusted_ca")
	}
}

func (c *common) validation(r *fields.Report, path string, m *tlsv3.CertificateValidationContext) {
	if m == nil {
		return
	}
	if mat := c.store.loadValidation(r, path, m); mat != nil {
		c.validations = append(c.validations, c.store.fresh(path, mat))
	}
}

func (c *common) validationSDS(r *fields.Report, path string, m *tlsv3.SdsSecretConfig) {
	if sl := c.sds(r, path, m); sl != nil {
		c.validations = append(c.validations, sl)
		c.dynamic = true
	}
}

// fresh is a slot for what is written in the configuration itself.
func (s *Store) fresh(path string, m *material) *slot {
	sl := &slot{name: path}
	sl.v.Store(m)
	if m.files != nil {
		s.watchFiles(sl, m.files)
	}
	return sl
}

var sdsFields = fields.Of(&tlsv3.SdsSecretConfig{}, "name", "sds_config").Strict()

// sds finds the slot that a reference to a secret means.
func (c *common) sds(r *fields.Report, path string, m *tlsv3.SdsSecretConfig) *slot {
	if m == nil {
		return nil
	}
	fields.Check(r, path, m, sdsFields)
	s, name := c.store, m.GetName()
	if name == "" {
		r.Errorf(fields.At(path, "name"), "is required")
		return nil
	}
	at := fields.At(path, "sds_config")
	switch t := m.GetSdsConfig().GetConfigSourceSpecifier().(type) {
	case *corev3.ConfigSource_Ads:
		c.names = append(c.names, name)
		return s.slot(s.named, name)
	case *corev3.ConfigSource_ApiConfigSource:
		for i, g := range t.ApiConfigSource.GetGrpcServices() {
			if cluster := g.GetEnvoyGrpc().GetClusterName(); cluster != IdentityCluster {
				r.Errorf(fields.Index(fields.At(at, "api_config_source"), "grpc_services", i),
					"secrets from a server of their own (cluster %q) are not implemented; use ads, or the cluster %s for this process's own identity", cluster, IdentityCluster)
				return nil
			}
		}
		sl, err := s.fromIdentity(name)
		if err != nil {
			r.Errorf(fields.At(path, "name"), "%v", err)
			return nil
		}
		return sl
	case nil:
		if m.GetSdsConfig() != nil {
			r.Errorf(at, "says nothing of where the secret comes from; use ads")
			return nil
		}
		sl := s.slot(s.static, name)
		if sl.v.Load() == nil {
			r.Errorf(fields.At(path, "name"), "there is no secret %q in static_resources.secrets", name)
			return nil
		}
		return sl
	}
	r.Errorf(at, "this source of secrets is not implemented; use ads, or files in tls_certificates and validation_context")
	return nil
}

// Secrets are the names of the SDS secrets that the context gets over ADS.
func (c *common) Secrets() []string { return c.names }

// Ready says that every secret has arrived, so that connections can be made.
func (c *common) Ready() bool {
	for _, list := range [][]*slot{c.certificates, c.validations} {
		for _, sl := range list {
			if m := sl.v.Load(); m == nil || m.err != nil {
				return false
			}
		}
	}
	return true
}

// current is the configuration for the secrets of this moment.
func (c *common) current(finish func(*tls.Config, *validation)) (*tls.Config, error) {
	generation := c.store.generation.Load()
	b := c.built.Load()
	if b == nil || b.generation != generation {
		b = c.build(b, generation, finish)
		c.built.Store(b)
	}
	if b.err != nil {
		return nil, b.err
	}
	if !b.expires.IsZero() && c.store.now().After(b.expires) {
		return nil, fmt.Errorf("our own certificate expired at %s", b.expires.UTC().Format(time.RFC3339))
	}
	return b.config, nil
}

// build makes the configuration; old is used again where the change was another secret's.
func (c *common) build(old *built, generation uint64, finish func(*tls.Config, *validation)) *built {
	b := &built{generation: generation, from: make([]*material, 0, len(c.certificates)+len(c.validations))}
	for _, list := range [][]*slot{c.certificates, c.validations} {
		for _, sl := range list {
			b.from = append(b.from, sl.v.Load())
		}
	}
	if old != nil && same(old.from, b.from) {
		b.config, b.err, b.expires = old.config, old.err, old.expires
		return b
	}
	for i, m := range b.from {
		name := ""
		if i < len(c.certificates) {
			name = c.certificates[i].name
		} else {
			name = c.validations[i-len(c.certificates)].name
		}
		switch {
		case m == nil:
			b.err = fmt.Errorf("the secret %q has not arrived", name)
		case m.err != nil:
			b.err = fmt.Errorf("the secret %q: %w", name, m.err)
		case i < len(c.certificates) && m.certificate == nil:
			b.err = fmt.Errorf("the secret %q is not a certificate", name)
		case i >= len(c.certificates) && m.validation == nil:
			b.err = fmt.Errorf("the secret %q is not a validation context", name)
		}
		if b.err != nil {
			return b
		}
	}
	cfg := c.template.Clone()
	for _, m := range b.from[:len(c.certificates)] {
		cfg.Certificates = append(cfg.Certificates, *m.certificate)
		if end := m.certificate.Leaf.NotAfter; end.After(b.expires) {
			b.expires = end
		}
	}
	var v *validation
	for _, m := range b.from[len(c.certificates):] {
		v = merge(v, m.validation)
	}
	if v != nil && (len(v.sans) > 0 || v.spiffe) && !v.trusts() {
		b.err = fmt.Errorf("names of peers are matched, but no authority is trusted")
		return b
	}
	finish(cfg, v)
	b.config = cfg
	return b
}

func same(a, b []*material) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] || a[i] == nil {
			return false
		}
	}
	return true
}

// ServerConfig is the configuration of a new connection. It does not block.
func (c *Server) ServerConfig() (*tls.Config, error) { return c.current(c.finish) }

func (c *Server) finish(cfg *tls.Config, v *validation) {
	if v.judges() {
		cfg.ClientAuth = tls.RequestClientCert
		if c.require {
			cfg.ClientAuth = tls.RequireAnyClientCert
		}
		if !v.hideCAs {
			cfg.ClientCAs = v.pool // a hint for the client; verify judges
		}
		cfg.VerifyConnection = v.peer(true, false, !c.require, c.store.now)
	} else if c.require {
		// Validation that came by SDS and accepts everybody is none.
		cfg.ClientAuth = tls.RequireAnyClientCert
		cfg.VerifyConnection = func(tls.ConnectionState) error {
			return fmt.Errorf("the validation context of client certificates trusts nobody")
		}
	}
	if c.needSNI {
		then := cfg.VerifyConnection
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			if cs.ServerName == "" {
				return fmt.Errorf("the client sent no server name (require_sni)")
			}
			if then != nil {
				return then(cs)
			}
			return nil
		}
	}
}

// ClientConfig is the configuration of a new connection; host is whom it is
// to, for auto_sni and auto_host_sni. It does not block.
func (c *Client) ClientConfig(host string) (*tls.Config, error) {
	cfg, err := c.current(c.finish)
	if err != nil || !c.hostSNI || host == "" || host == cfg.ServerName {
		return cfg, err
	}
	cfg = cfg.Clone()
	cfg.ServerName = host
	return cfg, nil
}

func (c *Client) finish(cfg *tls.Config, v *validation) {
	cfg.ServerName = c.sni
	// The chain and the names are verified below, on resumption too; a
	// service is not known by the name of its host.
	cfg.InsecureSkipVerify = true
	if !cfg.SessionTicketsDisabled {
		// New secrets, new sessions: none outlives what it was made under.
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(64)
	}
	switch {
	case v.judges():
		cfg.VerifyConnection = v.peer(false, c.needSAN, false, c.store.now)
	case c.needSAN || c.dynamic:
		// Validation that came by SDS and trusts everybody is none.
		cfg.VerifyConnection = func(tls.ConnectionState) error {
			return fmt.Errorf("the validation context of the server's certificate trusts nobody")
		}
	}
}
