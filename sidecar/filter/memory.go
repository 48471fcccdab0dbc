package filter

import (
	"runtime"
	"sync"
	"weak"
)

// Memory keeps what filters must not lose when their configuration is sent
// again unchanged, such as how full a token bucket is. It holds things only as
// long as a compiled filter uses them. Safe for concurrent use; used off the workers.
type Memory struct {
	mu   sync.Mutex
	kept map[string]any // weak.Pointer[T]
}

// NewMemory returns an empty memory.
func NewMemory() *Memory { return &Memory{kept: map[string]any{}} }

// Keep returns what is kept under key, or makes it. The key must name the kind
// of thing, and everything of the configuration that would make it another one.
func Keep[T any](m *Memory, key string, create func() *T) *T {
	if m == nil {
		return create()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if w, ok := m.kept[key].(weak.Pointer[T]); ok {
		if v := w.Value(); v != nil {
			return v
		}
	}
	v := create()
	w := weak.Make(v)
	m.kept[key] = w
	runtime.AddCleanup(v, func(key string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		// It may have been made anew under the same key meanwhile.
		if m.kept[key] == any(w) {
			delete(m.kept, key)
		}
	}, key)
	return v
}
