package run

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/injector/redirect"
)

func valid() Options {
	return Options{Service: "orders", Port: 8080, ControlPlane: "127.0.0.1:15010", Check: "tcp", Wait: time.Second, SidecarUID: uint32(os.Geteuid()), Command: []string{"true"},
		Address: netip.MustParseAddr("192.0.2.1")}
}

// hold chooses and holds the ports until the test ends.
func hold(t *testing.T, o *Options) {
	t.Helper()
	if err := o.check(); err != nil {
		t.Fatal(err)
	}
	h, err := o.hold()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.close)
}

func TestRules(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Options)
		want   string
		not    string
	}{
		{"a process tree", func(*Options) {}, "name=orders cgroup=/a/b inbound-mode=redirect include-inbound-ports=8080 sidecar-uid=" + strconv.Itoa(os.Geteuid()), ""},
		{"TPROXY", func(o *Options) { o.InboundMode = redirect.TProxy }, "inbound-mode=tproxy", ""},
		{"ports of its own choice", func(o *Options) { o.Redirect.IncludeInboundPorts = []redirect.PortRange{redirect.Port(9090)} }, "include-inbound-ports=9090", "8080"},
		{"it only calls", func(o *Options) { o.Port = 0 }, "inbound-mode=off", "include-inbound-ports"},
		{"the whole namespace", func(o *Options) { o.Capture = Namespace }, "outbound-port=15001 inbound-port=15006 inbound-mode=redirect dns-port=15053 health-port=15021", "cgroup"},
	} {
		o := valid()
		c.change(&o)
		hold(t, &o)
		cgroup := ""
		if o.Capture == Cgroup {
			cgroup = "/a/b"
		}
		r, err := redirect.Plan(o.rules(cgroup))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		words := strings.Fields(r.Config.String())
		for w := range strings.FieldsSeq(c.want) {
			if !slices.Contains(words, w) {
				t.Errorf("%s: %q is not in %q", c.name, w, words)
			}
		}
		if c.not != "" && strings.Contains(r.Config.String(), c.not) {
			t.Errorf("%s: %q is in %q", c.name, c.not, words)
		}
	}
}

// TestPortsDiffer: two sidecars of one machine must not want the same.
func TestPortsDiffer(t *testing.T) {
	o := valid()
	hold(t, &o)
	ports := []uint16{o.Redirect.OutboundPort, o.Redirect.InboundPort, o.Redirect.DNSPort, o.Redirect.HealthPort}
	slices.Sort(ports)
	if ports[0] == 0 || len(slices.Compact(ports)) != 4 {
		t.Errorf("ports %v", ports)
	}
}

func TestExitStatus(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 143, "kill -KILL $$": 137} {
		cmd := exec.Command("sh", "-c", script)
		_ = cmd.Run()
		err := exitOf(cmd.ProcessState.Sys().(syscall.WaitStatus))
		code := 0
		if exit, ok := errors.AsType[*Exit](err); ok {
			code = exit.Code
		}
		if code != want {
			t.Errorf("%q: %v, want %d", script, err, want)
		}
	}
}

func TestLookup(t *testing.T) {
	for in, want := range map[string]credential{
		"root": {uid: 0, gid: 0, name: "root"}, "0": {uid: 0, gid: 0, name: "root"}, "0:4711": {uid: 0, gid: 4711, name: "root"}, "987654": {uid: 987654, gid: 987654}, "987654:0": {uid: 987654},
	} {
		c, err := lookup(in)
		if err != nil || c.uid != want.uid || c.gid != want.gid || c.name != want.name {
			t.Errorf("%s: %+v, %v", in, c, err)
		}
	}
	for _, in := range []string{"", "no-such-user", "0:no-such-group", "-1", "4294967296"} {
		if c, err := lookup(in); err == nil {
			t.Errorf("%q: %+v", in, c)
		}
	}
}

// TestWhoGetsWhichEnvironment: the agent's token is not for the command, and the command's own is not for the sidecar.
func TestWhoGetsWhichEnvironment(t *testing.T) {
	t.Setenv(consulToken, "secret")
	t.Setenv("LD_PRELOAD", "")
	t.Setenv("http_proxy", "http://x")
	has := func(env []string, name string) bool {
		return slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	}
	env := sidecarEnv(os.Environ())
	if !has(env, consulToken) || !has(env, "PATH") || has(env, "http_proxy") || has(env, "LD_PRELOAD") || has(env, "HOME") {
		t.Errorf("the sidecar's: %q", env)
	}
	for consul, want := range map[string]bool{"": true, "http://127.0.0.1:8500": false} {
		o := valid()
		o.Consul = consul
		cmd, err := command(&o, "/bin/true")
		if err != nil {
			t.Fatal(err)
		}
		if has(cmd.Env, consulToken) != want || !has(cmd.Env, "http_proxy") {
			t.Errorf("the command's with --consul %q: %q", consul, cmd.Env)
		}
	}
}

func TestUsers(t *testing.T) {
	for _, c := range []struct {
		user    string
		sidecar uint32
		bad     bool
	}{{"", uint32(os.Geteuid()), true}, {"0", 0, true}, {"4711", 4711, true}, {"4711", 4712, false}} {
		o := valid()
		if err := o.check(); err != nil {
			t.Fatal(err)
		}
		o.User, o.SidecarUID, o.Executable = c.user, c.sidecar, "/bin/sh"
		if err := o.checkUsers(); (err != nil) != c.bad {
			t.Errorf("command %q, sidecar %d: %v", c.user, c.sidecar, err)
		}
	}
}
