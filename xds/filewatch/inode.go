package filewatch

import (
	"io/fs"
	"syscall"
)

// inode tells two files of the same name, size and time apart.
func inode(info fs.FileInfo) uint64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}
