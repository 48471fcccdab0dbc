package build

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"sallyport/xds/catalog"
)

// virtual is the address under which a transparent sidecar's application reaches a service whose instances come and go.
type virtual struct{ v4, v6 netip.Addr }

// The virtual addresses are of ranges that are routed nowhere: half of the reserved class E (RFC 1112 §4), 240.0.0.0/5, and
// a unique local prefix of our own (RFC 4193), fd53:616c:6c79::/48. A service's is made of its name, so that it is the same
// at all times and from every control plane; 2^27 addresses make it unlikely that two names meet. A name that meets another
// can be searched for, so then neither has the address and both take their next hash: nobody takes an address from a service
// whose clients remember it.
var virtualPrefix4 = netip.MustParsePrefix("240.0.0.0/5")

var virtualPrefix6 = netip.MustParsePrefix("fd53:616c:6c79::/48")

const (
	virtualBase4 = 240 << 24
	virtualMask4 = 1<<27 - 1
)

// virtualAddresses gives each service its own.
func virtualAddresses(names []catalog.Name) map[catalog.Name]virtual {
	out := make(map[catalog.Name]virtual, len(names))
	taken := make(map[netip.Addr]bool, len(names))
	sums := make(map[catalog.Name][sha256.Size]byte, len(names))
	for _, n := range names {
		sums[n] = nextAddress(sha256.Sum256([]byte(n.String())))
	}
	for left := names; len(left) > 0; {
		claims := make(map[netip.Addr]int, len(left))
		for _, n := range left {
			claims[address4(sums[n])]++
		}
		var again []catalog.Name
		for _, n := range left {
			a := address4(sums[n])
			if claims[a] > 1 || taken[a] {
				sum := sums[n]
				sums[n] = nextAddress(sha256.Sum256(sum[:]))
				again = append(again, n)
				continue
			}
			sum, v6 := sums[n], virtualPrefix6.Addr().As16()
			copy(v6[6:], sum[4:14])
			out[n] = virtual{a, netip.AddrFrom16(v6)}
		}
		// None of them again, not even where nobody has it.
		for a := range claims {
			taken[a] = true
		}
		left = again
	}
	return out
}

// address4 is the IPv4 address that a hash means.
func address4(sum [sha256.Size]byte) netip.Addr {
	low := binary.BigEndian.Uint32(sum[:]) & virtualMask4
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, virtualBase4|low)))
}

// nextAddress is a hash, or the first after it whose address does not end in 0 or 255: some programs take those for networks
// and broadcasts.
func nextAddress(sum [sha256.Size]byte) [sha256.Size]byte {
	for {
		if last := address4(sum).As4()[3]; last != 0 && last != 255 {
			return sum
		}
		sum = sha256.Sum256(sum[:])
	}
}
