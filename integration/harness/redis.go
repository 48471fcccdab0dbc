package harness

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// RedisServer is a running redis-server, in memory.
type RedisServer struct {
	*Process
	addr string
}

// NewRedis starts a Redis and waits until it answers.
func NewRedis(t testing.TB) *RedisServer {
	t.Helper()
	Need(t, Redis)
	r := &RedisServer{addr: FreeAddr(t)}
	_, port, _ := net.SplitHostPort(r.addr)
	r.Process = Command{Name: "redis", Path: Redis.Path(), Dir: t.TempDir(),
		Args: []string{"--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no"}}.Start(t)
	r.WaitFor("PONG", func() error {
		c, err := net.DialTimeout("tcp", r.addr, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Second))
		io.WriteString(c, "PING\r\n")
		line, err := bufio.NewReader(c).ReadString('\n')
		if err == nil && !strings.HasPrefix(line, "+PONG") {
			err = errors.New(line)
		}
		return err
	})
	return r
}
