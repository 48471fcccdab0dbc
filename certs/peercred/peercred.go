// Package peercred attests the process at the other end of a Unix socket by what the kernel says of it (SO_PEERCRED)
// and maps it to SPIFFE IDs. It owns the gRPC transport credentials for such sockets and the making of the sockets.
// issuer and workload serve through it. Everything here runs on gRPC's goroutines.
package peercred

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Info is who connected, as the kernel recorded it at connect(2). The process may have exited since, so PID is for
// logs only: it is never a ground for trust.
type Info struct {
	credentials.CommonAuthInfo
	UID, GID uint32
	PID      int32
}

// AuthType implements credentials.AuthInfo.
func (Info) AuthType() string { return "peercred" }

func (i Info) String() string { return fmt.Sprintf("uid=%d gid=%d pid=%d", i.UID, i.GID, i.PID) }

// FromContext returns who made the gRPC call, if it came over a socket served with Credentials.
func FromContext(ctx context.Context) (Info, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Info{}, false
	}
	info, ok := p.AuthInfo.(Info)
	return info, ok
}

// Of asks the kernel who is at the other end of conn, which must be a Unix socket.
func Of(conn net.Conn) (Info, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok || conn.LocalAddr().Network() != "unix" {
		return Info{}, fmt.Errorf("peer credentials: %T is not a Unix socket", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Info{}, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Info{}, fmt.Errorf("peer credentials: %w", err)
	}
	if credErr != nil {
		return Info{}, fmt.Errorf("peer credentials: %w", credErr)
	}
	return Info{
		// The bytes stay in this kernel, so nobody else reads or changes them.
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		UID:            cred.Uid, GID: cred.Gid, PID: cred.Pid,
	}, nil
}

type transport struct{}

// Credentials returns gRPC transport credentials for a server on a Unix socket: no handshake, the peer as AuthInfo.
func Credentials() credentials.TransportCredentials { return transport{} }

func (transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info, err := Of(conn)
	if err != nil {
		return nil, nil, err
	}
	return conn, info, nil
}

// ClientHandshake makes the same check from the other side, so that a client may know who serves.
func (transport) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info, err := Of(conn)
	if err != nil {
		return nil, nil, err
	}
	return conn, info, nil
}

func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}
func (transport) Clone() credentials.TransportCredentials { return transport{} }
func (transport) OverrideServerName(string) error         { return nil }

// Listen makes the Unix socket path with permissions mode: 0600, 0660, or 0666 where rules attest every caller. A socket
// left behind by a dead process is replaced, one that a living process serves is an error. At most maxConns connections
// are open at a time; more wait in the kernel. The socket's file goes away when the listener is closed.
func Listen(path string, mode os.FileMode, maxConns int) (net.Listener, error) {
	if m := mode.Perm(); m != 0o600 && m != 0o660 && m != 0o666 {
		return nil, fmt.Errorf("socket %s: mode %#o, must be 0600, 0660 or 0666", path, mode.Perm())
	}
	if err := clearStale(path); err != nil {
		return nil, err
	}
	// Bound under another name and renamed when its mode is right: between bind(2) and chmod(2) anybody could connect.
	tmp := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d", filepath.Base(path), os.Getpid()))
	_ = os.Remove(tmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // it would remove tmp
	if err = os.Chmod(tmp, mode.Perm()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(tmp)
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	st, err := os.Lstat(path)
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return &listener{UnixListener: l, path: path, file: st, slots: make(chan struct{}, maxConns), closed: make(chan struct{})}, nil
}

func clearStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("socket %s: there is a file that is not a socket: remove it or use another path", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("socket %s: another process serves it: stop that one or use another path", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	return nil // rename(2) replaces it
}

type listener struct {
	*net.UnixListener
	path   string
	file   os.FileInfo
	slots  chan struct{} // one in it per open connection
	once   sync.Once
	closed chan struct{}
}

// Accept waits for a free slot first, so that a process that opens connections in a loop takes memory in the kernel's
// backlog and not here.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.AcceptUnix()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &conn{UnixConn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close removes the socket's file, unless another process has put its own there since.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	if st, err := os.Lstat(l.path); err == nil && os.SameFile(st, l.file) {
		_ = os.Remove(l.path)
	}
	return l.UnixListener.Close()
}

// conn gives its slot back when it is closed; it is still a *net.UnixConn to Of.
type conn struct {
	*net.UnixConn
	release func()
}

func (c *conn) Close() error {
	defer c.release()
	return c.UnixConn.Close()
}
