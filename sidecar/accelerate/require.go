package accelerate

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// needed are the capabilities to load and attach the programs. CAP_PERFMON is
// for reading how much waits at the receiving socket.
var needed = []struct {
	bit  uint
	name string
}{{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_PERFMON, "CAP_PERFMON"}}

// capable says which capability is missing.
func capable() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capabilities of the process: %w", err)
	}
	return missing(uint64(data[1].Effective)<<32 | uint64(data[0].Effective))
}

func missing(effective uint64) error {
	var names []string
	for _, c := range needed {
		// The kernel takes CAP_SYS_ADMIN for the two that were split from it.
		if effective>>c.bit&1 == 0 && (c.bit == unix.CAP_NET_ADMIN || effective>>unix.CAP_SYS_ADMIN&1 == 0) {
			names = append(names, c.name)
		}
	}
	if names != nil {
		return fmt.Errorf("the process lacks %s", strings.Join(names, ", "))
	}
	return nil
}

// sound says where the kernel would fall over what we do: before 6.18, accept(2)
// on a listener of MPTCP (which Go's are by default) takes a socket that is in a
// sockmap for what it is not, and writes into foreign memory (mended in Linux
// c77b3b79a92e). sysctls is /proc/sys.
func sound(sysctls string) error {
	release, err := os.ReadFile(filepath.Join(sysctls, "kernel/osrelease"))
	if err != nil {
		return err
	}
	major, minor, err := version(string(release))
	if err != nil {
		return err
	}
	if major > 6 || major == 6 && minor >= 18 {
		return nil
	}
	mptcp, err := os.ReadFile(filepath.Join(sysctls, "net/mptcp/enabled"))
	if err == nil && strings.TrimSpace(string(mptcp)) != "0" {
		return fmt.Errorf("kernel %s has a fault in MPTCP that accelerated sockets meet: use 6.18 or later, or set net.mptcp.enabled=0",
			strings.TrimSpace(string(release)))
	}
	return nil
}

// version reads the beginning of a release like 6.18.44-generic.
func version(release string) (major, minor int, err error) {
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return 0, 0, fmt.Errorf("kernel release %q: %w", release, err)
	}
	return major, minor, nil
}

// cgroups are the folders to attach to: the given one, and the process's own
// unless one of the two holds the other. proc is /proc/self.
func cgroups(proc, given string) ([]string, error) {
	own, err := ownCgroup(proc)
	if given == "" {
		if err != nil {
			return nil, err
		}
		return []string{own}, nil
	}
	given, absErr := filepath.Abs(given)
	if absErr != nil {
		return nil, absErr
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(given, &fs); err != nil {
		return nil, fmt.Errorf("--accelerate-cgroup %s: %w", given, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, fmt.Errorf("--accelerate-cgroup %s: not a folder of a cgroup v2 hierarchy", given)
	}
	switch {
	case err != nil:
		return nil, err
	case within(own, given):
		return []string{given}, nil
	case within(given, own):
		return []string{own}, nil
	}
	return []string{given, own}, nil
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// ownCgroup is the folder of the process's cgroup in the v2 hierarchy, which may be mounted beside v1 ones.
func ownCgroup(proc string) (string, error) {
	text, err := os.ReadFile(filepath.Join(proc, "cgroup"))
	if err != nil {
		return "", err
	}
	group := ""
	for line := range strings.Lines(string(text)) {
		// 0::PATH is the v2 hierarchy (cgroups(7)).
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			group = path
		}
	}
	if group == "" {
		return "", errors.New("the process is in no cgroup v2 hierarchy")
	}
	f, err := os.Open(filepath.Join(proc, "mountinfo"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	hidden := ""
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		root, point, ok := cgroup2Mount(scan.Text())
		if !ok {
			continue
		}
		if within(group, root) {
			return filepath.Join(point, strings.TrimPrefix(group, strings.TrimSuffix(root, "/"))), nil
		}
		hidden = point
	}
	if err := scan.Err(); err != nil {
		return "", err
	}
	if hidden != "" {
		return "", fmt.Errorf("cgroup %s of the process is outside of what is mounted at %s", group, hidden)
	}
	return "", errors.New("no cgroup v2 hierarchy is mounted")
}

// cgroup2Mount reads a line of mountinfo (proc_pid_mountinfo(5)):
// id parent major:minor root point options [optional…] - type source options.
func cgroup2Mount(line string) (root, point string, ok bool) {
	before, after, found := strings.Cut(line, " - ")
	f := strings.Fields(before)
	if !found || !strings.HasPrefix(after, "cgroup2 ") || len(f) < 6 {
		return "", "", false
	}
	return unescape(f[3]), unescape(f[4]), true
}

// unescape undoes \040 and the like.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
