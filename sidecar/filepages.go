package sidecar

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// dropMinimum is the smallest mapping that releaseFilePages looks at, in KiB that are resident.
const dropMinimum = 512

// releaseFilePages takes the pages of the program's file out of this process:
// most of what reading a configuration has touched (protobuf's descriptors, the
// linker's tables, other commands) is never needed again, and it was three
// quarters of what an idle sidecar held. The pages stay in the page cache, which
// all sidecars of the machine share; what is needed comes back from there by a
// minor fault for each 64 KiB, some hundred of them.
func releaseFilePages() {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return // no /proc: the pages stay
	}
	defer f.Close()
	for _, m := range fileMappings(f) {
		// The kernel's own call: unix.Madvise wants a slice, which Go must not have of memory that is not its own.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

type mapping struct{ start, end uintptr }

// fileMappings returns the mappings, in the format of proc_pid_smaps(5), that the file alone
// can bring back: of a file, not writable, and without a page that was ever written to. The
// last keeps off what the dynamic linker has relocated and protected again, and a debugger's breakpoints.
func fileMappings(smaps io.Reader) []mapping {
	var found []mapping
	var m mapping
	var ofFile bool
	resident, anonymous := 0, 0
	for s := bufio.NewScanner(smaps); s.Scan(); {
		key, rest, _ := strings.Cut(s.Text(), " ")
		switch key {
		case "Rss:":
			_, _ = fmt.Sscan(rest, &resident)
		case "Anonymous:":
			if n, err := fmt.Sscan(rest, &anonymous); n != 1 || err != nil {
				ofFile = false
			}
			if ofFile && anonymous == 0 && resident >= dropMinimum {
				found = append(found, m)
			}
		default:
			if strings.HasSuffix(key, ":") {
				continue
			}
			var perms, offset, device, path string
			var inode uint64
			_, err := fmt.Sscanf(key, "%x-%x", &m.start, &m.end)
			n, _ := fmt.Sscan(rest, &perms, &offset, &device, &inode, &path)
			ofFile = err == nil && n == 5 && inode != 0 && (perms == "r-xp" || perms == "r--p")
			resident = 0
		}
	}
	return found
}
