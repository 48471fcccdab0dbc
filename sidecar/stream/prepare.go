package stream

import (
	"bytes"
	"net/netip"
	"slices"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
)

// prepare makes the head trustworthy: fields that only the proxy may set are
// removed or set, the path is brought into one form, and the client is known.
// It returns a failure where the request cannot be taken; it may also answer it.
func (s *Stream) prepare() failure.Kind {
	h, m := &s.Request, s.Manager
	if !h.Has(message.Method) || !h.Has(message.Authority) && s.Protocol != message.HTTP10 && !h.Is(message.Method, "CONNECT") {
		// RFC 9112 §3.2: a request without Host is answered 400. The
		// codecs see to the rest.
		return failure.MissingHost
	}
	if f := s.preparePath(); f != failure.None || s.answered {
		return f
	}
	if m.Underscores != UnderscoreAllow {
		if f := s.underscores(); f != failure.None {
			return f
		}
	}
	if m.StripPort != KeepPort {
		s.stripPort()
	}
	edge := m.UseRemoteAddress
	internal := s.client()
	if edge && !internal {
		s.dropEnvoyFields()
	}
	if internal {
		h.SetNameString(message.XEnvoyInternal, "true")
	} else {
		h.RemoveName(message.XEnvoyInternal)
		if edge {
			var b [46]byte
			h.SetName(message.XEnvoyExternalAddress, s.Conn.Remote.Addr().AppendTo(b[:0]))
		}
	}
	s.clientCert()
	if m.Via != "" {
		h.AddNameString(message.Via, m.Via)
	}
	s.requestID(edge && !internal)
	return failure.None
}

// dropEnvoyFields removes what speaks for the proxy, or to the next one: from
// outside it would let a client choose our timeouts and retries, or pass for
// somebody else. All of it, known here or not: the next hop may know more.
func (s *Stream) dropEnvoyFields() {
	h := &s.Request
	for i := h.Len() - 1; i >= 0; i-- {
		const prefix = "x-envoy-"
		if name, _ := h.At(i); len(name) >= len(prefix) && name[:len(prefix)] == prefix {
			h.RemoveAt(i)
		}
	}
}

// preparePath applies the manager's path options (normalize_path,
// merge_slashes, path_with_escaped_slashes_action) in Envoy's order.
func (s *Stream) preparePath() failure.Kind {
	h, m := &s.Request, s.Manager
	p := h.Get(message.Path)
	if h.Is(message.Method, "CONNECT") && len(p) == 0 {
		return failure.None
	}
	if len(p) == 0 || p[0] != '/' && !(len(p) == 1 && p[0] == '*') {
		return failure.PathNormalization
	}
	if bytes.IndexByte(p, '#') >= 0 {
		// A fragment is never sent (RFC 9112 §3.2.1), and whoever reads
		// it differently than we do sees another path.
		return failure.PathFragment
	}
	if !m.NormalizePath && !m.MergeSlashes && m.Slashes == SlashKeep || p[0] != '/' {
		return failure.None
	}
	next, redirect, ok := normalize(s.factory.scratch[:0], p, m)
	s.factory.scratch = next[:0]
	if !ok {
		return failure.PathNormalization
	}
	if redirect {
		s.Reply(307, "", "path_normalization_redirect", 0, route.HeaderValue{Name: "location", Value: string(next)})
		return failure.None
	}
	if !bytes.Equal(next, p) {
		h.SetName(message.Path, next)
	}
	return failure.None
}

func (s *Stream) underscores() failure.Kind {
	h := &s.Request
	for i := 0; i < h.Len(); i++ {
		if h.NameAt(i) != message.Unknown {
			continue // no known name has one
		}
		if name, _ := h.At(i); slices.Contains([]byte(name), '_') {
			if s.Manager.Underscores == UnderscoreReject {
				return failure.Underscore
			}
			h.RemoveAt(i)
			i--
		}
	}
	return failure.None
}

// stripPort takes the port off :authority.
func (s *Stream) stripPort() {
	a := s.Request.Get(message.Authority)
	colon := bytes.LastIndexByte(a, ':')
	if colon < 0 || bytes.IndexByte(a[colon:], ']') >= 0 || s.Request.Is(message.Method, "CONNECT") {
		return
	}
	port := 0
	for _, c := range a[colon+1:] {
		if c < '0' || c > '9' || port > 65535 {
			return
		}
		port = port*10 + int(c-'0')
	}
	if s.Manager.StripPort == StripMatchingPort && port != int(s.Conn.Local.Port()) {
		return
	}
	s.Request.SetName(message.Authority, a[:colon])
}

// client decides who the client is and writes x-forwarded-for and
// x-forwarded-proto; it says whether the client is internal. Both fields are
// lists, which may stand in several lines: all of them count.
func (s *Stream) client() (internal bool) {
	h, m, c := &s.Request, s.Manager, s.Conn
	scheme := "http"
	if c.TLS != nil {
		scheme = "https"
	}
	remote := c.Direct.Addr()
	var told []byte
	if h.Has(message.XForwardedFor) {
		told, _ = h.Joined("x-forwarded-for")
	}
	if m.UseRemoteAddress {
		// The peer of the socket is the client, unless trusted proxies
		// stand before us: then it is so many addresses from the right.
		if m.TrustedHops > 0 {
			if a, ok := forwardedFor(told, int(m.TrustedHops)-1); ok {
				remote = a
			}
		}
		internal = told == nil && within(m.InternalCIDRs, remote)
		if !m.SkipXFF {
			s.appendXFF(told, c.Direct.Addr())
		}
		if m.TrustedHops == 0 {
			h.SetNameString(message.XForwardedProto, scheme)
		}
	} else {
		if a, ok := forwardedFor(told, int(m.TrustedHops)); ok {
			remote = a
		}
		internal = bytes.IndexByte(told, ',') < 0 && within(m.InternalCIDRs, remote)
	}
	s.remote(remote)
	if !h.Has(message.XForwardedProto) || !agree(h, message.XForwardedProto) {
		h.SetNameString(message.XForwardedProto, scheme)
	}
	// Upstreams, redirects and matchers see one scheme. An unknown value of
	// x-forwarded-proto says nothing about it.
	switch string(h.Get(message.XForwardedProto)) {
	case "http":
		scheme = "http"
	case "https":
		scheme = "https"
	}
	h.SetNameString(message.Scheme, scheme)
	return internal
}

// agree says whether all fields of that name, which is there, have one value,
// and leaves one of them: which of several counts must not depend on who reads.
func agree(h *message.Head, n message.Name) bool {
	v, fields := h.Get(n), 0
	for i := range h.Len() {
		if h.NameAt(i) != n {
			continue
		}
		if _, o := h.At(i); string(o) != string(v) {
			return false
		}
		fields++
	}
	if fields > 1 {
		h.SetName(n, v)
	}
	return true
}

// remote notes the client's address; Direct stays the socket's peer.
func (s *Stream) remote(a netip.Addr) {
	if a == s.Conn.Direct.Addr() {
		s.Remote = s.Conn.Remote
		return
	}
	s.Remote = netip.AddrPortFrom(a, 0)
}

func (s *Stream) appendXFF(told []byte, a netip.Addr) {
	var b [256]byte
	v := b[:0]
	if len(told) > 0 {
		v = append(append(v, told...), ',')
	}
	s.Request.SetName(message.XForwardedFor, a.Unmap().AppendTo(v))
}

// forwardedFor is the n-th address from the right of an x-forwarded-for value.
func forwardedFor(v []byte, n int) (netip.Addr, bool) {
	for ; n >= 0; n-- {
		if len(v) == 0 {
			return netip.Addr{}, false
		}
		i := bytes.LastIndexByte(v, ',')
		item := bytes.TrimSpace(v[i+1:])
		if n == 0 {
			a, err := netip.ParseAddr(string(item))
			return a, err == nil
		}
		v = v[:max(i, 0)]
	}
	return netip.Addr{}, false
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

// clientCert handles x-forwarded-client-cert (forward_client_cert_details):
// without it, anybody could claim any identity to the application.
func (s *Stream) clientCert() {
	h, m := &s.Request, s.Manager
	mtls := s.Conn.Peer != nil
	switch m.ForwardCert {
	case CertAlwaysForwardOnly:
		return
	case CertForwardOnly:
		if mtls {
			return
		}
	case CertAppendForward, CertSanitizeSet:
		if !mtls {
			break
		}
		v := s.factory.scratch[:0]
		if m.ForwardCert == CertAppendForward {
			if old, ok := h.Joined("x-forwarded-client-cert"); ok && len(old) > 0 {
				v = append(append(v, old...), ',')
			}
		}
		v = s.Conn.Peer.appendXFCC(v, m.CertDetails)
		h.SetName(message.ForwardedClientCert, v)
		s.factory.scratch = v[:0]
		return
	}
	h.RemoveName(message.ForwardedClientCert)
}

// appendXFCC writes one element of x-forwarded-client-cert in Envoy's order of keys.
func (p *Peer) appendXFCC(v []byte, d CertDetails) []byte {
	if p.LocalURI != "" {
		v = append(append(append(v, "By="...), p.LocalURI...), ';')
	}
	v = append(append(v, "Hash="...), p.Hash...)
	if d.Cert {
		v = append(append(append(v, `;Cert="`...), p.PEM...), '"')
	}
	if d.Chain {
		v = append(append(append(v, `;Chain="`...), p.ChainPEM...), '"')
	}
	if d.Subject {
		v = append(v, `;Subject="`...)
		for i := 0; i < len(p.Subject); i++ {
			if c := p.Subject[i]; c == '"' || c == '\\' {
				v = append(v, '\\')
			}
			v = append(v, p.Subject[i])
		}
		v = append(v, '"')
	}
	if d.URI {
		if len(p.URI) == 0 {
			v = append(v, ";URI="...)
		}
		for _, u := range p.URI {
			v = append(append(v, ";URI="...), u...)
		}
	}
	if d.DNS {
		for _, n := range p.DNS {
			v = append(append(v, ";DNS="...), n...)
		}
	}
	return v
}

// requestID makes x-request-id where there is none, and at the edge always,
// unless preserve_external_request_id says otherwise.
func (s *Stream) requestID(external bool) {
	h, m := &s.Request, s.Manager
	if !m.GenerateRequestID {
		return
	}
	if !h.Has(message.XRequestID) || external && !m.PreserveRequestID {
		h.SetName(message.XRequestID, s.factory.UUID())
	}
}
