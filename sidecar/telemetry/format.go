// Package telemetry tells the outside what the data plane does: access logs,
// traces and statistics. It owns the command operators of Envoy's format
// strings, the writers of log files, the OTLP exporter, and the Prometheus
// page. Formatting runs on the stream's worker and only copies bytes;
// everything that can block (files, network) runs on goroutines of this package.
package telemetry

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

// Format is a compiled format string: constants and command operators
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage#command-operators).
// Immutable.
type Format struct {
	parts   []part
	missing string // what stands for a value that is not there: "-", or nothing with omit_empty_values
}

// part appends one piece; ok is false where there is no such value, which
// text prints as "-" and JSON as null.
type part struct {
	text string
	f    func(dst []byte, s *stream.Stream) (out []byte, ok bool)
	max  int // truncate to so many bytes; 0: no limit
	// number says that JSON prints the value bare.
	number bool
}

// DefaultFormat is Envoy's default access log line.
const DefaultFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% ` +
	`%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" ` +
	`"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"` + "\n"

// Compile reads a format string. "%%" is a percent sign; an operator that is
// not known is an error that names it. The format itself is in no error: it may be the value of a header, and that a credential.
func Compile(format string) (*Format, error) {
	f := &Format{missing: "-"}
	text := ""
	for i := 0; i < len(format); {
		if format[i] != '%' {
			text += string(format[i])
			i++
			continue
		}
		if strings.HasPrefix(format[i:], "%%") {
			text += "%"
			i += 2
			continue
		}
		end := operatorEnd(format[i+1:])
		if end < 0 {
			return nil, fmt.Errorf("the command operator at position %d has no closing %%; write %%%% for a percent sign", i)
		}
		p, err := operator(format[i+1 : i+1+end])
		if err != nil {
			return nil, fmt.Errorf("position %d: %w", i, err)
		}
		if text != "" {
			f.parts = append(f.parts, part{text: text})
			text = ""
		}
		f.parts = append(f.parts, p)
		i += end + 2
	}
	if text != "" {
		f.parts = append(f.parts, part{text: text})
	}
	return f, nil
}

// operatorEnd finds the closing percent sign, which may stand inside the
// parentheses of an argument: %START_TIME(%Y-%m-%d)%.
func operatorEnd(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '(':
			depth++
		case ')':
			depth--
		case '%':
			if depth == 0 {
				return i
			}
		}
	}
	return -1
}

// Append writes the formatted line for s.
func (f *Format) Append(dst []byte, s *stream.Stream) []byte {
	for i := range f.parts {
		p := &f.parts[i]
		if p.f == nil {
			dst = append(dst, p.text...)
			continue
		}
		at := len(dst)
		var ok bool
		dst, ok = p.f(dst, s)
		if !ok {
			dst = append(dst[:at], f.missing...)
			continue
		}
		if p.max > 0 && len(dst)-at > p.max {
			dst = dst[:at+p.max]
		}
		clean(dst[at:])
	}
	return dst
}

// clean takes the bytes out of a value that would let a client forge lines of the log.
func clean(b []byte) {
	for i, c := range b {
		if c < 0x20 || c == 0x7f {
			b[i] = ' '
		}
	}
}

// AppendValue makes Format a route.Formatter for header values. A value that
// is not there is empty, so that the header is left out.
func (f *Format) AppendValue(dst []byte, s any) []byte {
	st, ok := s.(*stream.Stream)
	if !ok {
		return dst
	}
	for i := range f.parts {
		p := &f.parts[i]
		if p.f == nil {
			dst = append(dst, p.text...)
			continue
		}
		at := len(dst)
		if dst, ok = p.f(dst, st); !ok {
			dst = dst[:at]
			continue
		}
		if p.max > 0 && len(dst)-at > p.max {
			dst = dst[:at+p.max]
		}
		clean(dst[at:])
	}
	return dst
}

var _ route.Formatter = (*Format)(nil)

// HeaderFormat compiles a header value; it is what package config is given.
func HeaderFormat(format string) (route.Formatter, error) { return Compile(format) }

// named is a command operator in an error, without its argument. What does not look like one is not repeated.
func named(name string) string {
	for _, c := range name {
		if c != '_' && (c < 'A' || c > 'Z') {
			return "command operator"
		}
	}
	return "command operator %" + name + "%"
}

type getter = func(dst []byte, s *stream.Stream) ([]byte, bool)

// operator compiles what stands between two percent signs: NAME, NAME(ARG) or NAME(ARG):MAX.
func operator(op string) (part, error) {
	name, arg, max := op, "", 0
	if i := strings.IndexByte(op, '('); i >= 0 {
		j := strings.LastIndexByte(op, ')')
		if j < i {
			return part{}, fmt.Errorf("%s: missing closing parenthesis", named(op[:i]))
		}
		name, arg = op[:i], op[i+1:j]
		if rest := op[j+1:]; rest != "" {
			n, err := strconv.Atoi(strings.TrimPrefix(rest, ":"))
			if err != nil || n <= 0 {
				return part{}, fmt.Errorf("%s: what follows its argument is not a length, as in %%REQ(X):10%%", named(name))
			}
			max = n
		}
	}
	if f := headerOperator(name, arg); f != nil {
		if first, second, more := strings.Cut(arg, "?"); first == "" || more && second == "" || strings.Contains(second, "?") {
			return part{}, fmt.Errorf("%s: needs one header name in parentheses, or two as in %%%s(X?Y)%%", named(name), name)
		}
		return part{f: f, max: max}, nil
	}
	if name == "START_TIME" {
		return part{f: startTime(arg)}, nil
	}
	if name == "DYNAMIC_METADATA" {
		return part{f: metadata(arg), max: max}, nil
	}
	if f, ok := numbers[name]; ok {
		return part{f: f, number: true}, nil
	}
	if f, ok := texts[name]; ok {
		return part{f: f, max: max}, nil
	}
	return part{}, fmt.Errorf("%s is not known; known are %s; write %%%% for a percent sign", named(name), strings.Join(operatorNames(), ", "))
}

func operatorNames() []string {
	names := []string{"REQ(…)", "RESP(…)", "TRAILER(…)", "START_TIME", "DYNAMIC_METADATA(…)"}
	for n := range numbers {
		names = append(names, n)
	}
	for n := range texts {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// headerOperator is %REQ(X?Y)%, %RESP(X?Y)% and %TRAILER(X?Y)%.
func headerOperator(name, arg string) getter {
	// A header's name is looked up in lower case.
	first, second, _ := strings.Cut(strings.ToLower(arg), "?")
	var from func(*stream.Stream) *message.Head
	switch name {
	case "REQ", "REQUEST_HEADER":
		from = func(s *stream.Stream) *message.Head { return &s.Request }
	case "RESP", "RESPONSE_HEADER":
		from = func(s *stream.Stream) *message.Head { return &s.Response }
	case "TRAILER", "RESPONSE_TRAILER":
		from = func(s *stream.Stream) *message.Head { return &s.ResponseTrailers }
	default:
		return nil
	}
	return func(dst []byte, s *stream.Stream) ([]byte, bool) {
		h := from(s)
		v := h.Lookup(first)
		if v == nil && second != "" {
			v = h.Lookup(second)
		}
		return append(dst, v...), v != nil
	}
}

func startTime(arg string) getter {
	if arg == "" {
		return func(dst []byte, s *stream.Stream) ([]byte, bool) {
			return s.Start.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000Z"), true
		}
	}
	return func(dst []byte, s *stream.Stream) ([]byte, bool) { return strftime(dst, arg, s.Start.UTC()), true }
}

// layouts are the conversions of strftime that have a layout in package time.
var layouts = [128]string{'Y': "2006", 'm': "01", 'd': "02", 'H': "15", 'M': "04", 'S': "05", 'y': "06", 'b': "Jan", 'a': "Mon",
	'Z': "MST", 'z': "-0700", 'F': "2006-01-02", 'T': "15:04:05", 'e': "_2", 'j': "002", 'p': "PM", 'I': "03"}

// strftime writes the conversions that Envoy's users use; %f is the fraction of
// a second in nanoseconds, %3f its first three digits.
func strftime(dst []byte, f string, t time.Time) []byte {
	for i := 0; i < len(f); i++ {
		if f[i] != '%' || i+1 == len(f) {
			dst = append(dst, f[i])
			continue
		}
		i++
		digits := 9
		if f[i] >= '1' && f[i] <= '9' && i+1 < len(f) && f[i+1] == 'f' {
			digits = int(f[i] - '0')
			i++
		}
		switch c := f[i]; {
		case c < 128 && layouts[c] != "":
			dst = t.AppendFormat(dst, layouts[c])
		case c == '%':
			dst = append(dst, '%')
		case c == 's':
			dst = strconv.AppendInt(dst, t.Unix(), 10)
		case c == 'f':
			// A one in front keeps the zeros; it is taken away again.
			at := len(dst)
			dst = strconv.AppendInt(dst, int64(t.Nanosecond())+1e9, 10)
			copy(dst[at:], dst[at+1:])
			dst = dst[:at+digits]
		default:
			dst = append(dst, '%', c)
		}
	}
	return dst
}

// metadata is %DYNAMIC_METADATA(NAMESPACE:KEY:KEY…)%: text as it is, everything else as JSON.
func metadata(arg string) getter {
	path := strings.Split(arg, ":")
	return func(dst []byte, s *stream.Stream) ([]byte, bool) {
		key := ""
		if len(path) > 1 {
			key = path[1]
		}
		v := s.MetadataValue(path[0], key)
		for i := 2; i < len(path); i++ {
			m, _ := v.(map[string]any)
			v = m[path[i]]
		}
		switch v := v.(type) {
		case nil:
			return dst, false
		case string:
			return append(dst, v...), true
		case []byte:
			return append(dst, v...), true
		}
		b, err := json.Marshal(v)
		return append(dst, b...), err == nil
	}
}

func number(f func(s *stream.Stream) int64) getter {
	return func(dst []byte, s *stream.Stream) ([]byte, bool) {
		return strconv.AppendInt(dst, f(s), 10), true
	}
}

// since prints a timing in milliseconds, none where it did not happen.
func since(f func(t *stream.Timings) time.Duration) getter {
	return func(dst []byte, s *stream.Stream) ([]byte, bool) {
		d := f(&s.Timings)
		return strconv.AppendInt(dst, d.Milliseconds(), 10), d >= 0
	}
}

var numbers = map[string]getter{
	"RESPONSE_CODE":                  number(func(s *stream.Stream) int64 { return int64(s.Status) }),
	"BYTES_RECEIVED":                 number(func(s *stream.Stream) int64 { return int64(s.Received) }),
	"BYTES_SENT":                     number(func(s *stream.Stream) int64 { return int64(s.Sent) }),
	"DURATION":                       number(func(s *stream.Stream) int64 { return s.Duration.Milliseconds() }),
	"UPSTREAM_REQUEST_ATTEMPT_COUNT": number(func(s *stream.Stream) int64 { return int64(s.Attempts) }),
	"REQUEST_DURATION":               since(func(t *stream.Timings) time.Duration { return t.RequestEnd }),
	"REQUEST_TX_DURATION":            since(func(t *stream.Timings) time.Duration { return t.UpstreamEnd }),
	"RESPONSE_DURATION":              since(func(t *stream.Timings) time.Duration { return t.ResponseStart }),
	"RESPONSE_TX_DURATION": since(func(t *stream.Timings) time.Duration {
		if t.ResponseStart < 0 || t.ResponseEnd < 0 {
			return -1
		}
		return t.ResponseEnd - t.ResponseStart
	}),
	"CONNECTION_ID":          number(func(s *stream.Stream) int64 { return int64(s.Conn.ID) }),
	"DOWNSTREAM_REMOTE_PORT": number(func(s *stream.Stream) int64 { return int64(s.Remote.Port()) }),
	"DOWNSTREAM_LOCAL_PORT":  number(func(s *stream.Stream) int64 { return int64(s.Conn.Local.Port()) }),
	"REQUEST_HEADERS_BYTES":  number(func(s *stream.Stream) int64 { return int64(s.Request.Size()) }),
	"RESPONSE_HEADERS_BYTES": number(func(s *stream.Stream) int64 { return int64(s.Response.Size()) }),
	"GRPC_STATUS_NUMBER":     grpcStatus,
}

func grpcStatus(dst []byte, s *stream.Stream) ([]byte, bool) {
	v := s.ResponseTrailers.Get(message.GRPCStatus)
	if v == nil {
		v = s.Response.Get(message.GRPCStatus)
	}
	return append(dst, v...), v != nil
}

// peer is the client's identity, an empty one where it showed none.
func peer(s *stream.Stream) *stream.Peer {
	if p := s.Conn.Peer; p != nil {
		return p
	}
	return &stream.Peer{}
}

func text(f func(s *stream.Stream) string) getter {
	return func(dst []byte, s *stream.Stream) ([]byte, bool) {
		v := f(s)
		return append(dst, v...), v != ""
	}
}

func addrPort(f func(s *stream.Stream) netip.AddrPort) getter {
	return func(dst []byte, s *stream.Stream) ([]byte, bool) {
		a := f(s)
		if !a.IsValid() {
			return dst, false
		}
		return a.AppendTo(dst), true
	}
}

func addr(f func(s *stream.Stream) netip.AddrPort) getter {
	return func(dst []byte, s *stream.Stream) ([]byte, bool) {
		a := f(s).Addr()
		if !a.IsValid() {
			return dst, false
		}
		return a.AppendTo(dst), true
	}
}

var texts = map[string]getter{
	"PROTOCOL": func(dst []byte, s *stream.Stream) ([]byte, bool) {
		if s.Manager == nil { // a TCP connection
			return dst, false
		}
		return append(dst, s.Protocol.String()...), true
	},
	"RESPONSE_FLAGS":        func(dst []byte, s *stream.Stream) ([]byte, bool) { return s.Flags.Append(dst), true },
	"RESPONSE_CODE_DETAILS": text(func(s *stream.Stream) string { return s.Details }),
	"ROUTE_NAME": text(func(s *stream.Stream) string {
		if s.Route == nil {
			return ""
		}
		return s.Route.Name
	}),
	"VIRTUAL_HOST_NAME": text(func(s *stream.Stream) string {
		if s.Route == nil {
			return ""
		}
		return s.Route.VirtualHost
	}),
	"UPSTREAM_CLUSTER":     text(func(s *stream.Stream) string { return s.Cluster }),
	"UPSTREAM_CLUSTER_RAW": text(func(s *stream.Stream) string { return s.Cluster }),
	"UPSTREAM_HOST": text(func(s *stream.Stream) string {
		if s.Host == nil {
			return ""
		}
		return s.Host.String()
	}),
	"UPSTREAM_REMOTE_ADDRESS": addrPort(func(s *stream.Stream) netip.AddrPort {
		if s.Host == nil {
			return netip.AddrPort{}
		}
		return s.Host.Address()
	}),
	"UPSTREAM_LOCAL_ADDRESS":            addrPort(func(s *stream.Stream) netip.AddrPort { return s.UpstreamLocal }),
	"UPSTREAM_TRANSPORT_FAILURE_REASON": text(func(s *stream.Stream) string { return s.UpstreamFailure }),
	"UPSTREAM_PROTOCOL": text(func(s *stream.Stream) string {
		if s.Attempts == 0 {
			return ""
		}
		return s.UpstreamProto.String()
	}),
	"DOWNSTREAM_REMOTE_ADDRESS":                     addrPort(func(s *stream.Stream) netip.AddrPort { return s.Remote }),
	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":        addr(func(s *stream.Stream) netip.AddrPort { return s.Remote }),
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS":              addrPort(func(s *stream.Stream) netip.AddrPort { return s.Conn.Direct }),
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": addr(func(s *stream.Stream) netip.AddrPort { return s.Conn.Direct }),
	"DOWNSTREAM_LOCAL_ADDRESS":                      addrPort(func(s *stream.Stream) netip.AddrPort { return s.Conn.Local }),
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":         addr(func(s *stream.Stream) netip.AddrPort { return s.Conn.Local }),
	"DOWNSTREAM_PEER_URI_SAN":                       text(func(s *stream.Stream) string { return strings.Join(peer(s).URI, ",") }),
	"DOWNSTREAM_PEER_DNS_SAN":                       text(func(s *stream.Stream) string { return strings.Join(peer(s).DNS, ",") }),
	"DOWNSTREAM_PEER_SUBJECT":                       text(func(s *stream.Stream) string { return peer(s).Subject }),
	"DOWNSTREAM_PEER_FINGERPRINT_256":               text(func(s *stream.Stream) string { return peer(s).Hash }),
	"DOWNSTREAM_LOCAL_URI_SAN":                      text(func(s *stream.Stream) string { return peer(s).LocalURI }),
	"DOWNSTREAM_TLS_VERSION": text(func(s *stream.Stream) string {
		if s.Conn.TLS == nil {
			return ""
		}
		return tlsVersion(s.Conn.TLS.Version)
	}),
	"REQUESTED_SERVER_NAME": text(func(s *stream.Stream) string { return s.Conn.SNI }),
	"TRACE_ID":              text(func(s *stream.Stream) string { return s.TraceID }),
	"STREAM_ID": func(dst []byte, s *stream.Stream) ([]byte, bool) {
		v := s.Request.Get(message.XRequestID)
		return append(dst, v...), v != nil
	},
	"GRPC_STATUS": func(dst []byte, s *stream.Stream) ([]byte, bool) {
		at := len(dst)
		dst, ok := grpcStatus(dst, s)
		if n, err := strconv.Atoi(unsafe.String(unsafe.SliceData(dst[at:]), len(dst)-at)); ok && err == nil && n >= 0 && n < len(grpcNames) {
			dst = append(dst[:at], grpcNames[n]...)
		}
		return dst, ok
	},
	"HOSTNAME": text(func(*stream.Stream) string { return hostname }),
}

var grpcNames = [...]string{"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
	"ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated"}
