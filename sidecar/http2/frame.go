package http2

import "fmt"

// frameType is a type of RFC 9113 §6.
type frameType uint8

const (
	frameData frameType = iota
	frameHeaders
	framePriority
	frameReset
	frameSettings
	framePushPromise
	framePing
	frameGoAway
	frameWindowUpdate
	frameContinuation
)

// Flags of frames.
const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const frameHeaderLen = 9

// ErrCode is an error code of RFC 9113 §7.
type ErrCode uint32

// The error codes.
const (
	NoError ErrCode = iota
	ProtocolError
	InternalError
	FlowControlError
	SettingsTimeout
	StreamClosed
	FrameSizeError
	RefusedStream
	Cancel
	CompressionError
	ConnectError
	EnhanceYourCalm
	InadequateSecurity
	HTTP11Required
)

var codeNames = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
	"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
	"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}

func (c ErrCode) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("error code %d", uint32(c))
}

// ConnError is what the peer did that ends the connection (RFC 9113 §5.4.1).
type ConnError struct {
	Code   ErrCode
	Reason string
}

func (e *ConnError) Error() string { return "HTTP/2 " + e.Code.String() + ": " + e.Reason }

func connError(code ErrCode, reason string) *ConnError { return &ConnError{code, reason} }

// rule is what holds for every frame of a type, whatever the state of its
// stream: checked in one place before any handler sees the frame.
type rule struct {
	name           string
	stream         onStream
	minLen, maxLen uint32
	multiple       uint32 // the length is a multiple of it
	// openOnly: on an idle stream it is an error (§5.1). HEADERS is what opens a stream.
	openOnly bool
}

// onStream says where a frame may stand.
type onStream uint8

const (
	anyStream onStream = iota
	streamOnly
	connOnly
)

// rules are RFC 9113 §6.1–6.10. A wrong stream identifier is PROTOCOL_ERROR, a
// wrong length FRAME_SIZE_ERROR, of the connection; only a wrong length of PRIORITY is
// an error of its stream (§6.3), and left to its handler.
var rules = [...]rule{
	frameData:         {"DATA", streamOnly, 0, maxMaxFrame, 1, true},
	frameHeaders:      {"HEADERS", streamOnly, 0, maxMaxFrame, 1, false},
	framePriority:     {"PRIORITY", streamOnly, 0, maxMaxFrame, 1, false},
	frameReset:        {"RST_STREAM", streamOnly, 4, 4, 1, true},
	frameSettings:     {"SETTINGS", connOnly, 0, maxMaxFrame, 6, false},
	framePushPromise:  {"PUSH_PROMISE", streamOnly, 4, maxMaxFrame, 1, false},
	framePing:         {"PING", connOnly, 8, 8, 1, false},
	frameGoAway:       {"GOAWAY", connOnly, 8, maxMaxFrame, 1, false},
	frameWindowUpdate: {"WINDOW_UPDATE", anyStream, 4, 4, 1, true},
	frameContinuation: {"CONTINUATION", streamOnly, 0, maxMaxFrame, 1, false},
}

// header is a frame's header (RFC 9113 §4.1).
type header struct {
	length uint32
	kind   frameType
	flags  uint8
	stream uint32
}

func parseHeader(p []byte) header {
	_ = p[8]
	return header{
		length: uint32(p[0])<<16 | uint32(p[1])<<8 | uint32(p[2]),
		kind:   frameType(p[3]),
		flags:  p[4],
		stream: be32(p[5:]) &^ (1 << 31),
	}
}

func (h *header) has(flag uint8) bool { return h.flags&flag != 0 }

// check applies the rules. Frames of unknown types pass (§5.5).
func (h *header) check(maxFrame uint32) *ConnError {
	if h.length > maxFrame {
		return connError(FrameSizeError, "a frame is larger than SETTINGS_MAX_FRAME_SIZE")
	}
	if int(h.kind) >= len(rules) {
		return nil
	}
	r := &rules[h.kind]
	if h.length < r.minLen || h.length > r.maxLen || r.multiple > 1 && h.length%r.multiple != 0 {
		return connError(FrameSizeError, r.name+" of a wrong length")
	}
	if r.stream == streamOnly && h.stream == 0 || r.stream == connOnly && h.stream != 0 {
		return connError(ProtocolError, r.name+" on a wrong stream")
	}
	return nil
}

func be32(p []byte) uint32 {
	_ = p[3]
	return uint32(p[0])<<24 | uint32(p[1])<<16 | uint32(p[2])<<8 | uint32(p[3])
}

// putHeader writes a frame's header to the first nine bytes of dst.
func putHeader(dst []byte, length int, kind frameType, flags uint8, stream uint32) {
	_ = dst[8]
	dst[0], dst[1], dst[2] = byte(length>>16), byte(length>>8), byte(length)
	dst[3], dst[4] = byte(kind), flags
	put32(dst[5:], stream)
}

func put32(dst []byte, v uint32) {
	_ = dst[3]
	dst[0], dst[1], dst[2], dst[3] = byte(v>>24), byte(v>>16), byte(v>>8), byte(v)
}

// Identifiers of SETTINGS (RFC 9113 §6.5.2, RFC 8441 §3).
const (
	settingTableSize = iota + 1
	settingEnablePush
	settingMaxStreams
	settingInitialWindow
	settingMaxFrame
	settingMaxHeaderList
	settingConnectProtocol = 8
)
