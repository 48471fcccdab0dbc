package conn

import "fmt"

// A panic in what is called for a connection ends this connection, with RST, so that the peer cannot take what
// it has got for all there was; its handler learns of it by Closed. Conn and the types under which the loop
// knows it are loop.Panickers.

// Panicked ends the connection. It is for loop.Worker.Guard: a handler that schedules timers or posts functions
// for a connection guards them with it.
func (c *Conn) Panicked(v any) {
	if c.closed {
		return
	}
	c.abort()
	c.close(fmt.Errorf("panic: %v", v))
}

func (s *source) Panicked(v any)   { (*Conn)(s).Panicked(v) }
func (t *turner) Panicked(v any)   { (*Conn)(t).Panicked(v) }
func (y *yielder) Panicked(v any)  { (*Conn)(y).Panicked(v) }
func (f *flusher) Panicked(v any)  { (*Conn)(f).Panicked(v) }
func (f *finisher) Panicked(v any) { (*Conn)(f).Panicked(v) }
