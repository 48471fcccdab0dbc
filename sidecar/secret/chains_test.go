package secret

import (
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// TestAChainThatIsKnownEnds: what was verified once is not trusted longer, nor
// for another direction, nor under other roots, and another leaf is another chain.
func TestAChainThatIsKnownEnds(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	pool := func(a *authority) *x509.CertPool {
		p := x509.NewCertPool()
		p.AddCert(a.cert)
		return p
	}
	clientOnly := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	leaf := func(a *authority) []*x509.Certificate {
		p := a.zoo(t, idA, clientOnly)
		return []*x509.Certificate{p.leaf}
	}
	v := &validation{pool: pool(ca), depth: -1}
	known, now := &chains{}, time.Now()
	certs := leaf(ca)
	for range 2 {
		if err := v.verify(certs, true, "", now, known); err != nil {
			t.Fatal(err)
		}
	}
	if len(known.until) != 1 || !known.has(certs, v.pool, now) {
		t.Fatalf("%d chains are known, want the one", len(known.until))
	}
	for name, err := range map[string]error{
		"expired":         v.verify(certs, true, "", certs[0].NotAfter.Add(time.Second), known),
		"authority ended": v.verify(certs, true, "", ca.cert.NotAfter.Add(time.Second), known),
		"not yet valid":   v.verify(certs, true, "", certs[0].NotBefore.Add(-time.Second), known),
		"other roots":     (&validation{pool: pool(other), depth: -1}).verify(certs, true, "", now, known),
		"other authority": v.verify(leaf(other), true, "", now, known),
		"as a server":     v.verify(certs, false, "", now, &chains{}),
	} {
		if err == nil {
			t.Errorf("%s: was trusted", name)
		}
	}
	if len(known.until) != 1 {
		t.Errorf("failures were remembered: %d", len(known.until))
	}
}

// TestNamesAreJudgedOfKnownChains: only the signatures are spared.
func TestNamesAreJudgedOfKnownChains(t *testing.T) {
	ca := newAuthority(t, "ca")
	server := ca.zoo(t, idB, nil)
	s := newStore(t, Options{})
	ctx := s.mustServer(t, serverContext(server, &tlsv3.CertificateValidationContext{TrustedCa: inline(ca.pem),
		MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{exactURI(idA)}}))
	pairs := map[string]pair{idA: ca.zoo(t, idA, nil), idB: ca.zoo(t, idB, nil)}
	for i, id := range []string{idA, idB, idA, idB} {
		p := pairs[id]
		cli := must(s.mustClient(t, clientContext(&p, nil)).ClientConfig(""))
		if _, _, err := shake(t, cli, must(ctx.ServerConfig())); (err == nil) != (id == idA) {
			t.Errorf("handshake %d as %s: %v", i, id, err)
		}
	}
}

func TestKnownChainsAreBounded(t *testing.T) {
	ca := newAuthority(t, "ca")
	known := &chains{}
	for i := range maxChains + 10 {
		c := &x509.Certificate{Raw: fmt.Append(nil, i), NotAfter: time.Now().Add(time.Hour)}
		known.add([]*x509.Certificate{c}, nil, []*x509.Certificate{c, ca.cert})
	}
	if n := len(known.until); n > maxChains {
		t.Errorf("%d chains are kept", n)
	}
}
