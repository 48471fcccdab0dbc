package harness

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ProxyBuilder says which proxy to start and with what. Envoy and sallyport share it, so that one test can run the same
// bootstrap in either.
type ProxyBuilder struct {
	t     testing.TB
	envoy bool
	name  string
	path  string
	args  []string
	out   *os.File

	through func(args ...string) Command

	bootstrap string
	file      string
	values    map[string]string
	addrs     map[string]string
}

// NewSidecar builds sallyport sidecar.
func NewSidecar(t testing.TB) *ProxyBuilder {
	t.Helper()
	return newProxy(t, "sidecar", Binary(t), "sidecar")
}

// NewEdge builds sallyport edge.
func NewEdge(t testing.TB) *ProxyBuilder {
	t.Helper()
	return newProxy(t, "edge", Binary(t), "edge")
}

// NewEnvoy builds a stock Envoy.
func NewEnvoy(t testing.TB) *ProxyBuilder {
	t.Helper()
	Need(t, Envoy)
	b := newProxy(t, "envoy", Envoy.Path(), "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning")
	b.envoy = true
	return b
}

func newProxy(t testing.TB, name, path string, args ...string) *ProxyBuilder {
	return &ProxyBuilder{t: t, name: name, path: path, args: args, values: map[string]string{}, addrs: map[string]string{}}
}

// Bootstrap gives the YAML to start from; the package comment says what it may refer to.
func (b *ProxyBuilder) Bootstrap(yaml string) *ProxyBuilder {
	b.bootstrap = yaml
	return b
}

// Backend gives ${port.NAME} its value.
func (b *ProxyBuilder) Backend(name string, at interface{ Addr() string }) *ProxyBuilder {
	return b.At(name, at.Addr())
}

// At is Backend for an address.
func (b *ProxyBuilder) At(name, addr string) *ProxyBuilder {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.Value("port."+name, port)
}

// Value gives ${name} its value.
func (b *ProxyBuilder) Value(name, value string) *ProxyBuilder {
	b.values[name] = value
	return b
}

// Args appends to the command line.
func (b *ProxyBuilder) Args(args ...string) *ProxyBuilder {
	b.args = append(b.args, args...)
	return b
}

// Stderr sends what the proxy writes to a file of the test's, in place of the log that is kept.
func (b *ProxyBuilder) Stderr(f *os.File) *ProxyBuilder {
	b.out = f
	return b
}

// Through has a Program run the proxy: its arguments are the proxy's path and arguments.
func (b *ProxyBuilder) Through(program func(args ...string) Command) *ProxyBuilder {
	b.through = program
	return b
}

// ControlPlane points a sidecar or an edge at a control plane. The token is left out where empty.
func (b *ProxyBuilder) ControlPlane(addr, token string) *ProxyBuilder {
	b.Args("--control-plane", addr)
	if token != "" {
		b.Args("--token", token)
	}
	return b
}

// Service makes the sidecar that of a service in the mesh: the application is at port, other sidecars reach it at
// proxy.Addr("mesh").
func (b *ProxyBuilder) Service(name string, port int) *ProxyBuilder {
	b.t.Helper()
	b.name = name + "-sidecar"
	return b.Args("--service", name, "--port", strconv.Itoa(port)).listen("mesh", "--listen").listen("admin", "--admin")
}

// Gateway makes the edge that of a gateway. Its listeners are where the gateway's policy says.
func (b *ProxyBuilder) Gateway(name string) *ProxyBuilder {
	b.t.Helper()
	b.name = name + "-edge"
	return b.Args("--gateway", name).listen("admin", "--admin")
}

// Upstream gives the application a service on a local port: proxy.Addr(service).
func (b *ProxyBuilder) Upstream(service string) *ProxyBuilder {
	b.t.Helper()
	port := FreePort(b.t)
	b.addrs[service] = fmt.Sprintf("127.0.0.1:%d", port)
	return b.Args("--upstream", fmt.Sprintf("%s:%d", service, port))
}

// Address is where the proxy will be reached under a name, before it runs: for a catalog that is written first.
func (b *ProxyBuilder) Address(name string) string { return b.addrs[name] }

func (b *ProxyBuilder) listen(name, flag string) *ProxyBuilder {
	b.addrs[name] = FreeAddr(b.t)
	return b.Args(flag, b.addrs[name])
}

var placeholder = regexp.MustCompile(`\$\{[a-z0-9_.-]+\}`)

// write fills in the bootstrap and returns its path.
func (b *ProxyBuilder) write() string {
	b.t.Helper()
	text := placeholder.ReplaceAllStringFunc(b.bootstrap, func(ref string) string {
		name := ref[2 : len(ref)-1]
		if v, ok := b.values[name]; ok {
			return v
		}
		kind, rest, _ := strings.Cut(name, ".")
		if name != "admin" && kind != "listen" && kind != "dead" {
			b.t.Fatalf("bootstrap: %s has no value", ref)
		}
		port := strconv.Itoa(FreePort(b.t))
		if name == "admin" {
			rest = "admin"
		}
		b.values[name], b.addrs[rest] = port, "127.0.0.1:"+port
		return port
	})
	b.file = filepath.Join(b.t.TempDir(), "bootstrap.yaml")
	if err := os.WriteFile(b.file, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return b.file
}

// File is the path of the bootstrap that the last start wrote.
func (b *ProxyBuilder) File() string { return b.file }

// Proxy is a running sidecar, edge or Envoy.
type Proxy struct {
	*Process
	t     testing.TB
	addrs map[string]string
}

// Run starts the proxy and waits until its admin page says that it is ready.
func (b *ProxyBuilder) Run() *Proxy {
	b.t.Helper()
	p := b.Start()
	p.WaitReady()
	return p
}

// Start starts the proxy and does not wait.
func (b *ProxyBuilder) Start() *Proxy {
	b.t.Helper()
	args := b.args
	if b.bootstrap != "" {
		args = append(args[:len(args):len(args)], "-c", b.write())
	}
	if way := os.Getenv("SALLYPORT_IO_URING"); way != "" && !b.envoy {
		// In front, so that a test's own word is the last.
		args = slices.Insert(slices.Clone(args), 1, "--io-uring", way)
	}
	p := &Proxy{t: b.t, addrs: b.addrs}
	command := Command{Name: b.name, Path: b.path, Args: args, Stderr: b.out}
	if b.through != nil {
		by := b.through(append([]string{b.path}, args...)...)
		command.Path, command.Args, command.Env = by.Path, by.Args, by.Env
	}
	p.Process = command.Start(b.t)
	return p
}

// WaitReady waits until the admin page's /ready answers 200.
func (p *Proxy) WaitReady() {
	p.t.Helper()
	p.WaitFor("answer of /ready", func() error {
		code, body, err := p.admin("/ready")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("%d %s", code, body)
		}
		return err
	})
}

// Ready says whether /ready answers 200 now.
func (p *Proxy) Ready() bool {
	code, _, err := p.admin("/ready")
	return err == nil && code == http.StatusOK
}

// Addr is where the listener ${listen.NAME} is.
func (p *Proxy) Addr(name string) string {
	p.t.Helper()
	addr, ok := p.addrs[name]
	if !ok {
		p.t.Fatalf("%s: the bootstrap has no ${listen.%s}", p.Name, name)
	}
	return addr
}

// Page returns the status and the answer of an admin page.
func (p *Proxy) Page(path string) (status int, body string, err error) { return p.admin(path) }

// Admin returns the answer of an admin page, which must be 200.
func (p *Proxy) Admin(path string) string {
	p.t.Helper()
	code, body, err := p.admin(path)
	if err != nil || code != http.StatusOK {
		p.t.Fatalf("%s: admin %s: %d %v %s", p.Name, path, code, err, body)
	}
	return body
}

// Stat returns a counter or gauge of /stats, and 0 where there is none of the name.
func (p *Proxy) Stat(name string) int64 {
	p.t.Helper()
	for line := range strings.Lines(p.Admin("/stats")) {
		if text, ok := strings.CutPrefix(line, name+": "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err != nil {
				p.t.Fatalf("%s: %s", p.Name, line)
			}
			return n
		}
	}
	return 0
}

var adminClient = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func (p *Proxy) admin(path string) (int, string, error) {
	resp, err := adminClient.Get("http://" + p.Addr("admin") + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	return resp.StatusCode, string(body), err
}

// Validate runs the proxy with --mode validate to its end.
func (b *ProxyBuilder) Validate() (ok bool, said string) {
	b.t.Helper()
	p := b.Args("--mode", "validate").Start()
	return p.WaitExit(30*time.Second) == 0, p.Log()
}
