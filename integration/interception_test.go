package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/miekg/dns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"sallyport/certs/source"
	"sallyport/certs/workload"
	"sallyport/integration/harness"
	"sallyport/sidecar/probe"
)

// secret is in every answer of an application of the mesh, and must be in no packet; public is in those of the one outside.
const (
	secret = "the-recipe-is-not-for-the-wire"
	public = "everybody-may-read-this"
)

// shopkeeper is an application that knows nothing of a mesh: HTTP/1.1 with WebSocket, and gRPC, on one port.
var shopkeeper = harness.Program("shopkeeper", func(args []string) int {
	g := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	s := &http.Server{Addr: ":" + args[1], ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
			g.ServeHTTP(w, r)
		case r.Header.Get("Upgrade") == "websocket":
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
			_, _ = io.Copy(c, rw)
		default:
			fmt.Fprintf(w, "%s says %s to %s for %q\n", args[0], args[2], r.RemoteAddr, r.Header.Get("X-Forwarded-Client-Cert"))
		}
	})}
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	fmt.Println(s.ListenAndServe())
	return 1
})

// ledger speaks first, as MySQL and SMTP do, and then answers line by line.
var ledger = harness.Program("ledger", func(args []string) int {
	l, err := net.Listen("tcp", ":"+args[0])
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
			fmt.Fprintln(c, "220", args[1])
			for in := bufio.NewScanner(c); in.Scan(); {
				fmt.Fprintln(c, "you said", in.Text())
			}
		}()
	}
})

// buyer is a Go program that looks names up as Go does and talks: "http URL", "grpc ADDR", "lines ADDR TEXT", "websocket ADDR".
var buyer = harness.Program("buyer", func(args []string) int {
	text, err := buy(args)
	fmt.Println(text)
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
})

func buy(args []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	switch args[0] {
	case "http":
		r, err := http.Get(args[1])
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return fmt.Sprintf("%d %s", r.StatusCode, b), err
	case "grpc":
		c, err := grpc.NewClient(args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return "", err
		}
		defer c.Close()
		a, err := grpc_health_v1.NewHealthClient(c).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		return a.GetStatus().String(), err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", args[1])
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	in := bufio.NewReader(c)
	if args[0] == "lines" {
		greeting, err := in.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("no greeting: %w", err)
		}
		fmt.Fprintln(c, args[2])
		answer, err := in.ReadString('\n')
		return greeting + answer, err
	}
	fmt.Fprintf(c, "GET /chat HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", args[1])
	r, err := http.ReadResponse(in, nil)
	if err != nil {
		return "", err
	}
	if r.StatusCode != http.StatusSwitchingProtocols {
		return "", fmt.Errorf("status %d", r.StatusCode)
	}
	for i := range 3 {
		fmt.Fprintf(c, "frame %d\n", i)
		if line, err := in.ReadString('\n'); err != nil || line != fmt.Sprintf("frame %d\n", i) {
			return "", fmt.Errorf("%q, %w", line, err)
		}
	}
	return "echoed", nil
}

// village is a mesh of unmodified applications on hosts of their own: storefront calls, orders (HTTP), ledger (TCP) and
// stock (gRPC) serve. The
// outsider has no sidecar. Consul, the control plane and a name server are on the hub.
type village struct {
	t                                             *testing.T
	hub, storefront, orders, ledger, stock, other *harness.Host
	consul                                        *harness.ConsulAgent
	control                                       *harness.ControlPlane
	wire                                          *harness.Capture
	before                                        map[*harness.Host]string
	sidecars                                      map[*harness.Host]*harness.Process
}

func newVillage(t *testing.T) *village {
	t.Helper()
	for _, tool := range []string{"curl", "nft", "ip", "setpriv"} {
		if _, err := exec.LookPath(tool); err != nil {
			harness.NotRun(t, tool+" is not installed (Debian: curl nftables iproute2 util-linux)")
		}
	}
	harness.Need(t, harness.Consul)
	lan := harness.NewNetwork(t)
	v := &village{t: t, hub: lan.Host("hub"), storefront: lan.Host("storefront"), orders: lan.Host("orders"), ledger: lan.Host("ledger"), stock: lan.Host("stock"), other: lan.Host("other"),
		before: map[*harness.Host]string{}, sidecars: map[*harness.Host]*harness.Process{}}
	v.wire = lan.Capture()
	v.nameServer()
	for _, h := range []*harness.Host{v.storefront, v.orders, v.ledger, v.stock} {
		h.ResolvConf("nameserver " + v.hub.IPv4.String() + "\noptions timeout:5 attempts:2\n")
		v.before[h] = network(t, h)
	}
	v.consul = harness.NewConsul(t).On(v.hub).Run()
	v.consul.Entry(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "orders", Protocol: "http"})
	v.consul.Entry(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "storefront", Protocol: "http"})
	v.consul.Entry(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "ledger", Protocol: "tcp"})
	v.consul.Entry(&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "stock", Protocol: "grpc"})
	v.consul.Intend("*", "*", true)
	v.control = harness.NewControlPlane(t).On(v.hub).Consul(v.consul).Run()
	v.orders.Start(shopkeeper("orders", "8080", secret))
	v.ledger.Start(ledger("3306", secret))
	v.stock.Start(shopkeeper("stock", "9000", secret))
	v.other.Start(shopkeeper("other", "8080", public))
	v.join(v.storefront, "storefront", 8000)
	v.join(v.orders, "orders", 8080)
	v.join(v.ledger, "ledger", 3306)
	v.join(v.stock, "stock", 9000)
	v.eventually("the mesh answers", func() error {
		return v.says("storefront", "orders says "+secret, "curl", "-sS", "-m", "5", "http://orders/")
	})
	return v
}

// nameServer answers for one name that is not of the mesh.
func (v *village) nameServer() {
	v.t.Helper()
	var packets net.PacketConn
	v.hub.Do(func() (err error) { packets, err = net.ListenPacket("udp4", v.hub.IPv4.String()+":53"); return err })
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Name == "outside.example." && q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: v.other.IPv4.AsSlice()}}
		} else if q.Question[0].Name != "outside.example." {
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: answer}, {Listener: v.hub.Listen("tcp4", v.hub.IPv4.String()+":53", nil), Handler: answer}} {
		go func() { _ = s.ActivateAndServe() }()
		v.t.Cleanup(func() { _ = s.Shutdown() })
	}
}

// join registers a service, starts its sidecar and redirects its host.
func (v *village) join(h *harness.Host, service string, port int) {
	v.t.Helper()
	v.register(h, service, port)
	v.start(h, service, port)
	h.Must(harness.Binary(v.t), "redirect", "apply")
}

func (v *village) register(h *harness.Host, service string, port int) {
	v.t.Helper()
	at := func(port int) string { return netip.AddrPortFrom(h.IPv4, uint16(port)).String() }
	v.consul.Register(harness.Instance{Service: service, Addr: at(port)})
	v.consul.Register(harness.Instance{ID: service + "-sidecar-proxy", Service: service + "-sidecar-proxy", Addr: at(15006), Kind: api.ServiceKindConnectProxy,
		Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: service, DestinationServiceID: service}})
}

// start runs the sidecar as a user without any capability.
func (v *village) start(h *harness.Host, service string, port int, flags ...string) {
	v.t.Helper()
	v.startBy(h, service, port, []string{"--reuid", "1337", "--regid", "1337", "--clear-groups", "--bounding-set", "-all"}, flags...)
}

func (v *village) startBy(h *harness.Host, service string, port int, privileges []string, flags ...string) {
	v.t.Helper()
	args := append(privileges, harness.Binary(v.t), "sidecar", "--service", service, "--port", fmt.Sprint(port), "--control-plane", v.control.Addr(),
		"--transparent", "--token", v.control.Token("--service", service), "--admin", "127.0.0.1:15000", "--health-address", "0.0.0.0:15021")
	probes := fmt.Sprintf(`{"/app-health/app/readyz": {"tcpSocket": {"port": %d}}, "/app-health/app/livez": {"httpGet": {"path": "/", "port": %d}},
		"/app-health/app/startupz": {"grpc": {"port": %d}}, "/app-health/app/gone": {"tcpSocket": {"port": 9}}}`, port, port, port)
	p := h.Start(harness.Command{Name: "sidecar", Path: "setpriv", Args: append(args, flags...), Env: []string{probe.Environment + "=" + probes}})
	v.sidecars[h] = p
	client := v.other.HTTPClient()
	p.WaitFor("readiness", func() error {
		r, err := client.Get("http://" + h.IPv4.String() + ":15021/healthz/ready")
		if err != nil {
			return err
		}
		r.Body.Close()
		if r.StatusCode != 200 {
			return errors.New(r.Status)
		}
		return nil
	})
}

func (v *village) host(name string) *harness.Host {
	return map[string]*harness.Host{"hub": v.hub, "storefront": v.storefront, "orders": v.orders, "ledger": v.ledger, "stock": v.stock, "other": v.other}[name]
}

// says runs a program on a host and looks for a text in what it prints; without a text it must fail.
func (v *village) says(host, want, program string, args ...string) error {
	v.t.Helper()
	out := v.host(host).Run(program, args...)
	if want == "" {
		if out.Code == 0 {
			return fmt.Errorf("%s: %s %q should have failed and says %q", host, program, args, out.Stdout)
		}
		return nil
	}
	if out.Code != 0 || !strings.Contains(out.Stdout, want) {
		return fmt.Errorf("%s: %s %q: exit code %d, %q, want %q", host, program, args, out.Code, out.Stdout+out.Stderr, want)
	}
	return nil
}

func (v *village) must(host, want, program string, args ...string) {
	v.t.Helper()
	if err := v.says(host, want, program, args...); err != nil {
		v.t.Error(err)
	}
}

// buys is must for the Go program.
func (v *village) buys(host, want string, args ...string) {
	v.t.Helper()
	p := v.host(host).Start(buyer(args...))
	if code := p.WaitExit(30 * time.Second); code != 0 || !strings.Contains(p.Log(), want) {
		v.t.Errorf("%s: buyer %q: exit code %d, %q, want %q", host, args, code, p.Log(), want)
	}
}

func (v *village) eventually(what string, check func() error) {
	v.t.Helper()
	harness.Eventually(v.t, 20*time.Second, what, check)
}

const curl = "curl"

// TestApplicationsThatKnowNothingOfTheMesh is what interception is for.
func TestApplicationsThatKnowNothingOfTheMesh(t *testing.T) {
	v := newVillage(t)
	orders, ledger, other := v.orders.IPv4.String(), v.ledger.IPv4.String(), v.other.IPv4.String()
	get := func(host, want string, args ...string) {
		t.Helper()
		v.must(host, want, curl, append([]string{"-sS", "-m", "10"}, args...)...)
	}
	greeting := "orders says " + secret

	t.Run("by name, by address, by host", func(t *testing.T) {
		for _, url := range []string{"http://orders/", "http://orders:8080/x", "http://orders.mesh:8080/", "http://orders.service.consul:8080/", "http://" + orders + ":8080/"} {
			get("storefront", greeting, url)
		}
		get("storefront", greeting, "-H", "Host: orders.mesh", "http://10.99.0.200:9999/") // nobody has that address
		get("storefront", greeting, "-6", "http://orders:8080/")
		get("storefront", `URI=spiffe://`, "http://orders/") // who calls is proven to the application
		get("storefront", "/ns/default/svc/storefront", "http://orders/")
		v.buys("storefront", "200 "+greeting, "http", "http://orders:8080/")
		v.buys("storefront", "200 "+greeting, "http", "http://"+orders+":8080/")
		if _, err := exec.LookPath("python3"); err == nil {
			v.must("storefront", greeting, "python3", "-c", "import urllib.request as u; print(u.urlopen('http://orders:8080/', timeout=10).read().decode())")
		}
	})
	t.Run("gRPC and WebSocket", func(t *testing.T) {
		v.buys("storefront", "SERVING", "grpc", "stock:9000")
		v.buys("storefront", "SERVING", "grpc", v.stock.IPv4.String()+":9000")
		v.buys("storefront", "echoed", "websocket", "orders:8080")
	})
	t.Run("the server speaks first", func(t *testing.T) {
		v.buys("storefront", "220 "+secret+"\nyou said hello", "lines", "ledger:3306", "hello")
		v.buys("storefront", "220 "+secret+"\nyou said hello", "lines", ledger+":3306", "hello")
	})
	t.Run("to itself", func(t *testing.T) {
		get("orders", greeting, "http://127.0.0.1:8080/")
		get("orders", greeting, "http://"+orders+":8080/")
		get("orders", greeting, "http://orders:8080/")
	})
	t.Run("DNS", func(t *testing.T) {
		for _, network := range []string{"udp", "tcp"} {
			for name, want := range map[string]string{"orders.": "24", "orders.mesh.": "24", "ledger.service.consul.": "24", "outside.example.": other} {
				if got := v.lookup(network, name); !strings.HasPrefix(got, want) {
					t.Errorf("%s over %s: %q, want %s…", name, network, got, want)
				}
			}
			if got := v.lookup(network, "nobody.example."); got != "NXDOMAIN" {
				t.Errorf("a name that is not there over %s: %q", network, got)
			}
		}
	})
	t.Run("outside of the mesh", func(t *testing.T) {
		get("storefront", "other says "+public, "http://outside.example:8080/")
		get("storefront", "other says "+public, "http://"+other+":8080/")
		v.consul.Register(harness.Instance{Service: "other", Addr: other + ":8080"}) // known to Consul, and without a sidecar
		v.eventually("the catalog has what is without sidecars", func() error {
			return v.says("storefront", "other says "+public, curl, "-sS", "-m", "5", "-H", "Host: other.service.consul", "http://"+other+":8080/")
		})
		if got := v.lookup("udp", "other.service.consul."); got != "NXDOMAIN" {
			t.Errorf("the name of a service without sidecars is answered with %q, and not by its own name server", got)
		}
		get("storefront", "", "http://orders:9999/") // where nothing listens at a virtual address, nothing leaves
		secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "own TLS of ", r.TLS.ServerName) }))
		secure.Listener.Close()
		secure.Listener = v.other.Listen("tcp", other+":8443", nil)
		secure.StartTLS()
		defer secure.Close()
		get("storefront", "own TLS of outside.example", "-k", "https://outside.example:8443/")
		v.control.Policy("mesh.yaml", "apiVersion: policy.sallyport.io/v1\nkind: Mesh\nmetadata: {name: mesh}\nspec: {outboundTraffic: block}\n")
		v.eventually("the outside is blocked", func() error { return v.says("storefront", "", curl, "-sSf", "-m", "5", "http://"+other+":8080/") })
		get("storefront", greeting, "http://orders/")
		v.control.RemovePolicy("mesh.yaml")
		v.eventually("the outside is open again", func() error {
			return v.says("storefront", "other says", curl, "-sSf", "-m", "5", "http://"+other+":8080/")
		})
	})
	t.Run("no plaintext on the wire", func(t *testing.T) {
		if v.wire.Contains([]byte(secret)) {
			t.Error("an answer of an application was seen on the bridge")
		}
		if !v.wire.Contains([]byte(public)) {
			t.Error("the capture does not even show what passes in plaintext")
		}
	})
	t.Run("strict and permissive", func(t *testing.T) {
		get("other", "", "http://"+orders+":8080/")
		get("other", "", "http://"+orders+":15006/")
		v.control.Policy("tls.yaml", "apiVersion: policy.sallyport.io/v1\nkind: MutualTLSPolicy\nmetadata: {name: open}\nspec:\n  targetRefs: [{kind: Service, name: orders}]\n  mode: PERMISSIVE\n")
		v.eventually("plaintext is let in", func() error { return v.says("other", greeting, curl, "-sS", "-m", "5", "http://"+orders+":8080/") })
		get("storefront", greeting, "http://orders/")
		v.consul.Intend("*", "orders", false)
		v.consul.Intend("storefront", "orders", true)
		v.eventually("what is denied to all is denied to nobody, too", func() error {
			return v.says("other", "access denied", curl, "-sS", "-m", "5", "http://"+orders+":8080/")
		})
		get("storefront", greeting, "http://orders/")
		v.consul.Unintend("*", "orders")
		v.consul.Unintend("storefront", "orders")
		v.control.RemovePolicy("tls.yaml")
		v.eventually("plaintext is refused", func() error { return v.says("other", "", curl, "-sS", "-m", "5", "http://"+orders+":8080/") })
		if !v.wire.Contains([]byte(secret)) {
			t.Error("the capture did not show what the permissive mode let out in plaintext")
		}
	})
	t.Run("health probes reach the application", func(t *testing.T) {
		health := "http://" + orders + ":15021/app-health/app/"
		get("other", "ok", "-f", health+"readyz")
		get("other", greeting, "-f", health+"livez")
		get("other", "", "-f", health+"gone")
		get("other", "ok", "-f", "http://"+v.stock.IPv4.String()+":15021/app-health/app/startupz")
		get("other", "", "-f", "http://"+orders+":15021/stats")
	})
	t.Run("a sidecar dies", func(t *testing.T) {
		v.sidecars[v.storefront].Kill()
		get("storefront", "", "http://orders/")
		get("storefront", "", "http://"+orders+":8080/")
		get("storefront", "", "http://"+other+":8080/")
		v.start(v.storefront, "storefront", 8000)
		v.eventually("healed", func() error { return v.says("storefront", greeting, curl, "-sSf", "-m", "5", "http://orders/") })
		v.sidecars[v.orders].Kill()
		get("storefront", "", "-f", "http://orders/")
		get("other", "", "http://"+orders+":8080/")
		v.start(v.orders, "orders", 8080)
		v.eventually("healed", func() error { return v.says("storefront", greeting, curl, "-sSf", "-m", "5", "http://orders/") })
	})
	t.Run("TPROXY", func(t *testing.T) {
		v.sidecars[v.orders].Stop(20 * time.Second)
		v.startBy(v.orders, "orders", 8080, []string{"--reuid", "1337", "--regid", "1337", "--clear-groups", "--inh-caps", "+net_admin", "--ambient-caps", "+net_admin"}, "--inbound-mode", "tproxy")
		v.orders.Must(harness.Binary(t), "redirect", "apply", "--inbound-mode", "tproxy")
		v.eventually("calls go on", func() error { return v.says("storefront", greeting, curl, "-sSf", "-m", "5", "http://orders/") })
		get("other", "", "http://"+orders+":8080/")
		v.control.Policy("tls.yaml", "apiVersion: policy.sallyport.io/v1\nkind: MutualTLSPolicy\nmetadata: {name: open}\nspec:\n  targetRefs: [{kind: Service, name: orders}]\n  mode: PERMISSIVE\n")
		// The application sees its clients' own addresses, in plaintext and out of the mesh.
		v.eventually("plaintext is let in", func() error {
			return v.says("other", "to "+other+":", curl, "-sS", "-m", "5", "http://"+orders+":8080/")
		})
		get("storefront", "to "+v.storefront.IPv4.String()+":", "http://orders/")
		v.buys("storefront", "echoed", "websocket", "orders:8080")
		get("other", "to ["+v.other.IPv6.String()+"]:", "http://["+v.orders.IPv6.String()+"]:8080/")
		for range 20 {
			get("storefront", "to "+v.storefront.IPv4.String()+":", "http://orders/")
			get("other", "to "+other+":", "http://"+orders+":8080/")
		}
		v.control.RemovePolicy("tls.yaml")
	})
	t.Run("Envoy takes the sidecar's place", v.envoy)
	t.Run("the hosts are as before", func(t *testing.T) {
		for h, before := range v.before {
			h.Must(harness.Binary(t), "redirect", "cleanup")
			asBefore(t, h, before)
		}
	})
}

// identityAgent hands a service's identity on by SDS: control plane, service, token, socket.
var identityAgent = harness.Program("identity-agent", func(args []string) int {
	log := slog.New(slog.DiscardHandler)
	if err := errors.Join(syscall.Setgid(1337), syscall.Setuid(1337)); err != nil { // else what it says is redirected
		fmt.Println(err)
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	src, err := source.Join(ctx, source.Options{Address: args[0], Service: args[1], Token: args[2], Logger: log})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer src.Close()
	l, err := workload.Listen(args[3], 0o600)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(workload.New(workload.Users(src, 1337), workload.Options{Logger: log}).Serve(context.Background(), l))
	return 1
})

// envoy puts a stock Envoy in the place of storefront's sidecar, under the same control plane.
func (v *village) envoy(t *testing.T) {
	harness.Need(t, harness.Envoy)
	v.sidecars[v.storefront].Stop(20 * time.Second)
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o777), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "agent.sock")
	agent := v.storefront.Start(identityAgent(v.control.Addr(), "storefront", v.control.Token("--service", "storefront"), socket))
	agent.WaitFor("socket", func() error { _, err := os.Stat(socket); return err })
	bootstrap := strings.NewReplacer("${service}", "storefront", "${port.app}", "8000", `listen: "127.0.0.1:${listen.mesh}"${upstream}`,
		"transparent: {outbound: 15001, inbound: 15006, dns: 15053, ipv6: true}", "${admin}", "15000", "${socket}", socket,
		"address: 127.0.0.1, port_value: ${port.control}", "address: "+v.hub.IPv4.String()+", port_value: 15010").Replace(envoySidecar)
	file := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(file, []byte(bootstrap), 0o644); err != nil {
		t.Fatal(err)
	}
	p := v.storefront.Start(harness.Command{Name: "envoy", Path: "setpriv", Args: []string{"--reuid", "1337", "--regid", "1337", "--clear-groups", "--bounding-set", "-all",
		harness.Envoy.Path(), "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning", "-c", file}})
	greeting := "orders says " + secret
	p.WaitFor("calls by name", func() error { return v.says("storefront", greeting, curl, "-sS", "-m", "5", "http://orders/") })
	for _, url := range []string{"http://orders.mesh:8080/", "http://" + v.orders.IPv4.String() + ":8080/"} {
		v.must("storefront", greeting, curl, "-sS", "-m", "10", url)
	}
	v.must("storefront", greeting, curl, "-sS", "-m", "10", "-H", "Host: orders.mesh", "http://10.99.0.200:9999/")
	v.must("storefront", "other says "+public, curl, "-sS", "-m", "10", "http://"+v.other.IPv4.String()+":8080/")
	v.buys("storefront", "you said hello", "lines", "ledger:3306", "hello")
	v.buys("storefront", "SERVING", "grpc", "stock:9000")
	p.Stop(20 * time.Second)
}

// lookup asks the name server of the host, as the application would, for an address.
func (v *village) lookup(network, name string) string {
	v.t.Helper()
	c, err := v.storefront.Dial(network, v.hub.IPv4.String()+":53")
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	co := &dns.Conn{Conn: c}
	if err := co.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeA)); err != nil {
		return err.Error()
	}
	m, err := co.ReadMsg()
	if err != nil {
		return err.Error()
	}
	if m.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[m.Rcode]
	}
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			return a.A.String()
		}
	}
	return "no address"
}
