package jwtauthn

import (
	"encoding/base64"
	"encoding/json"
	"strconv"

	"sallyport/sidecar/message"
	"sallyport/sidecar/stream"
)

// accepted is a token that counts for a request.
type accepted struct {
	provider *provider
	token    *token
	found    found
}

const namespace = "envoy.filters.http.jwt_authn"

// apply writes to the request what the provider says of an accepted token.
func (a *accepted) apply(s *stream.Stream, h *message.Head) (reroute bool) {
	p, t := a.provider, a.token
	changed := false
	if p.payloadHeader != "" {
		v := t.payload
		if p.padPayload {
			for len(v)%4 != 0 {
				v += "="
			}
		}
		h.Set(p.payloadHeader, v)
	}
	for i := range p.claims {
		c := &p.claims[i]
		if v, there := claimText(t.claims, c.path); there {
			h.Set(c.header, v)
			changed = true
		}
	}
	if p.payloadMetadata != "" {
		s.SetMetadata(namespace, p.payloadMetadata, t.claims)
		changed = true
	}
	if !p.forward {
		switch {
		case a.found.header != "":
			h.Remove(a.found.header)
		case a.found.param != "":
			removeParam(h, a.found.param)
		}
	}
	return p.reroute && changed
}

// claimText is a claim as a header's value: scalars as they are, what is
// nested as JSON in base64. A text that no header can hold is left out.
func claimText(claims map[string]any, path []string) (string, bool) {
	var v any = claims
	for _, k := range path {
		m, nested := v.(map[string]any)
		if !nested {
			return "", false
		}
		var there bool
		if v, there = m[k]; !there {
			return "", false
		}
	}
	switch v := v.(type) {
	case string:
		for i := 0; i < len(v); i++ {
			if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
				return "", false // a line break would forge a header
			}
		}
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		return v.String(), true
	case map[string]any, []any:
		b, err := json.Marshal(v)
		if err != nil {
			return "", false
		}
		return base64.StdEncoding.EncodeToString(b), true
	}
	return "", false // null
}
