package hpack

import "sallyport/sidecar/message"

// staticLen is one more than the highest index of the static table; the
// dynamic table begins there (RFC 7541 §2.3.3).
const staticLen = 62

// staticEntry is an entry of the static table (RFC 7541 Appendix A).
type staticEntry struct {
	name  string
	value []byte
	known message.Name
}

var staticTable = func() (t [staticLen]staticEntry) {
	for i, e := range [staticLen][2]string{1: {":authority", ""},
		{":method", "GET"}, {":method", "POST"}, {":path", "/"}, {":path", "/index.html"}, {":scheme", "http"}, {":scheme", "https"},
		{":status", "200"}, {":status", "204"}, {":status", "206"}, {":status", "304"}, {":status", "400"}, {":status", "404"},
		{":status", "500"}, {"accept-charset", ""}, {"accept-encoding", "gzip, deflate"}, {"accept-language", ""},
		{"accept-ranges", ""}, {"accept", ""}, {"access-control-allow-origin", ""}, {"age", ""}, {"allow", ""},
		{"authorization", ""}, {"cache-control", ""}, {"content-disposition", ""}, {"content-encoding", ""},
		{"content-language", ""}, {"content-length", ""}, {"content-location", ""}, {"content-range", ""}, {"content-type", ""},
		{"cookie", ""}, {"date", ""}, {"etag", ""}, {"expect", ""}, {"expires", ""}, {"from", ""}, {"host", ""}, {"if-match", ""},
		{"if-modified-since", ""}, {"if-none-match", ""}, {"if-range", ""}, {"if-unmodified-since", ""}, {"last-modified", ""},
		{"link", ""}, {"location", ""}, {"max-forwards", ""}, {"proxy-authenticate", ""}, {"proxy-authorization", ""},
		{"range", ""}, {"referer", ""}, {"refresh", ""}, {"retry-after", ""}, {"server", ""}, {"set-cookie", ""},
		{"strict-transport-security", ""}, {"transfer-encoding", ""}, {"user-agent", ""}, {"vary", ""}, {"via", ""},
		{"www-authenticate", ""}} {
		t[i] = staticEntry{e[0], []byte(e[1]), message.NameOf([]byte(e[0]))}
	}
	return t
}()

// staticIndex is, for each known name, its first index in the static table, or
// 0. Entries of one name stand together.
var staticIndex = func() (t [256]uint8) {
	for i := staticLen - 1; i > 0; i-- {
		t[staticTable[i].known] = uint8(i)
	}
	t[message.Unknown] = 0
	return t
}()
