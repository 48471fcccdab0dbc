package sidecar

import (
	"cmp"
	"fmt"

	"sallyport/sidecar/conn"
	"sallyport/sidecar/ring"
)

// batch gives each worker a ring for its system calls, where the system has it. It comes before the first connection.
func (p *process) batch() error {
	if p.o.IOUring == ring.Off {
		return nil
	}
	rings := make([]*ring.Ring, len(p.workers))
	made := make(chan error, len(p.workers))
	for i, w := range p.workers {
		w.Post(func() { // a ring belongs to the thread that makes it
			r, err := ring.New()
			if rings[i] = r; err == nil {
				conn.Batch(w, r)
			}
			made <- err
		})
	}
	var err error
	for range p.workers {
		err = cmp.Or(<-made, err)
	}
	if err != nil {
		if p.o.IOUring == ring.On {
			return fmt.Errorf("--io-uring on: %w (with auto it goes on without)", err)
		}
		p.log.Info("each read and write is a system call of its own", "reason", err)
	}
	for name, value := range map[string]func(*ring.Ring) uint64{
		"io_uring.enters": func(r *ring.Ring) uint64 { enters, _ := r.Calls(); return enters },
		"io_uring.calls":  func(r *ring.Ring) uint64 { _, calls := r.Calls(); return calls },
	} {
		p.metrics.Outside(name, func() (sum uint64) {
			for _, r := range rings {
				if r != nil {
					sum += value(r)
				}
			}
			return sum
		})
	}
	return nil
}
