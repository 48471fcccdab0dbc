package http1

import (
	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
)

// maxFieldCount leaves room for the pseudo-header fields.
const maxFieldCount = message.MaxFields - 8

// Error is a message that was refused. The values are shared: do not change them.
type Error struct {
	Kind   failure.Kind // what a server answers; a client treats every Error as a broken peer
	Reason string       // a sentence for the log
}

func (e *Error) Error() string { return "http1: " + e.Reason }

// Failure is what a server answers.
func (e *Error) Failure() failure.Kind { return e.Kind }

// reset is what the stream of the message hears, where there is one.
func (e *Error) reset() message.Reason {
	if e.Kind == failure.HeadTooLarge || e.Kind == failure.TooManyFields {
		return message.HeaderTooLarge
	}
	return message.ProtocolError
}

func bad(reason string) *Error { return &Error{failure.BadRequest, reason} }

// Head lines (RFC 9112 §2 to §5).
var (
	errEmptyLines   = bad("more than one empty line before the request line (RFC 9112 §2.2)")
	errBareLF       = bad("line feed without carriage return (RFC 9112 §2.2)")
	errBareCR       = bad("carriage return without line feed (RFC 9112 §2.2)")
	errNUL          = bad("NUL in a field value (RFC 9110 §5.5)")
	errControl      = bad("control character in a field value (RFC 9110 §5.5)")
	errName         = bad("invalid character in a field name (RFC 9110 §5.1)")
	errEmptyName    = bad("empty field name (RFC 9110 §5.1)")
	errNameSpace    = bad("whitespace between field name and colon (RFC 9112 §5.1)")
	errFold         = bad("obsolete line folding (RFC 9112 §5.2)")
	errUnderscore   = &Error{failure.UnderscoreInHead, "underscore in a field name"}
	errTooLarge     = &Error{failure.HeadTooLarge, "head larger than the limit"}
	errTooMany      = &Error{failure.TooManyFields, "more fields than the limit"}
	errMethod       = bad("invalid method (RFC 9110 §9.1)")
	errMethodName   = bad("unregistered method, and custom methods are not allowed")
	errRequestLine  = bad("malformed request line (RFC 9112 §3)")
	errVersion      = bad("malformed HTTP version (RFC 9112 §2.3)")
	errMajor        = &Error{failure.BadMajorVersion, "HTTP major version is not 1 (RFC 9110 §15.6.6)"}
	errMinor        = &Error{failure.LowVersion, "HTTP minor version is neither 0 nor 1"}
	errHTTP10       = &Error{failure.LowVersion, "HTTP/1.0 is not accepted here"}
	errTarget       = &Error{failure.InvalidTarget, "invalid character in the request target (RFC 9112 §3.2)"}
	errFragment     = &Error{failure.InvalidTarget, "fragment in the request target (RFC 9112 §3.2)"}
	errEscape       = &Error{failure.InvalidTarget, "invalid percent-encoding in the path (RFC 3986 §2.1)"}
	errTargetForm   = &Error{failure.InvalidTarget, "request target of a form that the method does not have (RFC 9112 §3.2)"}
	errAbsolute     = &Error{failure.InvalidTarget, "absolute-form target is not accepted here"}
	errScheme       = &Error{failure.InvalidScheme, "scheme of the request target is neither http nor https"}
	errAuthority    = &Error{failure.InvalidTarget, "invalid authority in the request target (RFC 9110 §4.2)"}
	errHost         = &Error{failure.InvalidHost, "invalid Host (RFC 9112 §3.2)"}
	errHosts        = &Error{failure.InvalidHost, "more than one Host (RFC 9112 §3.2)"}
	errNoHost       = &Error{failure.MissingHost, "no Host (RFC 9112 §3.2)"}
	errStatusLine   = bad("malformed status line (RFC 9112 §4)")
	errConnOptions  = &Error{failure.InvalidConnection, "too many or malformed connection options (RFC 9110 §7.6.1)"}
	errConnNominate = &Error{failure.InvalidConnection, "Connection names a field that is not hop-by-hop (RFC 9110 §7.6.1)"}
)

// Framing (RFC 9112 §6 and §7).
var (
	errLength       = &Error{failure.InvalidContentLength, "Content-Length is not one decimal number (RFC 9110 §8.6)"}
	errLengths      = &Error{failure.InvalidContentLength, "more than one Content-Length (RFC 9112 §6.3)"}
	errLengthCoding = &Error{failure.ContentLengthAndCoding, "both Content-Length and Transfer-Encoding (RFC 9112 §6.1)"}
	errCoding       = &Error{failure.UnknownCoding, "Transfer-Encoding other than chunked (RFC 9112 §6.1)"}
	errCodings      = &Error{failure.InvalidCoding, "more than one Transfer-Encoding (RFC 9112 §6.1)"}
	errCoding10     = &Error{failure.CodingNotAllowed, "Transfer-Encoding in HTTP/1.0 (RFC 9112 §6.1)"}
	errConnectBody  = &Error{failure.ConnectWithContent, "CONNECT with content (RFC 9110 §9.3.6)"}
	errChunkSize    = bad("invalid chunk size (RFC 9112 §7.1)")
	errChunkHuge    = bad("chunk size overflows (RFC 9112 §7.1)")
	errChunkExt     = bad("invalid chunk extension (RFC 9112 §7.1.1)")
	errChunkExtSize = bad("chunk extensions larger than the limit (RFC 9112 §7.1.1)")
	errChunkEnd     = bad("chunk data not followed by CRLF (RFC 9112 §7.1)")
	errTrailer      = bad("field that is not allowed in trailers (RFC 9110 §6.5.1)")
)

// What only a client meets.
var (
	errUnsolicited = bad("bytes from the server without a request (RFC 9112 §9.2)")
	errSwitch      = bad("101 without a request for an upgrade to that protocol (RFC 9110 §15.2.2)")
	errInformation = bad("too many informational responses")
)
