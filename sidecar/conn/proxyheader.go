package conn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
)

// The PROXY protocol, https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt:
// what a proxy in front puts before the first byte, to tell whose connection
// it passes on.

// ErrNoProxyHeader says that the first bytes are no PROXY header, which a
// listener that allows both takes as the beginning of the protocol itself.
var ErrNoProxyHeader = errors.New("no PROXY protocol header")

// ErrBadProxyHeader says that there is one and that it is broken.
var ErrBadProxyHeader = errors.New("malformed PROXY protocol header")

// MaxProxyHeader bounds a header with its TLVs; the protocol would allow 64 KiB.
const MaxProxyHeader = 4 << 10

const (
	proxyV1     = "PROXY "
	maxProxyV1  = 107 // with CRLF, §2.1
	proxyV2     = "\r\n\r\n\x00\r\nQUIT\n"
	proxyV2Size = 16
	tlvCRC32C   = 0x03
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ParseProxyHeader looks for a header of version 1 or 2 at the beginning of p.
// n is its length, TLVs included. src and dst are the zero AddrPort where the
// header says UNKNOWN, LOCAL, or a family other than TCP over IP: the
// connection's own addresses count then. needMore asks for more bytes.
func ParseProxyHeader(p []byte) (src, dst netip.AddrPort, n int, needMore bool, err error) {
	switch {
	case hasSignature(p, proxyV1):
		return parseProxyV1(p)
	case hasSignature(p, proxyV2):
		return parseProxyV2(p)
	}
	return src, dst, 0, false, ErrNoProxyHeader
}

// hasSignature says whether p begins with signature, as far as p goes.
func hasSignature(p []byte, signature string) bool {
	n := min(len(p), len(signature))
	return string(p[:n]) == signature[:n]
}

func badProxy(what string) (src, dst netip.AddrPort, n int, needMore bool, err error) {
	return src, dst, 0, false, fmt.Errorf("%w: %s", ErrBadProxyHeader, what)
}

func parseProxyV1(p []byte) (src, dst netip.AddrPort, n int, needMore bool, err error) {
	line := p[:min(len(p), maxProxyV1)]
	end := bytes.IndexByte(line, '\n')
	if end < 0 {
		if len(p) >= maxProxyV1 {
			return badProxy("the line is longer than 107 bytes")
		}
		return src, dst, 0, true, nil
	}
	n = end + 1
	if line[end-1] != '\r' {
		return badProxy("the line does not end in CRLF")
	}
	fields := bytes.Split(line[len(proxyV1):end-1], []byte{' '})
	if string(fields[0]) == "UNKNOWN" {
		// "the receiver must ignore anything presented before the CRLF"
		return src, dst, n, false, nil
	}
	four := string(fields[0]) == "TCP4"
	if len(fields) != 5 || !four && string(fields[0]) != "TCP6" {
		return badProxy("want TCP4 or TCP6, two addresses and two ports")
	}
	src, ok1 := proxyAddr(fields[1], fields[3], four)
	dst, ok2 := proxyAddr(fields[2], fields[4], four)
	if !ok1 || !ok2 {
		return badProxy("an address or port is invalid")
	}
	return src, dst, n, false, nil
}

func proxyAddr(addr, port []byte, four bool) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(string(addr))
	if err != nil || a.Is4() != four || a.Zone() != "" {
		return netip.AddrPort{}, false
	}
	// Decimal without sign or leading zero, §2.1.
	n, err := strconv.ParseUint(string(port), 10, 16)
	if err != nil || port[0] == '+' || len(port) > 1 && port[0] == '0' {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), true
}

func parseProxyV2(p []byte) (src, dst netip.AddrPort, n int, needMore bool, err error) {
	if len(p) > 12 && p[12]>>4 != 2 {
		return badProxy("the version is not 2")
	}
	if len(p) > 12 && p[12]&0xf > 1 {
		return badProxy("the command is neither LOCAL nor PROXY")
	}
	if len(p) < proxyV2Size {
		return src, dst, 0, true, nil
	}
	n = proxyV2Size + int(binary.BigEndian.Uint16(p[14:]))
	if n > MaxProxyHeader {
		return badProxy("it is longer than 4 KiB")
	}
	if len(p) < n {
		return src, dst, 0, true, nil
	}
	body := p[proxyV2Size:n]
	addresses := 0
	switch p[13] >> 4 {
	case 1:
		addresses = 12
	case 2:
		addresses = 36
	case 3:
		addresses = 216
	case 0:
	default:
		return badProxy("the address family is unknown")
	}
	if p[12]&0xf == 0 || p[13]>>4 == 0 {
		// LOCAL, or AF_UNSPEC: "the receiver must discard the protocol block".
		return src, dst, n, false, nil
	}
	if p[13]&0xf == 0 || p[13]&0xf > 2 {
		return badProxy("the transport is neither STREAM nor DGRAM")
	}
	if len(body) < addresses {
		return badProxy("the addresses are cut off")
	}
	if !validTLVs(p[:n], proxyV2Size+addresses) {
		return badProxy("a TLV is cut off, or the checksum is wrong")
	}
	if p[13]&0xf == 1 {
		src, dst = proxyAddrs(body, addresses)
	}
	return src, dst, n, false, nil
}

func proxyAddrs(b []byte, size int) (src, dst netip.AddrPort) {
	switch size {
	case 12:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), binary.BigEndian.Uint16(b[8:])),
			netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:])), binary.BigEndian.Uint16(b[10:]))
	case 36:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)).Unmap(), binary.BigEndian.Uint16(b[32:])),
			netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[16:])).Unmap(), binary.BigEndian.Uint16(b[34:]))
	}
	return src, dst
}

// validTLVs checks that the TLVs from off on fill the header, and the checksum
// where there is one, §2.2.
func validTLVs(header []byte, off int) bool {
	sums := 0
	for off < len(header) {
		if len(header)-off < 3 {
			return false
		}
		size := int(binary.BigEndian.Uint16(header[off+1:]))
		if len(header)-off-3 < size {
			return false
		}
		if header[off] == tlvCRC32C {
			if sums++; sums > 1 || size != 4 || !validSum(header, off+3) {
				return false
			}
		}
		off += 3 + size
	}
	return true
}

// validSum compares the CRC32c at off, which counts as zero in its own sum.
func validSum(header []byte, off int) bool {
	sum := crc32.Checksum(header[:off], castagnoli)
	sum = crc32.Update(sum, castagnoli, []byte{0, 0, 0, 0})
	sum = crc32.Update(sum, castagnoli, header[off+4:])
	return sum == binary.BigEndian.Uint32(header[off:])
}

// ProxyTLV returns the first TLV of that type in a version 2 header that
// ParseProxyHeader accepted, given as the n bytes it spoke of.
func ProxyTLV(header []byte, typ byte) (value []byte, ok bool) {
	if len(header) < proxyV2Size || !hasSignature(header, proxyV2) {
		return nil, false
	}
	off := proxyV2Size + [...]int{0, 12, 36, 216}[header[13]>>4&3]
	for off+3 <= len(header) {
		size := int(binary.BigEndian.Uint16(header[off+1:]))
		if off+3+size > len(header) {
			return nil, false
		}
		if header[off] == typ {
			return header[off+3 : off+3+size], true
		}
		off += 3 + size
	}
	return nil, false
}

// AppendProxyHeader appends a header of version 1 or 2 that says src and dst.
// Where they are not both valid it is UNKNOWN in version 1 and LOCAL in version 2.
func AppendProxyHeader(b []byte, version int, src, dst netip.AddrPort) []byte {
	valid := src.IsValid() && dst.IsValid()
	s, d := src.Addr().Unmap().WithZone(""), dst.Addr().Unmap().WithZone("")
	four := s.Is4() && d.Is4()
	if version == 1 {
		if !valid {
			return append(b, "PROXY UNKNOWN\r\n"...)
		}
		if four {
			b = append(b, "PROXY TCP4 "...)
		} else {
			b = append(b, "PROXY TCP6 "...)
		}
		b = append(appendProxyAddr(b, s, four), ' ')
		b = append(appendProxyAddr(b, d, four), ' ')
		b = append(strconv.AppendUint(b, uint64(src.Port()), 10), ' ')
		b = strconv.AppendUint(b, uint64(dst.Port()), 10)
		return append(b, '\r', '\n')
	}
	b = append(b, proxyV2...)
	switch {
	case !valid:
		return append(b, 0x20, 0x00, 0, 0)
	case four:
		b = append(b, 0x21, 0x11, 0, 12)
		b = append(append(b, s.AsSlice()...), d.AsSlice()...)
	default:
		s, d := s.As16(), d.As16()
		b = append(b, 0x21, 0x21, 0, 36)
		b = append(append(b, s[:]...), d[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}

// appendProxyAddr writes an IPv4 address between IPv6 ones as ::ffff:a.b.c.d.
func appendProxyAddr(b []byte, a netip.Addr, four bool) []byte {
	if !four {
		a = netip.AddrFrom16(a.As16())
	}
	return a.AppendTo(b)
}
