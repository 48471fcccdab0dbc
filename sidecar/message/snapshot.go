package message

// Snapshot remembers what fields a Head had. It costs the list of fields alone:
// a Head only ever appends to its arena, so that the values of then stay in it
// until Reset.
type Snapshot struct{ fields []field }

// Take remembers the fields that h has now.
func (s *Snapshot) Take(h *Head) { s.fields = append(s.fields[:0], h.fields...) }

// Taken says that there is something to restore.
func (s *Snapshot) Taken() bool { return len(s.fields) > 0 }

// Clear forgets what was taken.
func (s *Snapshot) Clear() { s.fields = s.fields[:0] }

// Restore makes dst a copy of h as it was at Take. h was not Reset since.
func (s *Snapshot) Restore(dst, h *Head) {
	dst.arena = append(dst.arena[:0], h.arena...)
	dst.fields = append(dst.fields[:0], s.fields...)
	dst.reindex()
}
