package http2

// limits counts what a peer does that costs more than it brings. Exceeding one
// is the connection error ENHANCE_YOUR_CALM. The codec has no clock: counts
// are held against progress instead of time.
type limits struct {
	control       int    // answers to control frames since the peer last read all of ours
	idleFrames    int    // frames since the last that moved a request on
	empty         int    // frames without payload in a row
	priority      uint64 // PRIORITY frames
	windowUpdates uint64 // WINDOW_UPDATE frames
	dataSent      uint64 // DATA frames
	opened        uint64 // streams
	recent        int    // streams, of which
	resets        int    // ended early by the peer's doing
}

// maxIdleFrames bounds control frames between one DATA or HEADERS frame and
// the next. A keepalive of a second fills it in a day without any request.
const maxIdleFrames = 100_000

// idle counts a frame that moves no request on.
func (l *limits) idle() *ConnError {
	if l.idleFrames++; l.idleFrames > maxIdleFrames {
		return connError(EnhanceYourCalm, "too many frames without a request")
	}
	return nil
}

// answered counts a frame that made us answer (CVE-2019-9512, CVE-2019-9515).
func (l *limits) answered(o *Options) *ConnError {
	if l.control++; l.control > o.MaxControlFrames {
		return connError(EnhanceYourCalm, "too many control frames whose answers are not read")
	}
	return l.idle()
}

// payload counts a DATA, HEADERS or CONTINUATION frame (CVE-2019-9518).
func (l *limits) payload(n uint32, end bool, o *Options) *ConnError {
	if n > 0 || end {
		l.empty, l.idleFrames = 0, 0
		return nil
	}
	if l.empty++; l.empty > o.MaxEmptyFrames {
		return connError(EnhanceYourCalm, "too many frames without payload")
	}
	return l.idle()
}

func (l *limits) prioritized(o *Options) *ConnError {
	if l.priority++; l.priority > uint64(o.MaxPriorityFrames)*(1+l.opened) {
		return connError(EnhanceYourCalm, "too many PRIORITY frames")
	}
	return l.idle()
}

// windowUpdate is Envoy's formula: five at the beginning, two for each stream,
// and twice the option for each DATA frame sent.
func (l *limits) windowUpdate(o *Options) *ConnError {
	if l.windowUpdates++; l.windowUpdates > 5+2*(l.opened+uint64(o.MaxWindowUpdates)*l.dataSent) {
		return connError(EnhanceYourCalm, "too many WINDOW_UPDATE frames")
	}
	return l.idle()
}

// open counts a new stream. Old ones count half as much each time, so that a
// long good past does not pay for an attack.
func (l *limits) open(o *Options) {
	l.opened++
	if l.recent++; l.recent >= 4*o.MaxResets {
		l.recent /= 2
		l.resets /= 2
	}
}

// reset counts a stream that a client had begin and took back
// (CVE-2023-44487), or made us take back (CVE-2025-8671).
func (l *limits) reset(o *Options) *ConnError {
	if l.resets++; l.resets > o.MaxResets && l.resets*2 > l.recent {
		return connError(EnhanceYourCalm, "too many streams are reset")
	}
	return nil
}
