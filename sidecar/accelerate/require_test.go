package accelerate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestModes(t *testing.T) {
	for text, want := range map[string]Mode{"off": Off, "auto": Auto, "on": On} {
		if got, err := ParseMode(text); got != want || err != nil {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "ON", "yes", "auto "} {
		if _, err := ParseMode(text); err == nil || !strings.Contains(err.Error(), "auto, on or off") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestMissingCapabilitiesAreNamed(t *testing.T) {
	const admin, bpf, perf, sys = 1 << unix.CAP_NET_ADMIN, 1 << unix.CAP_BPF, 1 << unix.CAP_PERFMON, 1 << unix.CAP_SYS_ADMIN
	for _, c := range []struct {
		effective uint64
		want      string
	}{
		{admin | bpf | perf, ""},
		{admin | sys, ""},
		{0, "CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON"},
		{sys, "CAP_NET_ADMIN"},
		{admin | bpf, "CAP_PERFMON"},
		{admin | perf, "CAP_BPF"},
	} {
		err := missing(c.effective)
		if got := ""; err != nil {
			if got = strings.TrimPrefix(err.Error(), "the process lacks "); got != c.want {
				t.Errorf("%#x: %q instead of %q", c.effective, got, c.want)
			}
		} else if c.want != "" {
			t.Errorf("%#x: nothing instead of %q", c.effective, c.want)
		}
	}
}

const (
	mount2      = "31 23 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
	mountHybrid = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n38 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
)

func TestOwnCgroupIsFound(t *testing.T) {
	for _, c := range []struct{ name, cgroup, mounts, want, wrong string }{
		{"cgroup v2 alone", "0::/user.slice/a.service\n", mount2, "/sys/fs/cgroup/user.slice/a.service", ""},
		{"its root", "0::/\n", mount2, "/sys/fs/cgroup", ""},
		{"beside v1", "9:name=systemd:/x\n1:cpu:/y\n0::/z\n", mountHybrid, "/sys/fs/cgroup/unified/z", ""},
		{"a mount of a part", "0::/pod/app\n", "1 2 0:3 /pod /cg rw - cgroup2 none rw\n", "/cg/app", ""},
		{"a mount of itself", "0::/pod/app\n", "1 2 0:3 /pod/app /cg rw - cgroup2 none rw\n", "/cg", ""},
		{"a name with a space", "0::/a\n", "1 2 0:3 / /c\\040g rw - cgroup2 none rw\n", "/c g/a", ""},
		{"a sibling with the same beginning", "0::/pods\n", "1 2 0:3 /pod /cg rw - cgroup2 none rw\n", "", "outside of what is mounted at /cg"},
		{"outside of the namespace", "0::/../other\n", "1 2 0:3 /mine /cg rw - cgroup2 none rw\n", "", "outside of what is mounted"},
		{"v1 only", "1:cpu:/y\n", mountHybrid, "", "in no cgroup v2 hierarchy"},
		{"v2 not mounted", "0::/a\n", "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", "", "no cgroup v2 hierarchy is mounted"},
		{"lines that are none", "0::/a\n", "\nx - cgroup2 y z\n - \n", "", "no cgroup v2 hierarchy is mounted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "cgroup", c.cgroup)
			write(t, dir, "mountinfo", c.mounts)
			got, err := ownCgroup(dir)
			switch {
			case c.wrong == "" && (err != nil || got != c.want):
				t.Errorf("%q, %v instead of %q", got, err, c.want)
			case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
				t.Errorf("%q, %v instead of an error that says %q", got, err, c.wrong)
			}
		})
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCgroupThatIsNone(t *testing.T) {
	for path, want := range map[string]string{
		t.TempDir():  "not a folder of a cgroup v2 hierarchy",
		"/not/there": "no such file",
	} {
		if _, err := cgroups("/proc/self", path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{
		{"/a", "/a", true}, {"/a/b", "/a", true}, {"/a", "/", true}, {"/", "/", true},
		{"/ab", "/a", false}, {"/a", "/a/b", false}, {"/b", "/a", false},
	} {
		if got := within(c.path, c.dir); got != c.want {
			t.Errorf("%s within %s: %v", c.path, c.dir, got)
		}
	}
}

// TestBytesAreReadByWord has each byte of a word set alone.
func TestBytesAreReadByWord(t *testing.T) {
	var words [2]uint32
	bytes := (*[8]uint8)(at(&words))
	for i := range bytes {
		*bytes = [8]uint8{}
		bytes[i] = 1
		for j := range bytes {
			if got := load(&bytes[j]); got != (i == j) {
				t.Errorf("byte %d set: byte %d is %v", i, j, got)
			}
		}
	}
}

func TestAutoGoesOnAndOnDoesNot(t *testing.T) {
	var log strings.Builder
	o := Options{Mode: Auto, Cgroup: t.TempDir(), Log: logTo(&log)}
	if a, err := Open(o); a != nil || err != nil {
		t.Errorf("auto: %v, %v", a, err)
	}
	if !strings.Contains(log.String(), "plain TCP, not accelerated") || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("log: %s", &log)
	}
	o.Mode = On
	if a, err := Open(o); a != nil || err == nil || !strings.HasPrefix(err.Error(), "--accelerate on: ") {
		t.Errorf("on: %v, %v", a, err)
	}
	o.Mode = Off
	if a, err := Open(o); a != nil || err != nil {
		t.Errorf("off: %v, %v", a, err)
	}
	if err := (*Accelerator)(nil).Close(); err != nil {
		t.Error(err)
	}
}

func TestFaultOfOlderKernels(t *testing.T) {
	for _, c := range []struct {
		release, mptcp string
		ok             bool
	}{
		{"6.18.44\n", "1\n", true}, {"7.0.1-generic\n", "1\n", true}, {"6.12.9+deb13-amd64\n", "1\n", false},
		{"6.12.9\n", "0\n", true}, {"5.15.0\n", "", true}, {"six\n", "0\n", false},
	} {
		dir := t.TempDir()
		for _, sub := range []string{"kernel", "net/mptcp"} {
			if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		write(t, dir, "kernel/osrelease", c.release)
		if c.mptcp != "" {
			write(t, dir, "net/mptcp/enabled", c.mptcp)
		}
		if err := sound(dir); (err == nil) != c.ok {
			t.Errorf("%q, MPTCP %q: %v", c.release, c.mptcp, err)
		}
	}
}
