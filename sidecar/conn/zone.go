package conn

import (
	"fmt"
	"net"
	"strconv"
)

// zoneIndex is the interface number of an IPv6 zone, 0 for none.
func zoneIndex(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	ifi, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("IPv6 zone %q: %w", zone, err)
	}
	return uint32(ifi.Index), nil
}

// zoneName is a number: to look names up is not for the path of a connection.
func zoneName(index uint32) string { return strconv.FormatUint(uint64(index), 10) }
