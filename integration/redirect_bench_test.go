package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sallyport/integration/harness"
)

// spring sends zeros to whoever connects, until they have enough.
var spring = harness.Program("spring", func(args []string) int {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return 1
		}
		go func() {
			defer c.Close()
			for block := make([]byte, 256<<10); ; {
				if _, err := c.Write(block); err != nil {
					return
				}
			}
		}()
	}
})

const redirectBootstrap = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}
static_resources:
  listeners:
  - name: outbound
    address: {socket_address: {address: 0.0.0.0, port_value: 15001}}
    use_original_dst: true
    filter_chains:
    - filter_chain_match: {destination_port: 81}
      filters: &tcp [{name: envoy.filters.network.tcp_proxy, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: source}}]
    - filters: &http
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app}}]}]}
          http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
  - name: explicit
    address: {socket_address: {address: 127.0.0.1, port_value: 15002}}
    filter_chains: [{filters: *http}]
  - name: explicit-tcp
    address: {socket_address: {address: 127.0.0.1, port_value: 15003}}
    filter_chains: [{filters: *tcp}]
  clusters:
  - &cluster {name: app, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8080}}}}]}]}}
  - {name: source, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: source, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8081}}}}]}]}}
`

// BenchmarkRedirect compares what comes to a sidecar by redirection with what is sent to its port, in one run:
//
//	go test -run '^$' -bench Redirect -benchtime 10s -count 3 ./integration
func BenchmarkRedirect(b *testing.B) {
	h := harness.NewNetwork(b).Host("a")
	h.Start(shopkeeper("app", "8080", public))
	h.Start(spring("127.0.0.1:8081"))
	dir := b.TempDir()
	file := filepath.Join(dir, "bootstrap.yaml")
	if err := os.WriteFile(file, []byte(redirectBootstrap), 0o600); err != nil {
		b.Fatal(err)
	}
	p := h.Start(harness.Command{Name: "sidecar", Path: "setpriv", Args: []string{"--regid", "1337", "--clear-groups", harness.Binary(b), "sidecar", "-c", file, "--concurrency", "1"}})
	client := h.HTTPClient()
	p.WaitFor("an answer", func() error {
		r, err := client.Get("http://127.0.0.1:15002/")
		if err == nil {
			r.Body.Close()
		}
		return err
	})
	h.Must(harness.Binary(b), "redirect", "apply", "--inbound-mode", "off", "--dns-port", "0", "--sidecar-gid", "1337", "--exclude-uids", "65534")
	// 240.0.0.1 is nobody's: what is sent there comes to the sidecar by redirection, and by 15002 and 15003 it is sent to it.
	b.Run("requests", func(b *testing.B) {
		get := func(addr string) {
			for range 50 {
				r, err := client.Get("http://" + addr + "/")
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, r.Body)
				r.Body.Close()
				if r.StatusCode != http.StatusOK {
					b.Fatal(r.Status)
				}
			}
		}
		beside(b, p, func() { get("127.0.0.1:15002") }, func() { get("240.0.0.1:80") })
	})
	b.Run("bytes", func(b *testing.B) {
		buf := make([]byte, 1<<20)
		// A connection of its own for each turn: one that waits meanwhile would have full buffers, and the kernel's idea of its
		// rate from before.
		from := func(addr string) func() {
			return func() {
				c, err := h.Dial("tcp", addr)
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				for range 1024 {
					if _, err := io.ReadFull(c, buf); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		beside(b, p, from("127.0.0.1:15003"), from("240.0.0.1:81"))
	})
}

// beside does the same by two ways in turns, so that a busy machine is so for both, and reports how much longer the second
// takes, by the medians, and how much more CPU it costs the sidecar and the client, whose process this is.
func beside(b *testing.B, sidecar *harness.Process, explicit, redirected func()) {
	var took [2][]time.Duration
	var cpu [2]time.Duration
	for b.Loop() {
		for i, way := range []func(){explicit, redirected} {
			before, start := cpuOf(b, sidecar.Pid())+cpuOf(b, os.Getpid()), time.Now()
			way()
			took[i] = append(took[i], time.Since(start))
			cpu[i] += cpuOf(b, sidecar.Pid()) + cpuOf(b, os.Getpid()) - before
		}
	}
	for i := range took {
		slices.Sort(took[i])
	}
	median := func(i int) float64 { return float64(took[i][len(took[i])/2]) }
	b.ReportMetric(median(1)/median(0), "time-redirected/explicit")
	b.ReportMetric(float64(cpu[1])/float64(cpu[0]), "CPU-redirected/explicit")
}

// cpuOf is the CPU time of a process so far, in the kernel's units of 10 ms (proc_pid_stat(5)).
func cpuOf(b *testing.B, pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest) // from the third, state
	var ticks time.Duration
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}
