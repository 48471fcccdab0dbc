package listener

import "sallyport/sidecar/conn"

// maxInspect bounds what inspection waits for: a ClientHello fits in a record.
const maxInspect = 16<<10 + 512

// inspects says whether a connection's first bytes decide anything.
func (c *Config) inspects() bool { return c.Inspect || c.HTTPInspect || c.ProxyHeader }

// inspectLimit is the limit of what may wait unconsumed while the first bytes are
// inspected: per_connection_buffer_limit_bytes is for what comes after, and a
// ClientHello may be longer.
func inspectLimit(limit int) int {
	if limit <= 0 {
		return limit // the default, which is more
	}
	return max(limit, maxInspect)
}

// inspect looks at the first bytes and returns how many of them are nobody's: a PROXY header.
func (k *connection) inspect(p []byte) int {
	n := 0
	if k.cfg.ProxyHeader && !k.proxied {
		src, dst, used, more, err := conn.ParseProxyHeader(p)
		switch {
		case err != nil && k.cfg.ProxyOption:
			// Not a PROXY header, and the listener takes connections without one.
		case err != nil:
			k.local.count(statProxyError)
			k.conn.Reset()
			return len(p)
		case more && len(p) < maxInspect:
			return 0
		default:
			if src.IsValid() {
				k.Remote, k.Direct = src, src
				k.Local = dst
				k.conn.SetRemoteAddr(src)
			}
			n = used
		}
		k.proxied = true
		p = p[n:]
	}
	if k.cfg.Inspect {
		if len(p) == 0 {
			return n
		}
		hello, more, err := conn.ParseClientHello(p)
		if more && len(p) < maxInspect {
			return n
		}
		if err == nil && !more {
			k.transport, k.SNI, k.alpn = "tls", hello.ServerName, hello.ALPN
		}
	}
	if k.cfg.HTTPInspect && k.transport == "raw_buffer" {
		if more := k.inspectHTTP(p); more && len(p) < maxInspect {
			return n
		}
	}
	stop(k.timer)
	k.choose()
	return n
}

// inspectTimeout ends the waiting for more.
func (k *connection) inspectTimeout() {
	if k.phase != inspecting {
		return
	}
	k.local.count(statFilterTimeout)
	if k.cfg.ContinueTime {
		k.decide()
		return
	}
	k.conn.Close()
}

// cutOff is for a client that ended its sending before inspection had enough. It
// may still want an answer: a server that speaks first has one, and so may one to
// which what came is a whole request. Only a PROXY header is not done without,
// and not in part: it says whose connection this is.
func (k *connection) cutOff() {
	if k.cfg.ProxyHeader && !k.proxied && (!k.cfg.ProxyOption || k.conn.BytesRead() > 0) {
		k.local.count(statProxyError)
		k.conn.Close()
		return
	}
	k.ended = true
	k.decide()
}

// decide ends the inspection with what is known. What was looked at is presented
// again, and the end of the client's sending after it.
func (k *connection) decide() {
	stop(k.timer)
	k.choose()
	k.conn.SetHandler(k)
}

// inspectHTTP finds the version of plaintext HTTP for matching by application protocol.
func (k *connection) inspectHTTP(p []byte) (more bool) {
	switch isPreface(p) {
	case prefaceYes:
		k.alpn = []string{"h2c"}
		return false
	case prefaceMaybe:
		return true
	}
	for i, c := range p {
		if c != '\n' {
			continue
		}
		line := string(p[:i])
		for version, name := range map[string]string{" HTTP/1.1\r": "http/1.1", " HTTP/1.0\r": "http/1.0"} {
			if len(line) > len(version) && line[len(line)-len(version):] == version {
				k.alpn = []string{name}
			}
		}
		return false
	}
	return true
}
