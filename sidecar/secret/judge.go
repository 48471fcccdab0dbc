package secret

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"
)

// headerClass is the class of a header's value: shown where the name is one that holds no credential, or the value is but a
// command operator; a secret where the name, or the value, looks like one.
func headerClass(name, value string) class {
	switch name = strings.ToLower(name); {
	case harmless(name) || operator(value):
		return open
	case credential(name) || scheme(value):
		return secret
	}
	return hidden
}

// harmlessNames are header fields that hold no credential; harmlessPrefixes those of whole families.
var (
	harmlessNames = []string{"access-control-allow-credentials", ":authority", ":method", ":path", ":scheme", ":status", "accept", "accept-charset", "accept-encoding", "accept-language", "age", "allow",
		"alt-svc", "cache-control", "connection", "date", "etag", "expect", "expires", "forwarded", "grpc-encoding", "grpc-message", "grpc-status", "grpc-timeout", "host",
		"keep-alive", "last-modified", "origin", "permissions-policy", "pragma", "range", "referrer-policy", "retry-after", "server", "strict-transport-security", "te", "trailer",
		"transfer-encoding", "upgrade", "user-agent", "vary", "via", "www-authenticate", "x-content-type-options", "x-dns-prefetch-control", "x-frame-options", "x-powered-by", "x-real-ip",
		"x-request-id", "x-xss-protection"}
	harmlessPrefixes = []string{"access-control-", "content-", "cross-origin-", "sec-fetch-", "x-b3-", "x-envoy-", "x-forwarded-"}
)

func harmless(name string) bool {
	if slices.Contains(harmlessNames, name) {
		return true
	}
	return slices.ContainsFunc(harmlessPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }) && !credential(name)
}

// credential says that a name is one of those under which credentials are sent or kept.
func credential(name string) bool {
	for word := range strings.FieldsFuncSeq(strings.ToLower(name), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) {
		auth := strings.HasPrefix(word, "auth") && !strings.HasPrefix(word, "author") || strings.HasPrefix(word, "authoriz")
		if auth || slices.Contains(credentialWords, word) || strings.HasSuffix(word, "key") ||
			slices.ContainsFunc(credentialParts, func(part string) bool { return strings.Contains(word, part) }) {
			return true
		}
	}
	return false
}

// Words of such names, and parts of words: what is written together, as in accessToken.
var (
	credentialWords = []string{"bearer", "hmac", "jwt", "keys", "otp", "pass", "pin", "private", "pwd", "session", "sig"}
	credentialParts = []string{"apikey", "cookie", "credential", "passphrase", "passw", "secret", "signature", "token"}
)

// operator says that a value is one command operator, as %REQ(x-user)%, and no text of its own.
func operator(value string) bool {
	return len(value) > 2 && value[0] == '%' && value[len(value)-1] == '%' && strings.Count(value, "%") == 2
}

// scheme says that a value begins as those of Authorization do (RFC 9110 §11.4).
func scheme(value string) bool {
	name, rest, ok := strings.Cut(value, " ")
	return ok && rest != "" && slices.ContainsFunc([]string{"basic", "bearer", "digest", "negotiate", "token", "apikey"}, func(s string) bool { return strings.EqualFold(name, s) })
}

// cleanURL takes user, query and fragment out of a URL; credentials says that it had one.
func cleanURL(text string) (clean string, credentials bool) {
	u, err := url.Parse(text)
	if err != nil {
		return redacted, true
	}
	credentials = u.User != nil
	for name := range u.Query() {
		credentials = credentials || credential(name)
	}
	u.User, u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = nil, "", false, "", ""
	return u.String(), credentials
}

// jwksClass is the class of a JWKS. Public keys may be shown; a set with one that signs too (RFC 7518 §6.2.2, §6.3.2, §6.4;
// RFC 8037 §2), or that cannot be read, is a secret. What has members of which nobody knows what they are is not shown.
func jwksClass(jwks []byte) class {
	var set map[string]json.RawMessage
	var keys []map[string]json.RawMessage
	if json.Unmarshal(jwks, &set) != nil || json.Unmarshal(set["keys"], &keys) != nil {
		return secret
	}
	c := open
	if len(set) > 1 {
		c = hidden
	}
	for _, key := range keys {
		var kty string
		if json.Unmarshal(key["kty"], &kty) != nil || kty != "RSA" && kty != "EC" && kty != "OKP" {
			return secret
		}
		for name := range key {
			switch {
			case slices.Contains([]string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"}, name) || credential(name) && name != "key_ops":
				return secret
			case !slices.Contains(publicMembers, name):
				c = hidden
			}
		}
	}
	return c
}

// publicMembers are what a public key has (RFC 7517 §4, RFC 7518 §6).
var publicMembers = []string{"kty", "use", "key_ops", "alg", "kid", "x5u", "x5c", "x5t", "x5t#S256", "crv", "x", "y", "n", "e"}
