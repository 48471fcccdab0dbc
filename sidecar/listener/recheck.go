package listener

import "sallyport/sidecar/loop"

// recheckPerTurn bounds how many requests are asked about in a turn of the loop.
const recheckPerTurn = 256

// recheck asks the filters again about the requests that are under way on a
// worker's connections, after a change of what they are to allow: an L7 denial
// is in force on open streams too. It takes turns, so that a worker with ten
// thousand open streams goes on serving meanwhile. Owned by the worker.
type recheck struct {
	worker *loop.Worker
	left   []*connection
	queued bool
}

// add has a connection's requests asked about.
func (r *recheck) add(k *connection) {
	if k.rechecking {
		return // what is in force then is what counts
	}
	k.rechecking = true
	r.left = append(r.left, k)
	if !r.queued {
		r.queued = true
		r.worker.Later(r)
	}
}

// Turn asks about some of them.
func (r *recheck) Turn() {
	for n := 0; n < recheckPerTurn && len(r.left) > 0; {
		last := len(r.left) - 1
		k := r.left[last]
		r.left[last] = nil
		r.left = r.left[:last]
		n += 1 + k.recheck()
	}
	if r.queued = len(r.left) > 0; r.queued {
		r.worker.Later(r)
	}
}

func (k *connection) recheck() int {
	defer k.Worker.Guard(k.conn)
	k.rechecking = false
	if k.phase != serving || k.http == nil {
		return 0
	}
	return k.http.streams.Recheck()
}

// RoutesChanged is told when routes are in force that requests under way were
// not chosen by.
func (s *Server) RoutesChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, w := range s.workers {
		locals := make([]*workerListener, 0, len(s.active))
		for _, a := range s.active {
			locals = append(locals, a.locals[i])
		}
		w.Post(func() {
			for _, l := range locals {
				for _, k := range l.open {
					if k.http != nil && k.chain.HTTP != nil && k.http.active > 0 && k.chain.HTTP.Rechecks() {
						l.recheck.add(k)
					}
				}
			}
		})
	}
}
