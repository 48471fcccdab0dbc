package http2

import (
	"time"

	"sallyport/sidecar/message"
)

// What ends by time. The codec has no timer: it says with SweepIn when it wants Sweep to be called.

const (
	// patience is the age up to which a request that was cancelled on a worn connection is left to the server. For
	// Envoy one that is reset before its second second is premature.
	patience = 2 * youth
	// lingerBytes of a request are read after it was answered, at most, for lingerTimes the LingerTimeout.
	lingerBytes = 4 << 20
	lingerTimes = 5
	// trimAfter is how long memory of a burst is kept for the next one.
	trimAfter = 5 * time.Second
	// keptStreams is how many streams a connection without any keeps for later ones.
	keptStreams = 8
	// keptBytes of a header block, and of a scratch, do not count as memory of a burst.
	keptBytes = 4 << 10
)

// sweepIn asks for a Sweep in that time, unless there is an earlier one.
func (c *Conn) sweepIn(d time.Duration) {
	if c.closed {
		return
	}
	if at := c.out.NowMono() + int64(d); c.sweepAt == 0 || at < c.sweepAt {
		c.sweepAt = at
		c.common.SweepIn(d)
	}
}

// Sweep ends the streams whose time has come:
//
//   - on a server, one whose response was given to the codec as a whole, and for which the client gives no window for
//     FlushTimeout (Envoy's stream_flush_timeout): RST_STREAM(CANCEL), and stalled counts it;
//   - on a server, one whose response was sent while the client still sends its request, when nothing of it came for
//     LingerTimeout, or not its end in lingerTimes as long: RST_STREAM(NO_ERROR);
//   - on a client, one that was cancelled and whose RST_STREAM was held back (see Worn).
//
// It gives back memory of a burst, too. The owner calls it when SweepIn asked for it.
func (c *Conn) Sweep() (stalled int) {
	if c.closed || c.depth > 0 {
		return 0
	}
	c.sweepAt = 0
	now := c.out.NowMono()
	next := int64(0)
	c.visit(func(s *Stream) {
		at := int64(0)
		switch {
		case s.lingering:
			if at = min(s.moved+int64(c.o.LingerTimeout), s.lingerEnd); at <= now {
				s.endLinger()
				return
			}
		case s.orphan:
			if at = s.since + patience; at <= now {
				s.cancelOrphan()
				return
			}
		case s.stalls():
			if at = s.lastMove(now) + int64(c.o.FlushTimeout); at <= now {
				stalled++
				c.writeReset(s.id, Cancel)
				s.end(message.LocalReset)
				return
			}
		default:
			return
		}
		if next == 0 || at < next {
			next = at
		}
	})
	if c.trimAt != 0 {
		if c.trimAt <= now {
			c.trim()
		}
		if c.trimAt != 0 && (next == 0 || c.trimAt < next) {
			next = c.trimAt
		}
	}
	if next != 0 {
		c.sweepIn(time.Duration(next - now))
	}
	return stalled
}

// stalls says that the whole response was given to the codec, and waits for the client.
func (s *Stream) stalls() bool {
	return s.c.server && s.ended && !s.sendEnd && s.c.o.FlushTimeout > 0
}

// lastMove is when a stream that stalls last got window. One that waits for the Output is not to blame: a client that
// reads its socket slowly, or not, is the owner's affair. Nor is one that waits for the connection's window, while the
// client takes other streams.
func (s *Stream) lastMove(now int64) int64 {
	switch s.turnIn {
	case &s.c.ready:
		s.moved = now
	case &s.c.starved:
		s.moved = max(s.moved, s.c.starvedAt)
	}
	return s.moved
}

// awaitClient begins to wait for a client that has to take the end of a response.
func (s *Stream) awaitClient() {
	if s.stalls() && !s.gone {
		s.moved = s.c.out.NowMono()
		s.c.sweepIn(s.c.o.FlushTimeout)
	}
}

// mayLinger says whether a client whose request was answered before its end is given time to end it: where the
// response is an error, at which clients stop by themselves, or where the rest is short and needs no more window. A
// client that would have to wait for a window may do so for ever (curl 7.88), or may never mean to end (gRPC).
func (s *Stream) mayLinger() bool {
	c := s.c
	if c.o.LingerTimeout <= 0 {
		return false
	}
	return s.failed || s.length >= 0 && s.length-s.received <= min(s.recvWindow, c.recvWindow)
}

// linger gives a client the time to end its request after it was answered. A RST_STREAM right behind the response
// makes clients that are still sending fail before they read it (curl 7.88 with error 92), though RFC 9113 §8.1 has
// it so. Content is read and dropped, up to lingerBytes, for which the client gets the window at once.
//
// The end of the request is answered with a PING: curl 7.88 ends a request short of its content when it has read an
// error, and then waits for a frame of any kind, without end, to see that the stream is over.
func (s *Stream) linger() {
	c := s.c
	s.lingering, s.discard, s.r, s.paused = true, true, nil, 0
	s.dropInput()
	s.budget = lingerBytes
	if s.length >= 0 {
		s.budget = min(s.budget, s.length-s.received)
	}
	if more := s.budget - s.recvWindow; more > 0 {
		s.recvWindow += more
		c.writeWindowUpdate(s.id, uint32(more))
	}
	now := c.out.NowMono()
	s.moved, s.lingerEnd = now, now+lingerTimes*int64(c.o.LingerTimeout)
	c.sweepIn(c.o.LingerTimeout)
}

// lingered takes dropped content of a stream that lingers.
func (s *Stream) lingered(n int64) {
	s.moved = s.c.out.NowMono()
	if s.budget -= n; s.budget < 0 {
		s.endLinger()
	}
}

// endLinger tells the client that nothing more is wanted (§8.1).
func (s *Stream) endLinger() {
	s.c.writeReset(s.id, NoError)
	s.remove(false)
	s.c.streamClosed()
}

// Worn says on a client that so many requests on the connection ended early without a response that a server may soon
// take them for an attack (CVE-2023-44487) and end the connection, with all others that it carries: the owner opens
// no more streams on it. Who cancels after that has the stream kept for a while, since old streams are no sign of an
// attack: the server ends it, or Sweep does.
//
// A third of the requests is what a service may have cancelled all the time; Envoy's bound is half, and 250 at first.
func (c *Conn) Worn() bool {
	return !c.server && c.unanswered >= c.o.MaxResets && 3*c.unanswered >= int(c.limits.opened)-c.active
}

// endsUnanswered counts on a client a stream that ends early without a response, whatever ended it.
func (s *Stream) endsUnanswered() {
	if c := s.c; !c.server && s.young() {
		c.unanswered++
	}
}

// young says on a client that a server may take the stream's end for an attack.
func (s *Stream) young() bool { return s.id != 0 && !s.final && s.c.out.NowMono()-s.since < patience }

// abandon leaves a request to itself that was cancelled on a worn connection.
func (s *Stream) abandon() {
	s.orphan, s.r = true, nil
	s.ended, s.delivered = true, true
	if s.wasFull {
		s.wasFull = false
		s.c.full--
	}
	s.dropOutput()
	s.dropInput()
	s.c.sweepIn(time.Duration(s.since + patience - s.c.out.NowMono()))
}

// cancelOrphan ends such a request.
func (s *Stream) cancelOrphan() {
	if !s.recvEnd || !s.sendEnd {
		s.c.writeReset(s.id, Cancel)
	}
	s.remove(true)
	s.c.streamClosed()
}

// bulk notes that the connection has memory of a burst, to be given back when it was not needed for a while.
func (c *Conn) bulk() {
	if c.trimAt == 0 && !c.closed {
		c.unused = len(c.free)
		c.trimAt = c.out.NowMono() + int64(trimAfter)
		c.sweepIn(trimAfter)
	}
}

// trim gives back the streams that were not used since bulk, and with no stream open all other memory of heads.
func (c *Conn) trim() {
	c.trimAt = 0
	c.recycle()
	if n := min(c.unused, len(c.free)-keptStreams); n > 0 {
		m := copy(c.free, c.free[n:])
		clear(c.free[m:])
		c.free = c.free[:m:m]
	}
	if c.active == 0 {
		c.streams = idTable{}
		c.dead, c.visiting, c.scratch, c.spare.heads = nil, nil, nil, nil
		c.head = message.Head{}
		if c.block.stream == 0 {
			c.block.b = nil
		}
	}
	if len(c.free) > keptStreams {
		c.bulk() // those were used; perhaps they will not be any more
	}
}
