package run

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sallyport/injector/redirect"
)

// Capture is whose traffic is redirected.
type Capture string

// The captures. Cgroup is the application's process tree alone, so that a machine runs several services; Namespace is
// every process of the network namespace but the sidecar; None leaves redirection to somebody else.
const (
	Cgroup    Capture = "cgroup"
	Namespace Capture = "namespace"
	None      Capture = "none"
)

// Options of Run.
type Options struct {
	Service   string
	Namespace string     // "" is "default"
	Name      string     // of the rules, the cgroup and the folder; "" is Service
	Port      int        // where the application listens; 0: it only calls
	Address   netip.Addr // under which others reach this host; zero: that of the route to the control plane

	ControlPlane string // HOST:PORT
	// Join are the flags by which the sidecar gets its identity, handed on as they are.
	Join []string
	// Token is a join token; it goes to the sidecar in a file, because arguments are for everybody to see. TokenFile and
	// BundleFile are read as the user that we are, whom they may be for alone.
	Token, TokenFile, BundleFile string

	Consul string   // URL of the agent that the service is registered with; "": it is not
	Check  string   // of the registration: "tcp", or the path of an HTTP check
	Extra  []string // more flags of the sidecar: tags, metadata, upstreams
	// Deregister takes an instance out of Consul whose sidecar could not.
	Deregister func(id string) error

	Capture     Capture // "" is Cgroup
	InboundMode redirect.Mode
	// Redirect has the ports, inclusions and exclusions; a port of 0 is chosen: free where the capture is a cgroup, else the usual one.
	Redirect redirect.Config

	Admin      string        // address of the sidecar's admin page, "" for none
	FailOpen   bool          // while the sidecar is down the application talks without it
	Wait       time.Duration // how long the sidecar may take to be ready
	Drain      time.Duration // how long its connections may take to end
	LogLevel   string
	SidecarUID uint32 // user and group of the sidecar
	User       string // of the application, NAME or UID, with :GROUP; "": as we are

	Command []string
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Log     *slog.Logger
	// Executable is our own program; "" is /proc/self/exe.
	Executable string
	// StateDir holds the folders of all names; "" is /run/sallyport.
	StateDir string

	here bool // Address is one of this host's
}

// Exit is the status with which the process shall end: the application's own, or that of a shell which cannot start it.
type Exit struct {
	Code int
	Err  error // nil: the application said what there was to say
}

func (e *Exit) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return e.Err.Error()
}

func (e *Exit) Unwrap() error { return e.Err }

// usage is a mistake in the options.
func usage(format string, args ...any) error { return fmt.Errorf(format, args...) }

// check completes the options.
func (o *Options) check() error {
	if o.Service == "" {
		return errors.New("--service NAME is required: the service that the command is an instance of")
	}
	if len(o.Command) == 0 {
		return errors.New("no command: sallyport run --service NAME … -- COMMAND ARGUMENTS")
	}
	if o.ControlPlane == "" {
		return errors.New("--control-plane HOST:PORT is required")
	}
	if _, _, err := net.SplitHostPort(o.ControlPlane); err != nil {
		return usage("--control-plane %q: want HOST:PORT", o.ControlPlane)
	}
	if o.Token != "" && o.TokenFile != "" {
		return errors.New("--token and --token-file exclude each other")
	}
	if o.Port < 0 || o.Port > 65535 {
		return usage("--port %d: must be 1 to 65535, or 0 for an application that only calls", o.Port)
	}
	if o.Consul != "" && o.Port == 0 {
		return errors.New("--consul: an application without --port has nothing that could be registered")
	}
	if o.Check != "tcp" && !strings.HasPrefix(o.Check, "/") {
		return usage("--check %q: must be tcp, or the path of an HTTP check such as /healthz", o.Check)
	}
	if o.Capture == "" {
		o.Capture = Cgroup
	}
	if !slices.Contains([]Capture{Cgroup, Namespace, None}, o.Capture) {
		return usage("--capture %q: must be cgroup, namespace or none", o.Capture)
	}
	switch o.InboundMode {
	case "":
		o.InboundMode = redirect.Redirect
	case redirect.Redirect, redirect.TProxy, redirect.Off:
	default:
		return usage("--inbound-mode %q: must be redirect, tproxy or off", o.InboundMode)
	}
	if o.Wait <= 0 || o.Drain < 0 {
		return errors.New("--wait must be positive, and --drain-timeout not negative")
	}
	if o.Name == "" {
		o.Name = o.Service
	}
	// The name becomes a folder, a cgroup and a table.
	c := redirect.Config{Name: o.Name, Cgroup: "x", DNSPort: 53, Sidecar: redirect.Identity{UIDs: []uint32{1}}}
	if err := c.Validate(); err != nil {
		return err
	}
	if o.Executable == "" {
		o.Executable = "/proc/self/exe"
	}
	if o.StateDir == "" {
		o.StateDir = "/run/sallyport"
	}
	return nil
}

// checkUsers finds out whether the two processes may be who they are to be.
func (o *Options) checkUsers() error {
	uid := uint32(os.Geteuid())
	if o.User != "" {
		c, err := lookup(o.User)
		if err != nil {
			return err
		}
		uid = c.uid
	}
	if uid == o.SidecarUID {
		return fmt.Errorf("the command would run as user %d, which is that of the sidecar, whose traffic is not redirected; give one of them another (--user, --sidecar-uid)", uid)
	}
	st, err := os.Stat(o.Executable)
	if err != nil {
		return err
	}
	may := fs.FileMode(0o001)
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid == o.SidecarUID {
		may = 0o100
	} else if ok && sys.Gid == o.SidecarUID {
		may = 0o010
	}
	if o.SidecarUID != 0 && st.Mode()&may == 0 {
		path, _ := filepath.EvalSymlinks(o.Executable)
		return fmt.Errorf("%s (%v) may not be executed by user %d, the sidecar's: chmod o+x it", path, st.Mode(), o.SidecarUID)
	}
	return nil
}

// address finds out how others reach this host.
func (o *Options) address() error {
	if o.Address.IsValid() {
		return nil
	}
	// Connecting a UDP socket sends nothing: it only asks the routing table.
	c, err := net.Dial("udp", o.ControlPlane)
	if err != nil {
		return fmt.Errorf("--control-plane %s: %w", o.ControlPlane, err)
	}
	defer c.Close()
	o.Address = c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	return nil
}

// rules are those that are put in force.
func (o *Options) rules(cgroup string) redirect.Config {
	c := o.Redirect
	c.InboundMode = o.InboundMode
	c.Sidecar.UIDs = append(slices.Clone(c.Sidecar.UIDs), o.SidecarUID)
	if o.Port == 0 {
		c.InboundMode = redirect.Off
	}
	if o.Capture == Cgroup {
		c.Name, c.Cgroup = o.Name, cgroup
		if len(c.IncludeInboundPorts) == 0 && o.Port != 0 {
			c.IncludeInboundPorts = []redirect.PortRange{redirect.Port(uint16(o.Port))}
		}
	}
	if c.InboundMode == redirect.Off {
		c.IncludeInboundPorts = nil
	}
	c.LookAround()
	return c
}

// credential is a user with all of its groups.
type credential struct {
	uid, gid uint32
	groups   []uint32
	name     string // "": the user has none
	home     string
}

// lookup finds NAME, UID, NAME:GROUP or UID:GID.
func lookup(s string) (*credential, error) {
	name, group, withGroup := strings.Cut(s, ":")
	c := &credential{}
	u, err := user.Lookup(name)
	if err != nil {
		// Looked up only if it is one: 4294967296 would be found as 0, which is root.
		if _, bad := strconv.ParseUint(name, 10, 32); bad != nil {
			return nil, usage("--user %q: there is no such user", s)
		}
		u, err = user.LookupId(name)
	}
	switch {
	case err == nil:
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		c.uid, c.gid, c.name, c.home = uint32(uid), uint32(gid), u.Username, u.HomeDir
		if ids, err := u.GroupIds(); err == nil {
			for _, id := range ids {
				if n, err := strconv.ParseUint(id, 10, 32); err == nil {
					c.groups = append(c.groups, uint32(n))
				}
			}
		}
	default:
		n, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			return nil, usage("--user %q: there is no such user", s)
		}
		c.uid, c.gid = uint32(n), uint32(n)
	}
	if !withGroup {
		return c, nil
	}
	if g, err := user.LookupGroup(group); err == nil {
		group = g.Gid
	}
	n, err := strconv.ParseUint(group, 10, 32)
	if err != nil {
		return nil, usage("--user %q: there is no such group", s)
	}
	c.gid, c.groups = uint32(n), nil
	return c, nil
}
