package jwtauthn

// status is the outcome of a check. The texts are Envoy's (jwt_verify_lib),
// since clients and dashboards know them; they say nothing of the keys.
type status uint8

const (
	ok status = iota
	// pending: the outcome is not known yet; a goroutine verifies a signature.
	pending
	missing
	notYetValid
	expired
	badForm
	badHeaderBase64
	badHeaderJSON
	badAlg
	unknownAlg
	badKID
	badPayloadBase64
	badPayloadJSON
	badIss
	badSub
	badIat
	rangeIat
	badNbf
	rangeNbf
	badExp
	rangeExp
	badJti
	badAud
	badSignatureBase64
	unknownIssuer
	audienceNotAllowed
	verificationFailed
	noKey
	statusCount
)

var texts = [statusCount]string{
	ok:                 "OK",
	missing:            "Jwt is missing",
	notYetValid:        "Jwt not yet valid",
	expired:            "Jwt is expired",
	badForm:            "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
	badHeaderBase64:    "Jwt header is an invalid Base64url encoded",
	badHeaderJSON:      "Jwt header is an invalid JSON",
	badAlg:             "Jwt header [alg] field is required and must be a string",
	unknownAlg:         "Jwt header [alg] is not supported",
	badKID:             "Jwt header [kid] field is not a string",
	badPayloadBase64:   "Jwt payload is an invalid Base64url encoded",
	badPayloadJSON:     "Jwt payload is an invalid JSON",
	badIss:             "Jwt payload [iss] field is not a string",
	badSub:             "Jwt payload [sub] field is not a string",
	badIat:             "Jwt payload [iat] field is not an integer",
	rangeIat:           "Jwt payload [iat] field is not a positive 64 bit integer",
	badNbf:             "Jwt payload [nbf] field is not an integer",
	rangeNbf:           "Jwt payload [nbf] field is not a positive 64 bit integer",
	badExp:             "Jwt payload [exp] field is not an integer",
	rangeExp:           "Jwt payload [exp] field is not a positive 64 bit integer",
	badJti:             "Jwt payload [jti] field is not a string",
	badAud:             "Jwt payload [aud] field is not a string or string list",
	badSignatureBase64: "Jwt signature is an invalid Base64url encoded",
	unknownIssuer:      "Jwt issuer is not configured",
	audienceNotAllowed: "Audiences in Jwt are not allowed",
	verificationFailed: "Jwt verification fails",
	noKey:              "Jwks doesn't have key to match kid or alg from Jwt",
}

// details are the response code details of each status.
var details = func() (d [statusCount]string) {
	for i, t := range texts {
		b := []byte("jwt_authn_access_denied{" + t + "}")
		for k, c := range b {
			if c == ' ' {
				b[k] = '_'
			}
		}
		d[i] = string(b)
	}
	return d
}()
