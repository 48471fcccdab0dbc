package redirect

import (
	"os"
	"sync"
	"sync/atomic"
	"testing"
)

func TestTheLockIsHeldByOneAtATime(t *testing.T) {
	folder := t.TempDir() + "/locks"
	var inside atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				unlock := lock(folder)
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d hold it", n)
				}
				inside.Add(-1)
				unlock()
			}
		})
	}
	all.Wait()
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestAFolderOfOthersIsNoPlaceForTheLock(t *testing.T) {
	folder := t.TempDir() + "/locks"
	if err := os.Mkdir(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	unlock := lock(folder)
	defer unlock()
	if made, err := os.ReadDir(folder); err != nil || len(made) > 0 {
		t.Errorf("made there: %v %v", made, err)
	}
}
