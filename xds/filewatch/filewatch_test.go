package filewatch

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestChangesAreTold(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a")
	below := filepath.Join(dir, "b", "c")
	told := make(chan struct{}, 16)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Watch(ctx, 20*time.Millisecond, func() []string { return []string{dir} }, func() { told <- struct{}{} })
	}()
	defer func() { cancel(); <-ended }()
	wait := func(what string) {
		t.Helper()
		select {
		case <-told:
		case <-time.After(10 * time.Second):
			t.Fatal("not told of", what)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	wait("the beginning")
	must(os.WriteFile(file, []byte("1"), 0o600))
	wait("a new file")
	must(os.WriteFile(filepath.Join(dir, ".n"), []byte("2"), 0o600))
	wait("another file")
	must(os.Rename(filepath.Join(dir, ".n"), file))
	wait("a file that was replaced")
	must(os.Mkdir(filepath.Dir(below), 0o700))
	must(os.WriteFile(below, nil, 0o600))
	wait("a file in a folder")
	must(os.Remove(file))
	wait("a removed file")
}
