package message

import "testing"

func TestASnapshotGivesTheHeadBackAsItWas(t *testing.T) {
	var h, before, now Head
	h.AddNameString(Method, "GET")
	h.AddNameString(Path, "/a")
	h.AddString("x-a", "1")
	h.AddNameString(Authorization, "secret")
	h.MarkSensitive()
	before.CopyFrom(&h)
	var s Snapshot
	if s.Taken() {
		t.Error("an empty snapshot says that it was taken")
	}
	s.Take(&h)
	h.SetNameString(Path, "/rewritten/and/longer")
	h.Remove("x-a")
	h.RemoveName(Authorization)
	for range 200 {
		h.AddString("x-more", "the arena grows and moves")
	}
	s.Restore(&now, &h)
	if now.Len() != before.Len() {
		t.Fatalf("%d fields, want %d", now.Len(), before.Len())
	}
	for i := range before.Len() {
		n, v := now.At(i)
		wn, wv := before.At(i)
		if n != wn || string(v) != string(wv) || now.Sensitive(i) != before.Sensitive(i) {
			t.Errorf("field %d is %s: %s, want %s: %s", i, n, v, wn, wv)
		}
	}
	if !now.Is(Path, "/a") || !now.Has(Authorization) {
		t.Error("known names are not found")
	}
	if s.Clear(); s.Taken() {
		t.Error("a cleared snapshot says that it was taken")
	}
}
