//go:build !invariants

package invariants

import (
	"testing"
	"unsafe"
)

func TestWithoutTheTagNothingIsThere(t *testing.T) {
	if size := unsafe.Sizeof(Owner{}) + unsafe.Sizeof(Once{}); size != 0 {
		t.Errorf("Owner and Once take %d bytes", size)
	}
	var once Once
	if n := testing.AllocsPerRun(10, func() {
		Check(false, "this is not looked at")
		once.Finish("nor this")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
