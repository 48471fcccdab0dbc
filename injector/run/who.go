package run

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// whoHas says in words which process listens on a TCP port of this network namespace.
func whoHas(port uint16) string {
	for _, table := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		if uid, inode, ok := listens(table, port); ok {
			return fmt.Sprintf("%s of user %s", processOf(inode), uid)
		}
	}
	return "another process"
}

// listens reads the kernel's table of sockets (proc_pid_net(5)): "sl local remote st queues timer retrnsmt uid timeout inode".
func listens(table string, port uint16) (uid, inode string, ok bool) {
	f, err := os.Open(table)
	if err != nil {
		return "", "", false
	}
	defer f.Close()
	const listening = "0A"
	suffix := fmt.Sprintf(":%04X", port)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		w := strings.Fields(lines.Text())
		if len(w) > 9 && w[3] == listening && strings.HasSuffix(w[1], suffix) {
			return w[7], w[9], true
		}
	}
	return "", "", false
}

// processOf finds who has a socket open.
func processOf(inode string) string {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "a process"
	}
	want := "socket:[" + inode + "]"
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err != nil || link != want {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, _ := os.ReadFile("/proc/" + pid + "/comm")
		return fmt.Sprintf("process %s (%s)", pid, strconv.Quote(strings.TrimSpace(string(name))))
	}
	return "a process"
}
