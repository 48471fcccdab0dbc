package http2

import "sallyport/sidecar/message"

// onPriority ignores priorities, which are deprecated (RFC 9113 §5.3.2), but
// not their mistakes.
func (c *Conn) onPriority(h *header, p []byte) *ConnError {
	if err := c.prioritized(); err != nil {
		return err
	}
	code := NoError
	switch {
	case len(p) != 5:
		code = FrameSizeError // §6.3
	case be32(p)&^(1<<31) == h.stream:
		code = ProtocolError // §5.3.1 of RFC 7540
	default:
		return nil
	}
	s := c.streams.get(h.stream)
	if s == nil {
		// RST_STREAM may not stand on an idle stream (§6.4), and is of no use on a closed one.
		return connError(code, "PRIORITY of a wrong length, or on itself")
	}
	return c.streamError(s, code)
}

// onReset is RST_STREAM.
func (c *Conn) onReset(h *header, p []byte) *ConnError {
	s := c.streams.get(h.stream)
	if s == nil {
		return c.idleFrame() // it crossed ours, or our END_STREAM
	}
	c.ended.add(s.id)
	early := s.early()
	if ErrCode(be32(p)) != RefusedStream {
		s.endsUnanswered()
	}
	if !c.server && s.recvEnd {
		// The response is complete: the server does not want the rest of
		// the request, whatever it says (§8.1).
		s.dropOutput()
		s.sendEnd = true
		s.settle()
		return nil
	}
	why := message.RemoteReset
	if ErrCode(be32(p)) == RefusedStream && !c.server && !s.begun {
		why = message.Refused
	}
	s.end(why)
	if c.server && early {
		return c.takenBack()
	}
	return nil
}

// onSettings is §6.5.
func (c *Conn) onSettings(h *header, p []byte) *ConnError {
	if h.has(flagAck) {
		if len(p) > 0 {
			return connError(FrameSizeError, "an acknowledgment of SETTINGS with a payload")
		}
		if !c.acked {
			c.acked = true
			c.dec.Acknowledged(c.o.HeaderTableSize)
		}
		return c.idleFrame()
	}
	window := c.peerWindow
	if !c.settings {
		c.peerStreams = maxStreamID // no limit where the first SETTINGS have none (§6.5.2)
	}
	for ; len(p) >= 6; p = p[6:] {
		v := be32(p[2:])
		switch uint16(p[0])<<8 | uint16(p[1]) {
		case settingTableSize:
			c.enc.SetTableSize(v)
		case settingEnablePush:
			if v > 1 || v == 1 && !c.server {
				return connError(ProtocolError, "SETTINGS_ENABLE_PUSH is wrong")
			}
		case settingMaxStreams:
			c.peerStreams = v
		case settingInitialWindow:
			if v > maxWindow {
				return connError(FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE is above 2^31-1")
			}
			window = int64(v)
		case settingMaxFrame:
			if v < minMaxFrame || v > maxMaxFrame {
				return connError(ProtocolError, "SETTINGS_MAX_FRAME_SIZE is out of bounds")
			}
			c.peerFrame = int(v)
		case settingMaxHeaderList:
			c.peerHeaders = v
		case settingConnectProtocol:
			if v > 1 || v == 0 && c.peerConnect {
				return connError(ProtocolError, "SETTINGS_ENABLE_CONNECT_PROTOCOL is wrong") // RFC 8441 §3
			}
			c.peerConnect = v == 1
		}
	}
	c.settings = true
	var b [frameHeaderLen]byte
	putHeader(b[:], 0, frameSettings, flagAck, 0)
	c.write(b[:])
	if err := c.moveWindows(window - c.peerWindow); err != nil {
		return err
	}
	c.peerWindow = window
	c.pump()
	if !c.server {
		c.streamClosed() // there may be room for more streams now
	}
	return c.control()
}

// moveWindows applies a change of SETTINGS_INITIAL_WINDOW_SIZE to all streams,
// whose windows may become negative (§6.9.2). One pass for each frame, however
// often the setting is in it. Streams that waited for SETTINGS go on too.
func (c *Conn) moveWindows(delta int64) *ConnError {
	for s := c.live.first; s != nil; s = s.live.next {
		if s.sendWindow += delta; s.sendWindow > maxWindow {
			return connError(FlowControlError, "a stream's window is above 2^31-1")
		}
		s.queue()
	}
	return nil
}

func (c *Conn) onPing(h *header, p []byte) *ConnError {
	if h.has(flagAck) {
		return c.idleFrame()
	}
	var b [frameHeaderLen + 8]byte
	putHeader(b[:], 8, framePing, flagAck, 0)
	copy(b[frameHeaderLen:], p)
	c.write(b[:])
	return c.control()
}

// ping makes the peer look at the connection; see linger.
func (c *Conn) ping() {
	if c.closed {
		return
	}
	var b [frameHeaderLen + 8]byte
	putHeader(b[:], 8, framePing, 0, 0)
	c.write(b[:])
}

// onGoAway is §6.8: what is above the last stream was not and will not be processed.
func (c *Conn) onGoAway(p []byte) *ConnError {
	last := be32(p) &^ (1 << 31)
	c.peerGone = true
	if !c.server {
		c.visit(func(s *Stream) {
			if s.id == 0 || s.id > last {
				s.end(message.Refused)
			}
		})
		c.clientOwner.PeerDrains()
	}
	return c.idleFrame()
}

// onWindowUpdate is §6.9.
func (c *Conn) onWindowUpdate(h *header, p []byte) *ConnError {
	if err := c.windowUpdated(); err != nil {
		return err
	}
	n := int64(be32(p) &^ (1 << 31))
	if h.stream == 0 {
		if n == 0 {
			return connError(ProtocolError, "WINDOW_UPDATE of 0")
		}
		if c.sendWindow += n; c.sendWindow > maxWindow {
			return connError(FlowControlError, "the connection's window is above 2^31-1")
		}
		for s := c.starved.first; s != nil && c.sendWindow > 0; s = c.starved.first {
			c.starved.remove(s)
			s.queue()
		}
		c.pump()
		return nil
	}
	s := c.streams.get(h.stream)
	if s == nil {
		return nil // closed; the peer may not know yet
	}
	if n == 0 {
		return c.streamError(s, ProtocolError)
	}
	if s.sendWindow += n; s.sendWindow > maxWindow {
		return c.streamError(s, FlowControlError)
	}
	s.queue()
	c.pump()
	return nil
}

// streamError resets a stream for what the peer did (§5.4.2).
func (c *Conn) streamError(s *Stream, code ErrCode) *ConnError {
	early := s.early()
	s.endsUnanswered()
	c.writeReset(s.id, code)
	s.end(message.ProtocolError)
	if err := c.answered(); err != nil {
		return err
	}
	if c.server && early {
		return c.takenBack()
	}
	return nil
}
