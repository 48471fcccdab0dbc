package sidecar

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestFileMappings(t *testing.T) {
	const smaps = `00400000-01782000 r-xp 00000000 fe:00 1234                               /usr/bin/sallyport
Size:              19976 kB
Rss:               15580 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
01782000-02f61000 r--p 01382000 fe:00 1234                               /usr/bin/sally port (deleted)
Rss:               14520 kB
Anonymous:             0 kB
02f61000-03000000 r--p 02b61000 fe:00 1234                               /usr/bin/sallyport
Rss:                 636 kB
Anonymous:           600 kB
03000000-04000000 rw-p 02b61000 fe:00 1234                               /usr/bin/sallyport
Rss:                6360 kB
Anonymous:             0 kB
c000000000-c000400000 r--p 00000000 00:00 0
Rss:                4096 kB
Anonymous:             0 kB
7f0000000000-7f0000001000 r--p 00000000 fe:00 99                         /usr/lib/libc.so.6
Rss:                   4 kB
Anonymous:             0 kB
7f0000001000-7f0000f01000 r--s 00000000 fe:00 98                         /var/shared
Rss:                4096 kB
Anonymous:             0 kB
7f0001000000-7f0001f01000 r--p 00000000 fe:00 97                         /var/truncated
Rss:                4096 kB
`
	want := []mapping{
		{0x400000, 0x1782000},  // the code
		{0x1782000, 0x2f61000}, // what only is read
		// not: relocated, writable, without a file, small, shared, without a count
	}
	if got := fileMappings(strings.NewReader(smaps)); !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

// TestReleasedPagesComeBack: the program goes on, its constants are what they were.
func TestReleasedPagesComeBack(t *testing.T) {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	found := fileMappings(f)
	_ = f.Close()
	if len(found) == 0 {
		t.Fatal("the code of the test is in no mapping that could be released")
	}
	constant := strings.Repeat("x", 3) + "constants"
	releaseFilePages()
	if constant != "xxxconstants" {
		t.Error(constant)
	}
	TestFileMappings(t)
}
