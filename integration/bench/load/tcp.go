package load

import (
	"fmt"
	"io"
	"net"
	"time"
)

// sink is a backend that reads and throws away.
func sink(_ Spec, ready func(string)) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ready(l.Addr().String())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10)) // it ends somehow
		}()
	}
}

// send writes as fast as it goes. With Body, each connection ends after so many bytes and another is made.
func send(s Spec) (Result, error) {
	dial, err := s.dialer("")
	if err != nil {
		return Result{}, err
	}
	buf := body(64 << 10)
	end := time.Now().Add(s.duration())
	return s.many(max(s.Connections, 1), func() (total int64, err error) {
		c, err := dial()
		if err != nil {
			return 0, err
		}
		defer c.Close()
		if err := c.SetDeadline(end.Add(patience)); err != nil {
			return 0, err
		}
		for time.Now().Before(end) && (s.Body == 0 || total < int64(s.Body)) {
			n, err := c.Write(buf)
			total += int64(n)
			if err != nil {
				return total, err
			}
		}
		return total, nil
	}), nil
}

// quitters are clients that do not wait: each connection is cut in the middle of a request's body or of a response's.
func quitters(s Spec) (Result, error) {
	dial, err := s.dialer("http/1.1")
	if err != nil {
		return Result{}, err
	}
	head := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: bench.local\r\nContent-Length: %d\r\n\r\n", s.path(), 1<<20)
	get := s.request()
	small := body(10 << 10)
	turn := make(chan int, 1)
	turn <- 0
	return s.many(max(s.Connections, 1), func() (int64, error) {
		n := <-turn
		turn <- n + 1
		c, err := dial()
		if err != nil {
			return 0, err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return 0, err
		}
		if n%4 < 2 {
			if _, err := c.Write(append(head[:len(head):len(head)], small...)); err != nil {
				return 0, err
			}
		} else {
			if _, err := c.Write(get); err != nil {
				return 0, err
			}
			if _, err := io.ReadFull(c, make([]byte, 1000)); err != nil {
				return 0, err
			}
		}
		if t, ok := c.(*net.TCPConn); ok && n%2 == 0 {
			return 0, t.SetLinger(0) // an RST rather than a FIN
		}
		return 0, nil
	}), nil
}
