package sidecar

import (
	"io"
	"strings"
	"testing"
)

// TestValidateRefusesTwoListenersOfOneAddress, as Envoy's --mode validate does.
func TestValidateRefusesTwoListenersOfOneAddress(t *testing.T) {
	l := func(name, port string) string {
		return `{name: ` + name + `, address: {socket_address: {address: 127.0.0.5, port_value: ` + port + `}}, filter_chains: [{filters: [{name: tcp, typed_config: {` +
			`"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: c}}]}]}`
	}
	for name, c := range map[string]struct {
		listeners []string
		refused   bool
	}{
		"one address":   {[]string{l("first", "80"), l("second", "80")}, true},
		"two addresses": {[]string{l("first", "80"), l("second", "81")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := Validate(Options{ConfigYAML: "static_resources: {clusters: [{name: c}], listeners: [" + strings.Join(c.listeners, ", ") + "]}"}, io.Discard)
			if refused := err != nil && strings.Contains(err.Error(), `"second" has duplicate address 127.0.0.5:80 as listener "first"`); refused != c.refused || err != nil && !refused {
				t.Errorf("%v", err)
			}
		})
	}
}
