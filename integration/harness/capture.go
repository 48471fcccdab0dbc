package harness

import (
	"bytes"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Capture is every frame that crosses a bridge, byte for byte. It is safe for concurrent use.
type Capture struct {
	mu     sync.Mutex
	frames [][]byte
	size   int
	missed bool // frames were lost
	fd     int
	done   chan struct{} // closed: stop
	ended  chan struct{} // closed by the reader
}

// maxCapture bounds what is kept; a test that exceeds it fails.
const maxCapture = 256 << 20

// Capture begins to record. When it returns, whatever is sent from then on will be seen; it ends with the test, which
// fails if a frame was lost.
func (n *Network) Capture() *Capture {
	n.t.Helper()
	c := &Capture{done: make(chan struct{}), ended: make(chan struct{})}
	n.must(n.wires.do(func() (err error) { c.fd, err = packetSocket(bridge); return err }), "capture")
	go c.read()
	n.t.Cleanup(func() {
		close(c.done)
		<-c.ended
		if c.missed {
			n.t.Error("the capture of the bridge is not complete")
		}
	})
	return c
}

// packetSocket sees everything that passes an interface (packet(7)). A bridge shows what passes between its ports only
// in promiscuous mode.
func packetSocket(name string) (int, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	const all = uint16(unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8) // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return 0, err
	}
	err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	if err == nil {
		err = unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(link.Index), Type: unix.PACKET_MR_PROMISC})
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	}
	if err == nil { // so that the reader sees that it is to stop
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

func (c *Capture) read() {
	buf := make([]byte, 256<<10) // segments are put together before they get here
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if err == syscall.EAGAIN || err == syscall.EINTR {
			select {
			case <-c.done:
				c.finish()
				return
			default:
				continue
			}
		}
		if err != nil {
			c.finish()
			return
		}
		c.mu.Lock()
		if c.size += n; c.size <= maxCapture {
			c.frames = append(c.frames, bytes.Clone(buf[:n]))
		} else {
			c.missed = true
		}
		c.mu.Unlock()
	}
}

// finish asks the kernel whether it dropped frames, and closes the socket.
func (c *Capture) finish() {
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	c.mu.Lock()
	c.missed = c.missed || err != nil || stats.Drops > 0
	c.mu.Unlock()
	unix.Close(c.fd)
	close(c.ended)
}

// Frames are those seen so far.
func (c *Capture) Frames() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frames[:len(c.frames):len(c.frames)]
}

// Contains says whether any frame holds the bytes. A text that is split over two frames is not found: look for
// something short, sent often.
func (c *Capture) Contains(text []byte) bool {
	for _, f := range c.Frames() {
		if bytes.Contains(f, text) {
			return true
		}
	}
	return false
}
