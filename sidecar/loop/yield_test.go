package loop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// switches is how often the threads of this process, but for one, went to sleep so far.
func switches(t *testing.T, but int) (n int) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, task := range tasks {
		if strings.HasPrefix(task, fmt.Sprintf("/proc/self/task/%d/", but)) {
			continue
		}
		status, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		_, line, _ := strings.Cut(string(status), "\nvoluntary_ctxt_switches:")
		var k int
		if _, err := fmt.Sscan(line, &k); err != nil {
			t.Fatal(task, err)
		}
		n += k
	}
	return n
}

// TestGosMonitorRests compares a worker that yields with one that does not, under a light load: what yield is for must
// still hold with another version of Go, or it can go.
func TestGosMonitorRests(t *testing.T) {
	wakes := func(every time.Duration) int {
		w, err := New(0)
		if err != nil {
			t.Fatal(err)
		}
		w.yieldEvery = every
		const turns = 400
		var tick Timer
		ran := 0
		thread := make(chan int, 1)
		done := make(chan struct{})
		tick.Init(func() {
			switch ran++; ran {
			case 50:
				thread <- unix.Gettid() // the monitor had the time to notice
			case turns:
				close(done)
				return
			}
			for range 20 { // what a request or two do
				_, _ = unix.Write(w.event, []byte{0: 1, 7: 0})
			}
			w.Schedule(&tick, time.Millisecond)
		})
		w.Post(func() { w.Schedule(&tick, time.Millisecond) })
		stopped := make(chan struct{})
		go func() {
			w.Run()
			close(stopped)
		}()
		self := <-thread
		before := switches(t, self)
		<-done
		n := switches(t, self) - before
		w.Stop()
		<-stopped
		return n
	}
	with, without := 0, 0
	for range 5 { // other processes may wake threads, too
		with, without = wakes(yieldEvery), wakes(0)
		t.Logf("the other threads slept %d times beside a worker that yields, %d beside one that does not", with, without)
		if 3*with < 2*without {
			return
		}
	}
	t.Errorf("the other threads sleep as often beside a worker that yields (%d) as beside one that does not (%d)", with, without)
}
