package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Network is a bridge in a network namespace of its own, and hosts on it in theirs. Nothing of it is seen by the
// machine on which the test runs, and all of it ends with the test.
//
//	lan := harness.NewNetwork(t)
//	a, b := lan.Host("a"), lan.Host("b")
//	wire := lan.Capture()
//	b.Start(harness.Command{Name: "server", Path: "/usr/bin/…"})
//	a.Run("curl", "http://"+b.IPv4.String()+":8080/")
//	…wire.Contains([]byte("secret"))…
type Network struct {
	t     testing.TB
	wires namespace // the bridge's
	hosts map[string]*Host
}

// Host is a network namespace with the interfaces lo and eth0. Its default route is eth0, so that the application may
// dial addresses that nobody has.
type Host struct {
	Name       string
	IPv4, IPv6 netip.Addr

	t       testing.TB
	ns      namespace
	resolve string // what stands in place of /etc/resolv.conf; ""
}

const bridge = "bridge0"

// NewNetwork makes a bridge without hosts. The test is not run where namespaces may not be made.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	ns, err := newNamespace()
	if errors.Is(err, os.ErrPermission) {
		NotRun(t, "network namespaces need root (sudo -E make integration)")
	}
	if err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	n := &Network{t: t, wires: ns, hosts: map[string]*Host{}}
	t.Cleanup(ns.close)
	n.must(ns.do(func() error {
		return errors.Join(up("lo"), netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}), up(bridge))
	}), "bridge")
	return n
}

func (n *Network) must(err error, what string) {
	n.t.Helper()
	if err != nil {
		n.t.Fatalf("%s: %v", what, err)
	}
}

// Host returns the host of that name, and makes it first where there is none. The first has the addresses 10.99.0.2 and
// fd99::2.
func (n *Network) Host(name string) *Host {
	n.t.Helper()
	if h := n.hosts[name]; h != nil {
		return h
	}
	number := len(n.hosts) + 2
	if number > 250 {
		n.t.Fatal("too many hosts")
	}
	ns, err := newNamespace()
	n.must(err, name)
	n.t.Cleanup(ns.close)
	h := &Host{Name: name, t: n.t, ns: ns,
		IPv4: netip.AddrFrom4([4]byte{10, 99, 0, byte(number)}),
		IPv6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x99, 15: byte(number)})}
	port := fmt.Sprintf("port%d", number)
	n.must(n.wires.do(func() error { return plug(port, ns) }), name)
	n.must(ns.do(func() error { return h.configure() }), name)
	n.hosts[name] = h
	return h
}

// plug makes a cable between the bridge and eth0 of a namespace.
func plug(port string, into namespace) error {
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MasterIndex: br.Attrs().Index}, PeerName: "eth0",
		PeerNamespace: netlink.NsFd(into.fd)}
	return errors.Join(netlink.LinkAdd(cable), up(port))
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func (h *Host) configure() error {
	if err := errors.Join(up("lo"), up("eth0")); err != nil {
		return err
	}
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, a := range []struct {
		addr netip.Addr
		bits int
		all  string
	}{{h.IPv4, 24, "0.0.0.0/0"}, {h.IPv6, 64, "::/0"}} {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.addr.AsSlice(), Mask: net.CIDRMask(a.bits, a.addr.BitLen())}}
		addr.Flags = unix.IFA_F_NODAD // usable at once
		_, all, _ := net.ParseCIDR(a.all)
		route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: all, Scope: unix.RT_SCOPE_LINK}
		if err := errors.Join(netlink.AddrAdd(eth0, addr), netlink.RouteAdd(route)); err != nil {
			return err
		}
	}
	return nil
}

// ResolvConf is what programs started on the host from now on find in /etc/resolv.conf.
func (h *Host) ResolvConf(text string) *Host {
	h.t.Helper()
	file := filepath.Join(h.t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(file), 0o755); err != nil { // for every user
		h.t.Fatal(err)
	}
	h.resolve = file
	return h
}

// Do runs f in the host's namespace. Sockets that it opens, and processes that it starts, stay there; goroutines that
// it starts do not.
func (h *Host) Do(f func() error) {
	h.t.Helper()
	if err := h.ns.do(f); err != nil {
		h.t.Fatalf("host %s: %v", h.Name, err)
	}
}

// Start starts a program on the host. It ends with the test.
func (h *Host) Start(c Command) (p *Process) {
	h.t.Helper()
	c.Path, c.Args = h.own(c.Path, c.Args)
	c.Name = h.Name + ": " + c.Name
	h.Do(func() error { p = c.Start(h.t); return nil })
	return p
}

// own is the command line by which a program sees the host's resolv.conf: in a mount namespace of its own, so that the
// machine's file stays what it is.
func (h *Host) own(path string, args []string) (string, []string) {
	if h.resolve == "" {
		return path, args
	}
	script := `mount --bind "$1" /etc/resolv.conf && shift && exec "$@"`
	return "unshare", append([]string{"--mount", "--propagation", "private", "sh", "-c", script, "sh", h.resolve, path}, args...)
}

// Run runs a program on the host to its end.
func (h *Host) Run(path string, args ...string) (out Output) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	path, args = h.own(path, args)
	h.Do(func() (err error) { out, err = execute(exec.CommandContext(ctx, path, args...)); return err })
	return out
}

// Must is Run of what must not fail, and returns its output.
func (h *Host) Must(path string, args ...string) string {
	h.t.Helper()
	out := h.Run(path, args...)
	if out.Code != 0 {
		h.t.Fatalf("host %s: %s %q: exit code %d\n%s%s", h.Name, path, args, out.Code, out.Stdout, out.Stderr)
	}
	return out.Stdout
}

// Listen opens a listening socket on the host; control, where not nil, sets options of it first.
func (h *Host) Listen(network, addr string, control func(network, address string, c syscall.RawConn) error) (l net.Listener) {
	h.t.Helper()
	h.Do(func() (err error) {
		l, err = (&net.ListenConfig{Control: control}).Listen(context.Background(), network, addr)
		return err
	})
	h.t.Cleanup(func() { l.Close() })
	return l
}

// Dial connects from the host. The address is of numbers: names would be looked up outside of it.
func (h *Host) Dial(network, addr string) (c net.Conn, err error) {
	err = h.ns.do(func() (err error) {
		c, err = (&net.Dialer{Timeout: 10 * time.Second}).Dial(network, addr)
		return err
	})
	return c, err
}

// HTTPClient is a client on the host; URLs are of numeric addresses.
func (h *Host) HTTPClient() *http.Client {
	t := &http.Transport{DialContext: func(_ context.Context, network, addr string) (net.Conn, error) { return h.Dial(network, addr) }}
	h.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// namespace is a network namespace without a name. It ends when nothing holds it any more.
type namespace struct{ fd int }

// newNamespace makes one on a thread of its own.
func newNamespace() (ns namespace, err error) {
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		ns.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	return ns, err
}

func (n namespace) close() { unix.Close(n.fd) }

// do runs f on a thread that is in the namespace.
func (n namespace) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}

// onThread runs f on this goroutine's thread, locked, and brings the thread back to its namespace. The thread lives on:
// processes that it starts are told to die when it does.
func onThread(f func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		// A thread that cannot go back stays locked, and no other goroutine will run in the wrong network.
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		unix.Close(home)
	}()
	return f()
}

// programs are what a test binary does in place of its tests when it is started by Program.
var programs = map[string]func(args []string) int{}

const programVariable = "SALLYPORT_TEST_PROGRAM"

// Program makes f a program that a test can start as a process, with its own user, cgroup and network: the test binary
// itself, called so. It must be declared by a variable of the package, and Main must be what TestMain calls.
//
//	var echo = harness.Program("echo", func(args []string) int { … })
//	…h.Start(echo("127.0.0.1:8080"))…
func Program(name string, f func(args []string) int) func(args ...string) Command {
	programs[name] = f
	return func(args ...string) Command {
		self, err := os.Executable()
		if err != nil {
			panic(err)
		}
		return Command{Name: name, Path: self, Args: args, Env: []string{programVariable + "=" + name}}
	}
}

// runProgram is called by Main.
func runProgram() {
	if f := programs[os.Getenv(programVariable)]; f != nil {
		os.Exit(f(os.Args[1:]))
	}
}

// Cgroup makes a cgroup of version 2, which ends with the test, and returns its folder. The test is not run where there
// is none.
func Cgroup(t testing.TB, name string) string {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
			continue
		}
		dir := fmt.Sprintf("%s/sallyport-test-%d-%s", root, os.Getpid(), name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			NotRun(t, fmt.Sprintf("cgroups of version 2 may not be made here: %v", err))
		}
		t.Cleanup(func() {
			// A killed process leaves its cgroup only once it has been reaped.
			if err := poll(10*time.Second, func() error { return syscall.Rmdir(dir) }); err != nil {
				t.Errorf("%s: %v", dir, err)
			}
		})
		return dir
	}
	NotRun(t, "no cgroup2 file system is mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified")
	return ""
}
