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
// at all times and from every control plane; 2^27 addresses make it unlikely that two names meet, and then the one that
// comes later in the order of names takes the next hash.
var virtualPrefix6 = netip.MustParsePrefix("fd53:616c:6c79::/48")

const (
	virtualBase4 = 240 << 24
	virtualMask4 = 1<<27 - 1
)

// virtualAddresses gives each service its own.
func virtualAddresses(names []catalog.Name) map[catalog.Name]virtual {
	out := make(map[catalog.Name]virtual, len(names))
	taken := make(map[netip.Addr]bool, len(names))
	for _, n := range names { // sorted: see catalog.Snapshot.Names
		sum := sha256.Sum256([]byte(n.String()))
		for {
			low := binary.BigEndian.Uint32(sum[:]) & virtualMask4
			v4 := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, virtualBase4|low)))
			// .0 and .255 look like networks and broadcasts to some programs.
			if last := byte(low); taken[v4] || last == 0 || last == 255 {
				sum = sha256.Sum256(sum[:])
				continue
			}
			taken[v4] = true
			v6 := virtualPrefix6.Addr().As16()
			copy(v6[6:], sum[4:14])
			out[n] = virtual{v4, netip.AddrFrom16(v6)}
			break
		}
	}
	return out
}
