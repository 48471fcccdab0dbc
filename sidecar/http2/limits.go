package http2

import "time"

// limits count what a peer does that costs more than it brings. Exceeding one is the connection error
// ENHANCE_YOUR_CALM. What is no attack by itself (PING, WINDOW_UPDATE, a cancelled request) is counted over time,
// and against the progress that the connection makes in either direction, so that no transfer ends for being long.
type limits struct {
	idles         bucket // frames that move no request on: PING, SETTINGS, acknowledgments, unknown types
	windowUpdates bucket // WINDOW_UPDATE frames
	resets        bucket // streams that ended early by the peer's doing
	answers       unread // frames that we wrote because a frame of the peer made us
	empty         int    // frames without payload in a row
	priority      uint64 // PRIORITY frames
	opened        uint64 // streams
}

// How many frames that move no request on a peer may send at once, and in a second. A receiver that measures the
// path with PING sends at most one for each frame that it got, and each of those pays for idlesPerProgress.
const (
	idlesAtOnce      = 10_000
	idlesPerSecond   = 1_000
	idlesPerProgress = 20
)

// windowUpdatesSaved bounds what a peer can save up by transfers for a flood of WINDOW_UPDATE.
const windowUpdatesSaved = 100_000

// resetSeconds is the time in which a peer may spend MaxResets once more.
const resetSeconds = 5

// youth is the age below which a stream that ends without a response counts as reset early: what is older waited
// for a response longer than it costs to start a request. Envoy's overload.premature_reset_min_stream_lifetime_seconds.
const youth = int64(time.Second)

// bucket is how many acts of a kind are left to a peer. Time fills it, and progress where the caller gives for it.
type bucket struct {
	left int64
	at   int64 // up to when time has filled it
}

// take takes one; false where none is left. It looks at the time only when it must.
func (b *bucket) take(now, size, perSecond int64) bool {
	if b.left == 0 && !b.fill(now, size, perSecond) {
		return false
	}
	b.left--
	return true
}

// fill says whether there is anything in the bucket, after time has filled it.
func (b *bucket) fill(now, size, perSecond int64) bool {
	step := int64(time.Second) / perSecond
	if n := (now - b.at) / step; n > 0 {
		b.left = min(size, b.left+n)
		b.at += n * step
	}
	return b.left > 0
}

func (b *bucket) give(n, size int64) { b.left = min(size, b.left+n) }

// unread counts frames that wait in the Output, by two marks in the stream of bytes: exact while few bytes wait,
// and too high by those written since the older mark otherwise.
type unread struct {
	old, young int    // frames written up to the mark, and since then
	mark       uint64 // the byte that must have left for old to be over
}

// add counts a frame; written is all that the connection wrote, waiting what of it is in the Output.
func (u *unread) add(written uint64, waiting int) int {
	if written-uint64(waiting) >= u.mark {
		u.old, u.young, u.mark = u.young, 0, written
		if waiting == 0 {
			u.old = 0
		}
	}
	u.young++
	return u.old + u.young
}

func (l *limits) init(now int64, o *Options) {
	l.idles = bucket{idlesAtOnce, now}
	l.windowUpdates = bucket{5, now}
	l.resets = bucket{int64(o.MaxResets), now}
}

// idleFrame counts a frame that moves no request on.
func (c *Conn) idleFrame() *ConnError {
	if !c.limits.idles.take(c.out.NowMono(), idlesAtOnce, idlesPerSecond) {
		return connError(EnhanceYourCalm, "too many frames that move no request on")
	}
	return nil
}

// progress says that content or a head was sent or received.
func (l *limits) progress() { l.idles.give(idlesPerProgress, idlesAtOnce) }

// answered counts a frame that the peer made us write: one that does not read must not grow what waits
// (CVE-2019-9512, CVE-2019-9514, CVE-2019-9515). Envoy's max_outbound_control_frames.
func (c *Conn) answered() *ConnError {
	if c.limits.answers.add(c.written, c.out.Buffer().Len()) > c.o.MaxControlFrames {
		return connError(EnhanceYourCalm, "too many control frames whose answers are not read")
	}
	return nil
}

// control counts a frame that moves no request on and is answered.
func (c *Conn) control() *ConnError {
	if err := c.answered(); err != nil {
		return err
	}
	return c.idleFrame()
}

// payload counts a DATA, HEADERS or CONTINUATION frame (CVE-2019-9518).
func (c *Conn) payload(n uint32, end bool) *ConnError {
	l := &c.limits
	if n > 0 || end {
		l.empty = 0
		l.progress()
		return nil
	}
	if l.empty++; l.empty > c.o.MaxEmptyFrames {
		return connError(EnhanceYourCalm, "too many frames without payload")
	}
	return nil
}

// prioritized counts a PRIORITY frame, by Envoy's formula.
func (c *Conn) prioritized() *ConnError {
	l := &c.limits
	if l.priority++; l.priority > uint64(c.o.MaxPriorityFrames)*(1+l.opened) {
		return connError(EnhanceYourCalm, "too many PRIORITY frames")
	}
	return c.idleFrame()
}

// windowUpdated counts a WINDOW_UPDATE frame, by Envoy's formula: five at the beginning, two for each stream, and
// twice the option for each DATA frame that we sent. Time gives none: a window has nothing to say without DATA.
func (c *Conn) windowUpdated() *ConnError {
	b := &c.limits.windowUpdates
	if b.left == 0 {
		return connError(EnhanceYourCalm, "too many WINDOW_UPDATE frames for the DATA that was sent")
	}
	b.left--
	return nil
}

// opening counts a new stream.
func (l *limits) opening() {
	l.opened++
	l.windowUpdates.give(2, windowUpdatesSaved)
}

// sentData counts a DATA frame that we sent.
func (l *limits) sentData(o *Options) {
	l.progress()
	l.windowUpdates.give(2*int64(o.MaxWindowUpdates), windowUpdatesSaved)
}

// early says that a stream that ends now ended before it cost its peer anything: within its first second, and
// without a response.
func (s *Stream) early() bool { return !s.headGiven && s.c.out.NowMono()-s.since < youth }

// takenBack counts a stream that a client had begin and took back early (CVE-2023-44487), or made us take back
// (CVE-2025-8671).
//
// A connection that many users share is not ended for what some of them cancel: their requests are refused for as
// long as they are too many (see refusing), which whoever sent them may repeat (RFC 9113 §8.7).
func (c *Conn) takenBack() *ConnError {
	if !c.limits.resets.take(c.out.NowMono(), int64(c.o.MaxResets), c.resetRate()) && !c.o.Shared {
		return connError(EnhanceYourCalm, "too many streams are reset")
	}
	return nil
}

// refusing says that no new stream is taken on a shared connection, since too many were taken back.
func (c *Conn) refusing() bool {
	b := &c.limits.resets
	return c.o.Shared && b.left == 0 && !b.fill(c.out.NowMono(), int64(c.o.MaxResets), c.resetRate())
}

// resetRate is how many streams may end early in each second. On a shared connection it is at least as if each kept
// its place among the concurrent streams for a second.
func (c *Conn) resetRate() int64 {
	n := int64(c.o.MaxResets) / resetSeconds
	if c.o.Shared {
		n = max(n, int64(c.o.MaxConcurrentStreams))
	}
	return max(n, 1)
}

// paid gives for a stream that was answered: it pays for one that is taken back.
func (l *limits) paid(o *Options) { l.resets.give(1, int64(o.MaxResets)) }
