package http1

import (
	"fmt"
	"strings"
	"testing"

	"sallyport/sidecar/failure"
	"sallyport/sidecar/message"
)

// In these tables "\n" in raw is CRLF, and "␊", "␍", "␀" are a bare line feed, carriage return and NUL.
func wire(raw string) string {
	return strings.NewReplacer("\n", "\r\n", "␊", "\n", "␍", "\r", "␀", "\x00").Replace(raw)
}

var (
	http10     = &Options{AllowHTTP10: true, DefaultHost: "default"}
	customOK   = &Options{AllowCustomMethods: true}
	trailersOn = &Options{EnableTrailers: true}
	small      = &Options{MaxHeaderBytes: 64, MaxHeaderCount: 3}
)

type requestCase struct {
	name string
	raw  string
	want string // events
	err  *Error
	o    *Options
}

var requestCases = []requestCase{
	// Request line, RFC 9112 §3.
	{name: "a plain GET", raw: "GET / HTTP/1.1\nHost: h\n\n", want: "GET h /{}."},
	{name: "names become lower case and values keep theirs", raw: "GET / HTTP/1.1\nHoSt: H\nX-Foo-BAR: Baz\n\n", want: "GET H /{x-foo-bar: Baz}."},
	{name: "the order of fields is kept", raw: "GET / HTTP/1.1\nB: 1\nHost: h\nA: 2\nB: 3\n\n", want: "GET h /{b: 1|a: 2|b: 3}."},
	{name: "one empty line before the request is skipped", raw: "\nGET / HTTP/1.1\nHost: h\n\n", want: "GET h /{}."},
	{name: "two empty lines before the request are refused", raw: "\n\nGET / HTTP/1.1\nHost: h\n\n", err: errEmptyLines},
	{name: "a bare LF before the request is refused", raw: "␊GET / HTTP/1.1\nHost: h\n\n", err: errBareLF},
	{name: "a bare CR before the request is refused", raw: "␍GET / HTTP/1.1\nHost: h\n\n", err: errBareCR},
	{name: "a space before the method is refused", raw: " GET / HTTP/1.1\nHost: h\n\n", err: errMethod},
	{name: "two spaces after the method are refused", raw: "GET  / HTTP/1.1\nHost: h\n\n", err: errRequestLine},
	{name: "two spaces after the target are refused", raw: "GET /  HTTP/1.1\nHost: h\n\n", err: errVersion},
	{name: "a space after the version is refused", raw: "GET / HTTP/1.1 \nHost: h\n\n", err: errVersion},
	{name: "a tab between method and target is refused", raw: "GET\t/ HTTP/1.1\nHost: h\n\n", err: errMethod},
	{name: "a tab between target and version is refused", raw: "GET /\tHTTP/1.1\nHost: h\n\n", err: errTarget},
	{name: "a bare LF after the request line is refused", raw: "GET / HTTP/1.1␊Host: h\n\n", err: errBareLF},
	{name: "a bare CR after the request line is refused", raw: "GET / HTTP/1.1␍Host: h\n\n", err: errBareCR},
	{name: "an HTTP/0.9 request is refused", raw: "GET /\n\n", err: errRequestLine},
	{name: "HTTP/1.0 gets 426", raw: "GET / HTTP/1.0\nHost: h\n\n", err: errHTTP10},
	{name: "HTTP/1.0 passes where it is allowed", raw: "GET / HTTP/1.0\nHost: h\n\n", want: "GET h /{}.", o: http10},
	{name: "HTTP/1.0 without Host gets the default", raw: "GET / HTTP/1.0\n\n", want: "GET default /{}.", o: http10},
	{name: "HTTP/1.0 without Host and default is refused", raw: "GET / HTTP/1.0\n\n", err: errNoHost, o: &Options{AllowHTTP10: true}},
	{name: "HTTP/1.0 with absolute-form needs no Host", raw: "GET http://a/ HTTP/1.0\n\n", want: "GET a /{}.", o: http10},
	{name: "HTTP/1.0 loses Expect", raw: "POST / HTTP/1.0\nExpect: 100-continue\nContent-Length: 0\n\n", want: "POST default /{content-length: 0}.", o: http10},
	{name: "HTTP/1.2 is refused", raw: "GET / HTTP/1.2\nHost: h\n\n", err: errMinor},
	{name: "HTTP/2.0 gets 505", raw: "GET / HTTP/2.0\nHost: h\n\n", err: errMajor},
	{name: "HTTP/0.9 in writing gets 505", raw: "GET / HTTP/0.9\nHost: h\n\n", err: errMajor},
	{name: "a version with two digits is refused", raw: "GET / HTTP/1.10\nHost: h\n\n", err: errVersion},
	{name: "a version in lower case is refused", raw: "GET / http/1.1\nHost: h\n\n", err: errVersion},
	{name: "a version without minor is refused", raw: "GET / HTTP/1\nHost: h\n\n", err: errVersion},
	{name: "another protocol is refused", raw: "GET / HTCPCP/1.0\nHost: h\n\n", err: errVersion},
	{name: "the HTTP/2 preface is refused", raw: "PRI * HTTP/2.0\n\nSM\n\n", err: errMethodName},
	{name: "a TLS hello is refused at its first byte", raw: "\x16\x03\x01", err: errMethod},
	{name: "a method in lower case is another method", raw: "get / HTTP/1.1\nHost: h\n\n", err: errMethodName},
	{name: "QUERY with content", raw: "QUERY / HTTP/1.1\nHost: h\nContent-Length: 3\n\nabc", want: `QUERY h /{content-length: 3}"abc".`},
	{name: "QUERY with content of a type", raw: "QUERY / HTTP/1.1\nHost: h\nContent-Type: a/b\nTransfer-Encoding: chunked\n\n3\nabc\n0\n\n", want: `QUERY h /{content-type: a/b}"abc".`},
	{name: "QUERY without content", raw: "QUERY / HTTP/1.1\nHost: h\n\n", want: "QUERY h /{}."},
	{name: "a method in lower case is another, unregistered one", raw: "query / HTTP/1.1\nHost: h\n\n", err: errMethodName},
	{name: "an unregistered method is refused", raw: "BREW / HTTP/1.1\nHost: h\n\n", err: errMethodName},
	{name: "an unregistered method passes where it is allowed", raw: "BREW / HTTP/1.1\nHost: h\n\n", want: "BREW h /{}.", o: customOK},
	{name: "a WebDAV method passes", raw: "PROPFIND / HTTP/1.1\nHost: h\n\n", want: "PROPFIND h /{}."},
	{name: "a method with a delimiter is refused", raw: "GE(T / HTTP/1.1\nHost: h\n\n", err: errMethod, o: customOK},
	{name: "a method with a colon is refused", raw: "GET: / HTTP/1.1\nHost: h\n\n", err: errMethod, o: customOK},
	{name: "an endless method is refused", raw: strings.Repeat("A", 65) + " / HTTP/1.1\n", err: errMethod, o: customOK},

	// Targets, RFC 9112 §3.2.
	{name: "a query belongs to the path", raw: "GET /a?b=c&d HTTP/1.1\nHost: h\n\n", want: "GET h /a?b=c&d{}."},
	{name: "a target with two slashes is a path", raw: "GET //a/b HTTP/1.1\nHost: h\n\n", want: "GET h //a/b{}."},
	{name: "percent-encoding is left alone", raw: "GET /%2e%2F%00 HTTP/1.1\nHost: h\n\n", want: "GET h /%2e%2F%00{}."},
	{name: "a fragment is refused", raw: "GET /a#b HTTP/1.1\nHost: h\n\n", err: errFragment},
	{name: "a NUL in the target is refused", raw: "GET /a␀b HTTP/1.1\nHost: h\n\n", err: errTarget},
	{name: "a byte above ASCII in the target is refused", raw: "GET /\xc3\xa9 HTTP/1.1\nHost: h\n\n", err: errTarget},
	{name: "percent-encoding of one digit is refused", raw: "GET /a%2 HTTP/1.1\nHost: h\n\n", err: errEscape},
	{name: "percent-encoding that is not hexadecimal is refused", raw: "GET /%zz HTTP/1.1\nHost: h\n\n", err: errEscape},
	{name: "percent-encoding in absolute-form is checked too", raw: "GET http://a/% HTTP/1.1\nHost: h\n\n", err: errEscape},
	{name: "a query may have any percent sign", raw: "GET /a?100% HTTP/1.1\nHost: h\n\n", want: "GET h /a?100%{}."},
	{name: "a path without slash is refused", raw: "GET a HTTP/1.1\nHost: h\n\n", err: errTargetForm},
	{name: "a target that is a query is refused", raw: "GET ?a HTTP/1.1\nHost: h\n\n", err: errTargetForm},
	{name: "a target that is a host is refused", raw: "GET h:80 HTTP/1.1\nHost: h\n\n", err: errTargetForm},
	{name: "OPTIONS * is asterisk-form", raw: "OPTIONS * HTTP/1.1\nHost: h\n\n", want: "OPTIONS h *{}."},
	{name: "GET * is refused", raw: "GET * HTTP/1.1\nHost: h\n\n", err: errTargetForm},
	{name: "OPTIONS *x is refused", raw: "OPTIONS *x HTTP/1.1\nHost: h\n\n", err: errTargetForm},
	{name: "absolute-form overrides Host", raw: "GET http://a:81/x?y HTTP/1.1\nHost: b\n\n", want: "GET a:81 /x?y{}."},
	{name: "absolute-form overrides Host before other fields", raw: "GET http://a/ HTTP/1.1\nX: 1\nHost: b\nY: 2\n\n", want: "GET a /{x: 1|y: 2}."},
	{name: "absolute-form still needs Host", raw: "GET http://a/ HTTP/1.1\n\n", err: errNoHost},
	{name: "absolute-form with two Hosts is refused", raw: "GET http://a/ HTTP/1.1\nHost: a\nHost: a\n\n", err: errHosts},
	{name: "absolute-form without path gets a slash", raw: "GET http://a HTTP/1.1\nHost: a\n\n", want: "GET a /{}."},
	{name: "absolute-form with a query only gets a slash", raw: "GET http://a?b HTTP/1.1\nHost: a\n\n", want: "GET a /?b{}."},
	{name: "absolute-form of OPTIONS without path is asterisk-form", raw: "OPTIONS http://a HTTP/1.1\nHost: a\n\n", want: "OPTIONS a *{}."},
	{name: "absolute-form with https does not change the scheme", raw: "GET HTTPS://a/ HTTP/1.1\nHost: a\n\n", want: "GET a /{}."},
	{name: "absolute-form with another scheme is refused", raw: "GET ftp://a/ HTTP/1.1\nHost: a\n\n", err: errScheme},
	{name: "absolute-form with user information is refused", raw: "GET http://u@a/ HTTP/1.1\nHost: a\n\n", err: errAuthority},
	{name: "absolute-form without a host is refused", raw: "GET http:///x HTTP/1.1\nHost: a\n\n", err: errAuthority},
	{name: "absolute-form with nothing but a scheme is refused", raw: "GET http:// HTTP/1.1\nHost: a\n\n", err: errScheme},
	{name: "absolute-form with a huge port is refused", raw: "GET http://a:65536/ HTTP/1.1\nHost: a\n\n", err: errAuthority},
	{name: "absolute-form is refused where it is forbidden", raw: "GET http://a/ HTTP/1.1\nHost: a\n\n", err: errAbsolute, o: &Options{ForbidAbsoluteURL: true}},
	{name: "CONNECT takes authority-form", raw: "CONNECT a:443 HTTP/1.1\nHost: b\n\n", want: "CONNECT a:443{}"},
	{name: "CONNECT without a port is refused", raw: "CONNECT a HTTP/1.1\nHost: a\n\n", err: errTargetForm},
	{name: "CONNECT with an empty port is refused", raw: "CONNECT a: HTTP/1.1\nHost: a\n\n", err: errTargetForm},
	{name: "CONNECT with a path is refused", raw: "CONNECT / HTTP/1.1\nHost: a\n\n", err: errTargetForm},
	{name: "CONNECT with a URI is refused", raw: "CONNECT http://a:80/ HTTP/1.1\nHost: a\n\n", err: errTargetForm},
	{name: "CONNECT with content is refused", raw: "CONNECT a:1 HTTP/1.1\nHost: a\nContent-Length: 3\n\nabc", err: errConnectBody},
	{name: "CONNECT with chunked content is refused", raw: "CONNECT a:1 HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n0\n\n", err: errConnectBody},
	{name: "CONNECT loses Upgrade and a length of 0", raw: "CONNECT a:1 HTTP/1.1\nHost: a\nConnection: upgrade\nUpgrade: x\nContent-Length: 0\n\n", want: "CONNECT a:1{}"},
	{name: "CONNECT to an IPv6 address", raw: "CONNECT [::1]:443 HTTP/1.1\nHost: a\n\n", want: "CONNECT [::1]:443{}"},

	// Host, RFC 9112 §3.2 and RFC 9110 §7.2.
	{name: "no Host is refused", raw: "GET / HTTP/1.1\n\n", err: errNoHost},
	{name: "an empty Host is refused", raw: "GET / HTTP/1.1\nHost:\n\n", err: errHost},
	{name: "two different Hosts are refused", raw: "GET / HTTP/1.1\nHost: a\nHost: b\n\n", err: errHosts},
	{name: "two equal Hosts are refused", raw: "GET / HTTP/1.1\nHost: a\nhost: a\n\n", err: errHosts},
	{name: "a list of Hosts is refused", raw: "GET / HTTP/1.1\nHost: a,b\n\n", err: errHost},
	{name: "a Host with a path is refused", raw: "GET / HTTP/1.1\nHost: a/b\n\n", err: errHost},
	{name: "a Host with user information is refused", raw: "GET / HTTP/1.1\nHost: u@a\n\n", err: errHost},
	{name: "a Host with a space is refused", raw: "GET / HTTP/1.1\nHost: a b\n\n", err: errHost},
	{name: "a Host with a word for a port is refused", raw: "GET / HTTP/1.1\nHost: a:http\n\n", err: errHost},
	{name: "a Host with two ports is refused", raw: "GET / HTTP/1.1\nHost: a:1:2\n\n", err: errHost},
	{name: "a Host above ASCII is refused", raw: "GET / HTTP/1.1\nHost: \xc3\xa9\n\n", err: errHost},
	{name: "a Host with percent-encoding is refused", raw: "GET / HTTP/1.1\nHost: a%2e\n\n", err: errHost},
	{name: "an IPv6 Host that is no address is refused", raw: "GET / HTTP/1.1\nHost: [1:2]\n\n", err: errHost},
	{name: "an IPv6 Host with a zone is refused", raw: "GET / HTTP/1.1\nHost: [fe80::1%eth0]\n\n", err: errHost},
	{name: "an IPv4 Host in brackets is refused", raw: "GET / HTTP/1.1\nHost: [127.0.0.1]\n\n", err: errHost},
	{name: "an IPv6 Host with a port", raw: "GET / HTTP/1.1\nHost: [fe80::1]:80\n\n", want: "GET [fe80::1]:80 /{}."},
	{name: "an IPv6 Host that is not closed is refused", raw: "GET / HTTP/1.1\nHost: [::1\n\n", err: errHost},
	{name: "an empty IPv6 Host is refused", raw: "GET / HTTP/1.1\nHost: []\n\n", err: errHost},
	{name: "an IPv6 Host with something behind it is refused", raw: "GET / HTTP/1.1\nHost: [::1]x\n\n", err: errHost},

	// Field lines, RFC 9112 §5.
	{name: "whitespace around a value is dropped", raw: "GET / HTTP/1.1\nHost:h\nA: \t b c \t\n\n", want: "GET h /{a: b c}."},
	{name: "a tab in a value is kept", raw: "GET / HTTP/1.1\nHost: h\nA: b\tc\n\n", want: "GET h /{a: b\tc}."},
	{name: "an empty value is a value", raw: "GET / HTTP/1.1\nHost: h\nA:\nB: \n\n", want: "GET h /{a: |b: }."},
	{name: "a colon in a value is kept", raw: "GET / HTTP/1.1\nHost: h\nA: b: c\n\n", want: "GET h /{a: b: c}."},
	{name: "obs-text in a value is kept", raw: "GET / HTTP/1.1\nHost: h\nA: \xff\x80\n\n", want: "GET h /{a: \xff\x80}."},
	{name: "a space before the colon is refused", raw: "GET / HTTP/1.1\nHost: h\nA : b\n\n", err: errNameSpace},
	{name: "a tab before the colon is refused", raw: "GET / HTTP/1.1\nHost: h\nA\t: b\n\n", err: errNameSpace},
	{name: "a space before the colon of Host is refused", raw: "GET / HTTP/1.1\nHost : h\n\n", err: errNameSpace},
	{name: "a folded line is refused", raw: "GET / HTTP/1.1\nHost: h\nA: b\n c\n\n", err: errFold},
	{name: "a line folded by a tab is refused", raw: "GET / HTTP/1.1\nHost: h\nA: b\n\tc\n\n", err: errFold},
	{name: "a first line that is folded is refused", raw: "GET / HTTP/1.1\n Host: h\n\n", err: errFold},
	{name: "a line without a colon is refused", raw: "GET / HTTP/1.1\nHost: h\nA\n\n", err: errName},
	{name: "a line without a name is refused", raw: "GET / HTTP/1.1\nHost: h\n: b\n\n", err: errEmptyName},
	{name: "a pseudo-header field is refused", raw: "GET / HTTP/1.1\nHost: h\n:path: /b\n\n", err: errEmptyName},
	{name: "a name with a delimiter is refused", raw: "GET / HTTP/1.1\nHost: h\nA(b: c\n\n", err: errName},
	{name: "a name above ASCII is refused", raw: "GET / HTTP/1.1\nHost: h\n\xc3\xa9: c\n\n", err: errName},
	{name: "a NUL in a name is refused", raw: "GET / HTTP/1.1\nHost: h\nA␀: c\n\n", err: errName},
	{name: "a NUL in a value is refused", raw: "GET / HTTP/1.1\nHost: h\nA: b␀c\n\n", err: errNUL},
	{name: "an escape in a value is refused", raw: "GET / HTTP/1.1\nHost: h\nA: \x1b[0m\n\n", err: errControl},
	{name: "a DEL in a value is refused", raw: "GET / HTTP/1.1\nHost: h\nA: \x7f\n\n", err: errControl},
	{name: "a bare LF after a field is refused", raw: "GET / HTTP/1.1\nHost: h␊A: b\n\n", err: errBareLF},
	{name: "a bare CR in a value is refused", raw: "GET / HTTP/1.1\nHost: h\nA: b␍c\n\n", err: errBareCR},
	{name: "a CR CR LF is refused", raw: "GET / HTTP/1.1\nHost: h\nA: b␍\n\n", err: errBareCR},
	{name: "a bare LF as the empty line is refused", raw: "GET / HTTP/1.1\nHost: h\n␊", err: errBareLF},
	{name: "a bare CR as the empty line is refused", raw: "GET / HTTP/1.1\nHost: h\n␍A: b\n\n", err: errBareCR},
	{name: "a long name is lower-cased too", raw: "GET / HTTP/1.1\nHost: h\n" + strings.Repeat("Ab", 60) + ": c\n\n", want: "GET h /{" + strings.Repeat("ab", 60) + ": c}."},
	{name: "more fields than the limit get 431", raw: "GET / HTTP/1.1\nHost: h\nA: 1\nB: 2\nC: 3\n\n", err: errTooMany, o: small},
	{name: "as many fields as the limit pass", raw: "GET / HTTP/1.1\nHost: h\nA: 1\nB: 2\n\n", want: "GET h /{a: 1|b: 2}.", o: small},
	{name: "a head larger than the limit gets 431", raw: "GET / HTTP/1.1\nHost: h\nA: " + strings.Repeat("a", 64) + "\n\n", err: errTooLarge, o: small},
	{name: "a target larger than the limit gets 431", raw: "GET /" + strings.Repeat("a", 64), err: errTooLarge, o: small},
	{name: "a head as large as the limit passes", raw: "GET / HTTP/1.1\nHost: h\nA: " + strings.Repeat("a", 64-16-9-3-4) + "\n\n", want: "GET h /{a: " + strings.Repeat("a", 32) + "}.", o: small},
	{name: "a head one byte larger than the limit gets 431", raw: "GET / HTTP/1.1\nHost: h\nA: " + strings.Repeat("a", 64-16-9-3-3) + "\n\n", err: errTooLarge, o: small},
	{name: "a name with an underscore passes", raw: "GET / HTTP/1.1\nHost: h\na_b: c\n\n", want: "GET h /{a_b: c}."},
	{name: "a name with an underscore is refused on demand", raw: "GET / HTTP/1.1\nHost: h\na_b: c\n\n", err: errUnderscore, o: &Options{Underscores: RejectUnderscores}},
	{name: "a name with an underscore is dropped on demand", raw: "GET / HTTP/1.1\nHost: h\na_b: c\nd: e\n\n", want: "GET h /{d: e}.", o: &Options{Underscores: DropUnderscores}},

	// Fields of one hop, RFC 9110 §7.6.1.
	{name: "Connection and its kin end here", raw: "GET / HTTP/1.1\nHost: h\nConnection: keep-alive\nKeep-Alive: 5\nProxy-Connection: close\nHTTP2-Settings: x\nA: b\n\n", want: "GET h /{a: b}."},
	{name: "a field that Connection names is dropped", raw: "GET / HTTP/1.1\nHost: h\nA: 1\nConnection: close, a\nA: 2\nB: 3\n\n", want: "GET h /{b: 3}."},
	{name: "a known field that Connection names is dropped", raw: "GET / HTTP/1.1\nHost: h\nConnection: Cookie\nCookie: 1\n\n", want: "GET h /{}."},
	{name: "what Connection names in a second line is dropped", raw: "GET / HTTP/1.1\nHost: h\nConnection: keep-alive\nA: 1\nConnection: ,b , a\nB: 2\n\n", want: "GET h /{}."},
	{name: "Connection naming X-Forwarded-For is refused", raw: "GET / HTTP/1.1\nHost: h\nConnection: close, X-Forwarded-For\nX-Forwarded-For: 1\n\n", err: errConnNominate},
	{name: "Connection naming X-Forwarded-Host is refused", raw: "GET / HTTP/1.1\nHost: h\nConnection: close\nConnection: x-forwarded-host\n\n", err: errConnNominate},
	{name: "Connection naming X-Forwarded-Proto is refused", raw: "GET / HTTP/1.1\nHost: h\nConnection: x-forwarded-proto\n\n", err: errConnNominate},
	{name: "Connection naming itself hides nothing", raw: "GET / HTTP/1.1\nHost: h\nConnection: connection, a\nA: 1\n\n", want: "GET h /{}."},
	{name: "Connection naming Host is refused", raw: "GET / HTTP/1.1\nHost: h\nConnection: host\n\n", err: errConnNominate},
	{name: "Connection naming Content-Length is refused", raw: "POST / HTTP/1.1\nHost: h\nConnection: Content-Length\nContent-Length: 1\n\na", err: errConnNominate},
	{name: "a Connection that is no list of tokens is refused", raw: "GET / HTTP/1.1\nHost: h\nConnection: a b\n\n", err: errConnOptions},
	{name: "a Connection with too many options is refused", raw: "GET / HTTP/1.1\nHost: h\nConnection: " + strings.Repeat("a,", 17) + "\n\n", err: errConnOptions},
	{name: "too many options in all Connections are refused", raw: "GET / HTTP/1.1\nHost: h\nConnection: " + strings.Repeat("close,", 9) + "\nConnection: " + strings.Repeat("a,", 9) + "\n\n", err: errConnOptions},
	{name: "too many Connections with options are refused", raw: "GET / HTTP/1.1\nHost: h\n" + strings.Repeat("Connection: a\n", 17) + "\n", err: errConnOptions},
	{name: "TE keeps trailers alone", raw: "GET / HTTP/1.1\nHost: h\nConnection: TE\nTE: gzip;q=0.5, Trailers\n\n", want: "GET h /{te: trailers}."},
	{name: "TE in two lines keeps trailers once", raw: "GET / HTTP/1.1\nHost: h\nTE: gzip, trailers\nConnection: TE\nTE: trailers\n\n", want: "GET h /{te: trailers}."},
	{name: "TE without trailers ends here", raw: "GET / HTTP/1.1\nHost: h\nTE: gzip\n\n", want: "GET h /{}."},
	{name: "Expect passes through", raw: "POST / HTTP/1.1\nHost: h\nExpect: 100-continue\nContent-Length: 1\n\na", want: `POST h /{expect: 100-continue|content-length: 1}"a".`},
	{name: "an upgrade waits for its answer", raw: "GET / HTTP/1.1\nHost: h\nConnection: keep-alive, Upgrade\nUpgrade: websocket\n\n", want: "GET h /{upgrade: websocket}"},
	{name: "Upgrade without the connection option is dropped", raw: "GET / HTTP/1.1\nHost: h\nUpgrade: websocket\n\n", want: "GET h /{}."},
	{name: "the connection option without Upgrade means nothing", raw: "GET / HTTP/1.1\nHost: h\nConnection: upgrade\n\n", want: "GET h /{}."},
	{name: "an h2c upgrade is dropped", raw: "GET / HTTP/1.1\nHost: h\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: x\n\n", want: "GET h /{}."},
	{name: "an h2c upgrade with empty elements is dropped", raw: "GET / HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: ,\nUpgrade: H2C,\n\n", want: "GET h /{}."},
	{name: "an upgrade to one of several is one list, for policy to refuse", raw: "GET / HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: websocket, H2C\n\n", want: "GET h /{upgrade: websocket, H2C}"},
	{name: "an upgrade in two lines is one list", raw: "GET / HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: websocket\nA: b\nUpgrade: spdy/3.1\n\n", want: "GET h /{upgrade: websocket, spdy/3.1|a: b}"},
	{name: "the connection option for Upgrade may stand in a second line", raw: "GET / HTTP/1.1\nHost: h\nConnection: keep-alive\nConnection: Upgrade\nUpgrade: websocket\n\n", want: "GET h /{upgrade: websocket}"},
	{name: "an upgrade with content is dropped", raw: "POST / HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: x\nContent-Length: 1\n\na", want: `POST h /{content-length: 1}"a".`},
	{name: "an upgrade with chunked content is dropped", raw: "POST / HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: x\nTransfer-Encoding: chunked\n\n0\n\n", want: `POST h /{}.`},
	{name: "an upgrade in HTTP/1.0 is dropped", raw: "GET / HTTP/1.0\nHost: h\nConnection: Upgrade\nUpgrade: websocket\n\n", want: "GET h /{}.", o: http10},

	// Framing, RFC 9112 §6.
	{name: "a body with a length", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: 3\n\nabc", want: `POST h /{content-length: 3}"abc".`},
	{name: "a length of 0", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: 0\n\n", want: `POST h /{content-length: 0}.`},
	{name: "a length with leading zeros", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: 003\n\nabc", want: `POST h /{content-length: 003}"abc".`},
	{name: "a GET may have content", raw: "GET / HTTP/1.1\nHost: h\nContent-Length: 1\n\na", want: `GET h /{content-length: 1}"a".`},
	{name: "a body that is cut off has no end", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: 4\n\nabc", want: `POST h /{content-length: 4}"abc"`},
	{name: "two different lengths are refused", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: 3\nContent-Length: 4\n\nabc", err: errLengths},
	{name: "two equal lengths are refused", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: 3\nContent-Length: 3\n\nabc", err: errLengths},
	{name: "a list of lengths is refused", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: 3, 3\n\nabc", err: errLength},
	{name: "an empty length is refused", raw: "POST / HTTP/1.1\nHost: h\nContent-Length:\n\n", err: errLength},
	{name: "a negative length is refused", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: -1\n\n", err: errLength},
	{name: "a length with a plus is refused", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: +3\n\nabc", err: errLength},
	{name: "a hexadecimal length is refused", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: 0x3\n\nabc", err: errLength},
	{name: "a length with a fraction is refused", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: 3.0\n\nabc", err: errLength},
	{name: "a length that overflows is refused", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: 18446744073709551619\n\nabc", err: errLength},
	{name: "a length and a coding are refused", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: 3\nTransfer-Encoding: chunked\n\n0\n\n", err: errLengthCoding},
	{name: "a coding and a length are refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\nContent-Length: 3\n\n0\n\n", err: errLengthCoding},
	{name: "a length of 0 and a coding are refused", raw: "POST / HTTP/1.1\nHost: h\nContent-Length: 0\nTransfer-Encoding: chunked\n\n0\n\n", err: errLengthCoding},
	{name: "a coding in HTTP/1.0 is refused", raw: "POST / HTTP/1.0\nHost: h\nTransfer-Encoding: chunked\n\n0\n\n", err: errCoding10, o: http10},
	{name: "gzip is not implemented", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: gzip\n\n", err: errCoding},
	{name: "gzip before chunked is not implemented", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: gzip, chunked\n\n", err: errCoding},
	{name: "chunked twice is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked, chunked\n\n", err: errCoding},
	{name: "chunked in two fields is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n", err: errCodings},
	{name: "identity is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: identity\n\n", err: errCoding},
	{name: "an empty coding is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding:\n\n", err: errCoding},
	{name: "a quoted coding is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: \"chunked\"\n\n", err: errCoding},
	{name: "chunked with a parameter is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked;a=b\n\n", err: errCoding},
	{name: "chunked behind a vertical tab is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: \x0bchunked\n\n", err: errControl},
	{name: "chunked in capitals is chunked", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: CHUNKED\n\n0\n\n", want: "POST h /{}."},

	// Chunks, RFC 9112 §7.1.
	{name: "chunks become data", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n3\nabc\nA\n0123456789\n0\n\n", want: `POST h /{}"abc0123456789".`},
	{name: "chunk sizes may have zeros and both cases", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n000a\n0123456789\n0B\n01234567890\n000\n\n", want: `POST h /{}"012345678901234567890".`},
	{name: "chunk data may look like anything", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n9\n0\n\nGET /\n0\n\n", err: errChunkEnd, want: `POST h /{}"0\r\n\r\nGET "<protocol error>`},
	{name: "chunk extensions are dropped", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1;a\na\n1; a=\"b;\"\nb\n0;c=d\n\n", want: `POST h /{}"ab".`},
	{name: "a space before a chunk extension is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1 ;a\na\n0\n\n", err: errChunkSize, want: "POST h /{}<protocol error>"},
	{name: "an empty chunk extension is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1;\na\n0\n\n", err: errChunkExt, want: "POST h /{}<protocol error>"},
	{name: "a control character in an extension is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1;a␀\na\n0\n\n", err: errChunkExt, want: "POST h /{}<protocol error>"},
	{name: "a bare LF in an extension is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1;a␊a\n0\n\n", err: errBareLF, want: "POST h /{}<protocol error>"},
	{name: "a bare CR in an extension is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1;a␍b\na\n0\n\n", err: errBareCR, want: "POST h /{}<protocol error>"},
	{name: "a long extension is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1;" + strings.Repeat("a", 300) + "\na\n0\n\n", err: errChunkExtSize, want: "POST h /{}<protocol error>"},
	{name: "many extensions and little data are refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n" + strings.Repeat("1;"+strings.Repeat("a", 200)+"\na\n", 30), err: errChunkExtSize, want: `POST h /{}"aaaaaaaaaaaaaaaaaaaa"<protocol error>`},
	{name: "an empty chunk size is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n\n\n", err: errChunkSize, want: "POST h /{}<protocol error>"},
	{name: "a chunk size with 0x is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0x1\na\n0\n\n", err: errChunkSize, want: "POST h /{}<protocol error>"},
	{name: "a chunk size with a minus is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n-1\na\n0\n\n", err: errChunkSize, want: "POST h /{}<protocol error>"},
	{name: "a chunk size with a space before it is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n 1\na\n0\n\n", err: errChunkSize, want: "POST h /{}<protocol error>"},
	{name: "a chunk size with a space after it is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1 \na\n0\n\n", err: errChunkSize, want: "POST h /{}<protocol error>"},
	{name: "a chunk size that overflows is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n10000000000000001\na\n0\n\n", err: errChunkHuge, want: "POST h /{}<protocol error>"},
	{name: "a chunk size of zeros without end is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0000000000000000\n\n", err: errChunkHuge, want: "POST h /{}<protocol error>"},
	{name: "a bare LF after a chunk size is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1␊a\n0\n\n", err: errBareLF, want: "POST h /{}<protocol error>"},
	{name: "a bare LF after chunk data is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1\na␊0\n\n", err: errChunkEnd, want: `POST h /{}"a"<protocol error>`},
	{name: "a bare CR after chunk data is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1\na␍0\n\n", err: errChunkEnd, want: `POST h /{}"a"<protocol error>`},
	{name: "trailers are checked and dropped", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0\nA: b\n\n", want: "POST h /{}."},
	{name: "trailers are delivered where enabled", raw: "POST / HTTP/1.1\nHost: h\nTrailer: A\nTransfer-Encoding: chunked\n\n1\nx\n0\nA: b\n\n", want: `POST h /{trailer: A}"x"{a: b}.`, o: trailersOn},
	{name: "no trailers are no trailers where enabled", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n1\nx\n0\n\n", want: `POST h /{}"x".`, o: trailersOn},
	{name: "a length in trailers is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0\nContent-Length: 1\n\n", err: errTrailer, want: "POST h /{}<protocol error>"},
	{name: "a coding in trailers is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0\nTransfer-Encoding: chunked\n\n", err: errTrailer, want: "POST h /{}<protocol error>"},
	{name: "a Host in trailers is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0\nHost: x\n\n", err: errTrailer, want: "POST h /{}<protocol error>"},
	{name: "a broken trailer is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0\nA b\n\n", err: errNameSpace, want: "POST h /{}<protocol error>"},
	{name: "a Trailer that announces framing is refused", raw: "POST / HTTP/1.1\nHost: h\nTrailer: a, Content-Length\nTransfer-Encoding: chunked\n\n", err: errTrailer},
	{name: "a folded trailer is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0\nA: b\n c\n\n", err: errFold, want: "POST h /{}<protocol error>"},
	{name: "too many trailers are refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0\nA: 1\nA: 1\nA: 1\nA: 1\n\n", err: errTooMany, want: "POST h /{}<head too large>", o: &Options{MaxHeaderCount: 3}},
	{name: "a bare LF as the end of trailers is refused", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0\n␊", err: errBareLF, want: "POST h /{}<protocol error>"},
	{name: "fields of one hop in trailers are dropped", raw: "POST / HTTP/1.1\nHost: h\nTransfer-Encoding: chunked\n\n0\nConnection: close\nA: b\n\n", want: `POST h /{}{a: b}.`, o: trailersOn},
}

func TestRequestsAreReadInOneWayOrRefused(t *testing.T) {
	if len(requestCases) < 100 {
		t.Errorf("only %d cases", len(requestCases))
	}
	for _, c := range requestCases {
		t.Run(c.name, func(t *testing.T) {
			raw := wire(c.raw)
			for step := 1; step <= len(raw); step++ {
				p := newPeer(t, c.o)
				_, err := p.feed(raw, step)
				if got := p.text(); got != c.want {
					t.Fatalf("in steps of %d: got  %s\nwant %s", step, got, c.want)
				}
				if c.err == nil && err != nil || c.err != nil && err != error(c.err) {
					t.Fatalf("in steps of %d: error %v, want %v", step, err, c.err)
				}
				if err != nil && !over(p.c) {
					t.Fatal("an error must end the connection")
				}
			}
		})
	}
}

func TestErrorsHaveTheStatusThatTheAnswerNeeds(t *testing.T) {
	for e, status := range map[*Error]int{
		errBareLF: 400, errTooLarge: 431, errTooMany: 431, errHTTP10: 426, errMinor: 426, errMajor: 505, errCoding: 501, errNoHost: 400,
	} {
		if got := failure.Of(e.Kind).Status; got != status {
			t.Errorf("%v: status %d, want %d", e, got, status)
		}
	}
}

func TestEveryByteInAFieldName(t *testing.T) {
	for c := range 256 {
		p := newPeer(t, nil)
		_, err := p.feed("GET / HTTP/1.1\r\nHost: h\r\nx"+string([]byte{byte(c)})+"y: v\r\n\r\n", 1000)
		isTchar := strings.IndexByte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", byte(c)) >= 0
		if c == ':' { // ends the name
			isTchar = true
		}
		if isTchar != (err == nil) {
			t.Errorf("byte %#02x: error %v", c, err)
		}
		if isTchar && c != ':' {
			want := fmt.Sprintf("GET h /{x%sy: v}.", strings.ToLower(string(rune(c))))
			if got := p.text(); got != want {
				t.Errorf("byte %#02x: got %s, want %s", c, got, want)
			}
		}
	}
}

func TestEveryByteInAFieldValueAtEveryOffset(t *testing.T) {
	for c := range 256 {
		ok := c == '\t' || c >= ' ' && c != 0x7f
		for offset := 1; offset < 20; offset++ {
			value := strings.Repeat("a", offset) + string([]byte{byte(c)}) + strings.Repeat("b", 20-offset)
			p := newPeer(t, nil)
			_, err := p.feed("GET / HTTP/1.1\r\nHost: h\r\nx: "+value+"\r\n\r\n", 1000)
			if ok != (err == nil) {
				t.Errorf("byte %#02x at %d: error %v", c, offset, err)
			}
			if got, want := p.text(), "GET h /{x: "+value+"}."; ok && got != want {
				t.Errorf("byte %#02x at %d: got %q", c, offset, got)
			}
		}
	}
}

func TestEveryByteInATargetAtEveryOffset(t *testing.T) {
	for c := range 256 {
		ok := c > ' ' && c < 0x7f && c != '#'
		for offset := range 20 {
			path := "/" + strings.Repeat("a", offset) + string([]byte{byte(c)}) + strings.Repeat("b", 22-offset)
			p := newPeer(t, nil)
			_, err := p.feed("GET "+path+" HTTP/1.1\r\nHost: h\r\n\r\n", 1000)
			if ok != (err == nil) {
				t.Errorf("byte %#02x at %d: error %v", c, offset, err)
			}
			if got, want := p.text(), "GET h "+path+"{}."; ok && got != want {
				t.Errorf("byte %#02x at %d: got %q", c, offset, got)
			}
		}
	}
}

func TestEveryByteInAMethod(t *testing.T) {
	for c := range 256 {
		ok := strings.IndexByte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", byte(c)) >= 0
		p := newPeer(t, customOK)
		_, err := p.feed("X"+string([]byte{byte(c)})+"Y / HTTP/1.1\r\nHost: h\r\n\r\n", 1000)
		if ok != (err == nil) {
			t.Errorf("byte %#02x: error %v", c, err)
		}
	}
}

func TestEveryByteInAHost(t *testing.T) {
	for c := range 256 {
		p := newPeer(t, nil)
		_, err := p.feed("GET / HTTP/1.1\r\nHost: a"+string([]byte{byte(c)})+"1\r\n\r\n", 1000)
		ok := strings.IndexByte("-._~!$&'()*+;=:0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", byte(c)) >= 0
		if ok != (err == nil) {
			t.Errorf("byte %#02x: error %v", c, err)
		}
	}
}

func TestSchemeIsThatOfTheConnection(t *testing.T) {
	for _, c := range []struct{ conn, options, want string }{{"", "", "http"}, {"", "https", "https"}, {"https", "http", "https"}} {
		p := newPeer(t, &Options{Scheme: c.options})
		p.c.Scheme = c.conn
		var scheme string
		p.onHead = func(h *message.Head, _ bool) { scheme = string(h.Get(message.Scheme)) }
		if _, err := p.feed("GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 100); err != nil || scheme != c.want {
			t.Errorf("%+v: scheme %q, error %v", c, scheme, err)
		}
	}
}

func TestASlowHeadIsNotReadAgainAndAgain(t *testing.T) {
	// 60 KiB of one line, a byte at a time: the work must stay linear.
	d := newReader(request, limits{bytes: 60 << 10, count: 100, piece: 1 << 15}, AllowUnderscores)
	defer d.free()
	raw := []byte("GET /" + strings.Repeat("a", 59<<10))
	for i := 1; i <= len(raw); i++ {
		if n, done, err := d.read(raw[:i]); n != 0 || done || err != nil {
			t.Fatal(n, done, err)
		}
		if i > 1 && d.scanned != i {
			t.Fatalf("after %d bytes, %d are known to have no line feed", i, d.scanned)
		}
	}
}
