package redirect

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// cgroupMount is where cgroups of version 2 are seen.
type cgroupMount struct {
	root  string // which cgroup the mount shows; "/" is all that this cgroup namespace has
	point string
}

// cgroupMounts reads /proc/self/mountinfo (proc_pid_mountinfo(5)): in the unified hierarchy the mount is at
// /sys/fs/cgroup, in the hybrid one beside those of version 1, usually at /sys/fs/cgroup/unified.
func cgroupMounts(mountinfo io.Reader) (out []cgroupMount, err error) {
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		// id parent major:minor root point options [tags] - type source options
		before, after, ok := strings.Cut(lines.Text(), " - ")
		f := strings.Fields(before)
		if ok && len(f) >= 5 && strings.HasPrefix(after, "cgroup2 ") {
			out = append(out, cgroupMount{root: unescapeMount(f[3]), point: unescapeMount(f[4])})
		}
	}
	return out, lines.Err()
}

// unescapeMount undoes the octal escapes of white space and backslash.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// cgroupRelative is the path below the root as the user gave it; for a folder of the file system that is known only
// once resolveCgroup has seen the mounts, and the usual mount points stand for it before.
func cgroupRelative(path string) string {
	for _, point := range []string{"/sys/fs/cgroup/unified/", "/sys/fs/cgroup/"} {
		if rest, ok := strings.CutPrefix(filepath.Clean(path), point); ok {
			return rest
		}
	}
	return strings.Trim(filepath.Clean(path), "/")
}

// cgroup is one as the kernel knows it.
type cgroup struct {
	level uint32 // its depth below the root
	id    uint64
	path  string // below the root, without slashes at its ends
	dir   string
}

var errNoCgroup2 = errors.New("no cgroup2 file system is mounted here: mount -t cgroup2 none /sys/fs/cgroup, or redirect the whole namespace")

// resolveCgroup finds a cgroup by the folder or by the path that /proc/PID/cgroup shows.
func resolveCgroup(path string) (cgroup, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return cgroup{}, err
	}
	mounts, err := cgroupMounts(bytes.NewReader(data))
	if err != nil {
		return cgroup{}, err
	}
	if len(mounts) == 0 {
		return cgroup{}, errNoCgroup2
	}
	return findCgroup(mounts, path)
}

func findCgroup(mounts []cgroupMount, path string) (cgroup, error) {
	clean := filepath.Clean("/" + path)
	// Seen from a cgroup namespace below it (cgroup_namespaces(7)) a mount does not show how deep it lies, which the
	// rules have to say.
	outside := func(m cgroupMount) bool { return m.root == "/.." || strings.HasPrefix(m.root, "/../") }
	for _, m := range mounts {
		if _, ok := below(clean, m.point); ok && outside(m) {
			return cgroup{}, fmt.Errorf("cgroup %s: %s is mounted from outside of this cgroup namespace: apply from the host's cgroup namespace", path, m.point)
		}
	}
	mounts = slices.DeleteFunc(slices.Clone(mounts), outside)
	if len(mounts) == 0 {
		return cgroup{}, fmt.Errorf("cgroup %s: the cgroup2 mount is from outside of this cgroup namespace: apply from the host's cgroup namespace", path)
	}
	for _, m := range mounts {
		if rest, ok := below(clean, m.point); ok {
			return statCgroup(filepath.Join(m.point, rest), filepath.Join(m.root, rest), path)
		}
	}
	for _, m := range mounts {
		if rest, ok := below(clean, m.root); ok {
			return statCgroup(filepath.Join(m.point, rest), clean, path)
		}
	}
	return cgroup{}, fmt.Errorf("cgroup %s: not below %s", path, mounts[0].point)
}

// below says what of a path comes after dir.
func below(path, dir string) (rest string, ok bool) {
	if dir == "/" {
		return path, true
	}
	rest, ok = strings.CutPrefix(path, dir)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// cgroupIDs is the note by which staleCgroup knows the cgroups again. The kernel compares ids, and one that is removed and
// made again under its path has another.
func cgroupIDs(c *Config, cgroups map[string]cgroup) []string {
	if len(cgroups) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s%d,%d", idsNote, cgroups[c.Cgroup].id, cgroups[c.Sidecar.Cgroup].id)}
}

// staleCgroup says which of the noted cgroups is not there any more, or is another one of its path.
func staleCgroup(c *Config, ids string) string {
	app, sidecar, ok := strings.Cut(ids, ",")
	if !ok {
		return ""
	}
	for _, is := range []struct{ path, id string }{{c.Cgroup, app}, {c.Sidecar.Cgroup, sidecar}} {
		if is.path == "" {
			continue
		}
		g, err := resolveCgroup(is.path)
		if errors.Is(err, os.ErrNotExist) {
			return "the cgroup " + is.path + " is gone, and these rules match nobody; once it is there"
		}
		if err == nil && strconv.FormatUint(g.id, 10) != is.id {
			return "the cgroup " + is.path + " was made anew, and these rules match the one before"
		}
	}
	return ""
}

func statCgroup(dir, path, given string) (cgroup, error) {
	path = strings.Trim(path, "/")
	if path == "" {
		return cgroup{}, fmt.Errorf("cgroup %s: %w", given, errRoot)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return cgroup{}, fmt.Errorf("cgroup %s: %s: %w; make it first (mkdir %s)", given, dir, err, dir)
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return cgroup{}, fmt.Errorf("cgroup %s: %s: %w", given, dir, errCgroup)
	}
	// The id that the kernel compares with is the folder's inode number (cgroup_id, kernfs_id).
	return cgroup{level: uint32(strings.Count(path, "/") + 1), id: st.Ino, path: path, dir: dir}, nil
}

// OwnCgroup is the folder of the cgroup of version 2 that this process is in.
func OwnCgroup() (string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	mounts, err := cgroupMounts(bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	if len(mounts) == 0 {
		return "", errNoCgroup2
	}
	if data, err = os.ReadFile("/proc/self/cgroup"); err != nil {
		return "", err
	}
	// "0::/path" is the line of version 2 (cgroups(7)).
	for line := range strings.Lines(string(data)) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		for _, m := range mounts {
			if rest, ok := below(filepath.Clean(path), m.root); ok {
				return filepath.Join(m.point, rest), nil
			}
		}
	}
	return "", errors.New("this process is in no cgroup that can be seen here; redirect the whole namespace")
}
