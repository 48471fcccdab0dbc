package demo

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"

	"sallyport/examples/quickstart"
)

// Names of the quickstart's files that the demo itself speaks about.
const (
	gateway    = "public"
	publicHost = "shop.example.com"
	// quickstartCollector is the address in mesh.yaml that the demo's own collector takes the place of.
	quickstartCollector = "127.0.0.1:4317"
)

// fileCatalog is the part of a catalog file that the demo reads and writes.
type fileCatalog struct {
	Services   []fileService   `json:"services"`
	Intentions []fileIntention `json:"intentions"`
}

type fileService struct {
	Name      string         `json:"name"`
	Protocol  string         `json:"protocol,omitempty"`
	Instances []fileInstance `json:"instances"`
}

type fileInstance struct {
	ID      string            `json:"id"`
	Address string            `json:"address"`
	Port    int               `json:"port"`
	Sidecar *fileSidecar      `json:"sidecar,omitempty"`
	Meta    map[string]string `json:"meta,omitempty"`
}

type fileSidecar struct {
	Port int `json:"port"`
}

type fileIntention struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Action      string `json:"action"`
}

// call is what a service of the demo calls when it is asked for a path.
type call struct{ path, service string }

// calls are the services' calls: a request to /checkout/pay goes storefront,
// orders, payments. /steal is what the storefront has no business to do.
var calls = map[string][]call{
	"storefront": {{"/checkout", "orders"}, {"/steal", "payments"}},
	"orders":     {{"/pay", "payments"}},
}

// instance is one process of a service, with its sidecar.
type instance struct {
	service, version, id string
	app, mesh, admin     int
	upstreams            map[string]int // service → port of 127.0.0.1

	process, sidecar *process
}

// edge is one instance of the gateway.
type edge struct {
	id          string
	port, admin int
	process     *process
}

// plan is where everything listens: the quickstart's catalog with ports that are free on this machine.
type plan struct {
	catalog   fileCatalog
	instances []*instance
	edges     []*edge

	public, l4Admin, control, status int

	ports portGiver
}

// newPlan gives each instance of the quickstart's catalog ports of its own.
func newPlan() (*plan, error) {
	data, err := quickstart.Files.ReadFile("catalog.yaml")
	if err != nil {
		return nil, err
	}
	p := &plan{}
	if err := yaml.UnmarshalStrict(data, &p.catalog); err != nil {
		return nil, fmt.Errorf("quickstart/catalog.yaml: %w", err)
	}
	ports := &p.ports
	for _, port := range []*int{&p.public, &p.l4Admin, &p.control, &p.status} {
		*port = ports.next()
	}
	for i := range p.catalog.Services {
		s := &p.catalog.Services[i]
		for j := range s.Instances {
			f := &s.Instances[j]
			f.Port = ports.next()
			if f.Sidecar == nil {
				p.edges = append(p.edges, &edge{id: f.ID, port: f.Port, admin: ports.next()})
				continue
			}
			f.Sidecar.Port = ports.next()
			in := &instance{service: s.Name, version: f.Meta["version"], id: f.ID, app: f.Port, mesh: f.Sidecar.Port, admin: ports.next(), upstreams: map[string]int{}}
			for _, c := range calls[s.Name] {
				in.upstreams[c.service] = ports.next()
			}
			p.instances = append(p.instances, in)
		}
	}
	return p, ports.err
}

// of are the instances of a service, of a version where one is given.
func (p *plan) of(service, version string) (list []*instance) {
	for _, in := range p.instances {
		if in.service == service && (version == "" || in.version == version) {
			list = append(list, in)
		}
	}
	return list
}

// allowed says whether an intention lets source call destination; the quickstart denies what none allows.
func (p *plan) allowed(source, destination string) bool {
	return slices.Contains(p.catalog.Intentions, fileIntention{source, destination, "allow"})
}

// args are the arguments of `sallyport demo app` for an instance. It calls other services by the ports at which its
// sidecar makes them reachable, or by their names, as if there were no mesh.
func (in *instance) args(byName bool) []string {
	a := []string{"demo", "app", "--service", in.service, "--version", in.version, "--instance", in.id, "--listen", local(in.app)}
	for _, c := range calls[in.service] {
		at := local(in.upstreams[c.service])
		if byName {
			at = c.service
		}
		a = append(a, "--call", c.path+"=http://"+at)
	}
	return a
}

// write puts the catalog, the policies and the keys into dir as the quickstart
// has them, with the plan's ports and keys that were made just now.
func (p *plan) write(dir, collector string, users *issuer) error {
	catalog, err := yaml.Marshal(p.catalog)
	if err != nil {
		return err
	}
	cert, key, err := publicCertificate(publicHost)
	if err != nil {
		return err
	}
	jwks, err := users.jwks()
	if err != nil {
		return err
	}
	token, err := users.token("alice", time.Now().Add(8*time.Hour))
	if err != nil {
		return err
	}
	files := map[string]string{"catalog.yaml": string(catalog), "keys/shop.crt": string(cert), "keys/shop.key": string(key), "keys/jwks.json": jwks, "token": token}
	err = fs.WalkDir(quickstart.Files, "policies", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := quickstart.Files.ReadFile(path)
		files[path] = strings.ReplaceAll(string(text), quickstartCollector, collector)
		return err
	})
	if err != nil {
		return err
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func local(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// portGiver finds ports of 127.0.0.1 that nobody uses now, and holds them until
// who shall have them is about to start: bound, but not listened on, so that
// connections are refused meanwhile. They lie under the range from which Linux
// takes those of outgoing connections.
type portGiver struct {
	held map[int]int // port → socket
	err  error
}

const firstPort, afterLastPort = 20000, 32000

func (g *portGiver) next() int {
	if g.held == nil {
		g.held = map[int]int{}
	}
	for range 1000 {
		port := firstPort + rand.IntN(afterLastPort-firstPort)
		if _, twice := g.held[port]; twice {
			continue
		}
		socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			g.err = fmt.Errorf("a socket to hold a port: %w", err)
			return 0
		}
		if err := syscall.Bind(socket, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			syscall.Close(socket)
			continue // taken by somebody
		}
		g.held[port] = socket
		return port
	}
	g.err = fmt.Errorf("no free port of 127.0.0.1 between %d and %d", firstPort, afterLastPort)
	return 0
}

// release lets go of those ports among the arguments of a command.
func (g *portGiver) release(argv ...string) {
	for _, a := range argv {
		// HOST:PORT, SERVICE:PORT, PATH=URL, or a port alone.
		port, err := strconv.Atoi(a[strings.LastIndexByte(a, ':')+1:])
		if socket, ok := g.held[port]; ok && err == nil {
			syscall.Close(socket)
			delete(g.held, port)
		}
	}
}

// close lets go of all that are left.
func (g *portGiver) close() {
	for port, socket := range g.held {
		syscall.Close(socket)
		delete(g.held, port)
	}
}
