package route

import (
	"fmt"
	"math"
	"sync"
)

// FilterID stands for a filter's name: routes override filters by name, and a
// request compares numbers. It is the same in the tables of routes and in the
// filter chains that were compiled with the same FilterNames.
type FilterID uint16

// FilterNames gives each name of a filter its number. Safe for concurrent use;
// used off the workers. Names are never forgotten: there are as many as the
// configuration of a process has ever had.
type FilterNames struct {
	mu  sync.Mutex
	ids map[string]FilterID
}

// ID returns the number of a name.
func (n *FilterNames) ID(name string) (FilterID, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if id, ok := n.ids[name]; ok {
		return id, nil
	}
	if len(n.ids) > math.MaxUint16 {
		return 0, fmt.Errorf("filter %q: %d names of filters were configured since the start, and no more are possible", name, len(n.ids))
	}
	if n.ids == nil {
		n.ids = map[string]FilterID{}
	}
	id := FilterID(len(n.ids))
	n.ids[name] = id
	return id, nil
}
