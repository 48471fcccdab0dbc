package build

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/xds/policy"
)

// A proxy's own identity never comes from the control plane. TLS contexts name two secrets, as SPIRE serves them, and the
// cluster that has them: sallyport's sidecar knows that cluster as its built-in identity, a stock Envoy has it in its
// bootstrap, pointing at the agent's socket.
const (
	identityCluster     = "sallyport_identity"
	identityCertificate = "default"
	identityRoots       = "ROOTCA"
	tlsSocket           = "envoy.transport_sockets.tls"
)

func identity(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
			ApiType: corev3.ApiConfigSource_GRPC, TransportApiVersion: corev3.ApiVersion_V3,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: identityCluster}}}},
		}}}}
}

// mutual is what both ends of a hop in the mesh have in common: TLS 1.3, both certificates, peers by SPIFFE ID.
func mutual(peer *matcherv3.StringMatcher, alpn ...string) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		TlsParams:                      &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{identity(identityCertificate)},
		AlpnProtocols:                  alpn,
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
				SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: peer}}},
			ValidationContextSdsSecretConfig: identity(identityRoots),
		}},
	}
}

func exactly(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

func beginsWith(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: s}}
}

func endsWith(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: s}}
}

func regex(s string) *matcherv3.RegexMatcher { return &matcherv3.RegexMatcher{Regex: s} }

func matches(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: regex(s)}}
}

// inboundTLS lets in peers of the trust domain only. Which of them may do what is for RBAC, which can change without
// connections being closed.
func (b *builder) inboundTLS(alpn ...string) *corev3.TransportSocket {
	return b.socket(&tlsv3.DownstreamTlsContext{
		CommonTlsContext:         mutual(beginsWith("spiffe://"+b.td.Name()+"/"), alpn...),
		RequireClientCertificate: wrapperspb.Bool(true),
	})
}

// outboundTLS takes nobody but the service at the other end.
func (b *builder) outboundTLS(spiffeID string, alpn ...string) *corev3.TransportSocket {
	return b.socket(&tlsv3.UpstreamTlsContext{CommonTlsContext: mutual(exactly(spiffeID), alpn...)})
}

// publicTLS is for a Gateway's listener.
func (b *builder) publicTLS(secrets []policy.Key) *corev3.TransportSocket {
	common := &tlsv3.CommonTlsContext{
		TlsParams:     &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2},
		AlpnProtocols: []string{"h2", "http/1.1"},
	}
	for _, s := range secrets {
		common.TlsCertificateSdsSecretConfigs = append(common.TlsCertificateSdsSecretConfigs, &tlsv3.SdsSecretConfig{Name: secretName(s), SdsConfig: ads()})
	}
	return b.socket(&tlsv3.DownstreamTlsContext{CommonTlsContext: common})
}

func (b *builder) socket(m proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: tlsSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.pack(m)}}
}

// secretName is the name of a Gateway's certificate in SDS.
func secretName(k policy.Key) string { return "gateway/" + k.Namespace + "/" + k.Name }

// secret adds a certificate to what this proxy, an edge of the Gateway that names it, is given.
func (b *builder) secret(k policy.Key) {
	s := b.Policy.Secrets[k]
	if s == nil || b.clusters["secret "+secretName(k)] {
		return
	}
	b.clusters["secret "+secretName(k)] = true
	inline := func(data []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: data}}
	}
	b.out.Secrets = append(b.out.Secrets, &tlsv3.Secret{Name: secretName(k), Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(s.Spec.Certificate), PrivateKey: inline(s.Spec.Key)}}})
}
