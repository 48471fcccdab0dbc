package peercred

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

var td = spiffeid.RequireTrustDomainFromString("sallyport.local")

type health struct {
	grpc_health_v1.UnimplementedHealthServer
	seen chan Info
}

func (h *health) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	info, ok := FromContext(ctx)
	if ok {
		h.seen <- info
	}
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

func TestTheKernelTellsWhoCalls(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(path, 0o600, 8)
	if err != nil {
		t.Fatal(err)
	}
	h := &health{seen: make(chan Info, 1)}
	srv := grpc.NewServer(grpc.Creds(Credentials()))
	grpc_health_v1.RegisterHealthServer(srv, h)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	for name, creds := range map[string]grpc.DialOption{
		"plain client": grpc.WithTransportCredentials(insecure.NewCredentials()), "peercred client": grpc.WithTransportCredentials(Credentials()),
	} {
		conn, err := grpc.NewClient("unix://"+path, creds)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_ = conn.Close()
		got := <-h.seen
		if int(got.UID) != os.Getuid() || int(got.GID) != os.Getgid() || int(got.PID) != os.Getpid() {
			t.Errorf("%s: got %s", name, got)
		}
	}
	if _, ok := FromContext(t.Context()); ok {
		t.Error("a context without a call has a peer")
	}
}

func TestOnlyUnixSockets(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := Of(a); err == nil {
		t.Error("a pipe has credentials")
	}
	if _, _, err := Credentials().ServerHandshake(a); err == nil {
		t.Error("a pipe is attested")
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.sock")
	for _, mode := range []os.FileMode{0o777, 0o644, 0o700, 0} {
		if _, err := Listen(path, mode, 8); err == nil {
			t.Errorf("mode %#o taken", mode)
		}
	}
	for _, mode := range []os.FileMode{0o600, 0o660, 0o666} {
		l, err := Listen(path, mode, 8)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("mode %v, %v; want %#o", st.Mode(), err, mode)
		}
		if _, err := Listen(path, mode, 8); err == nil || !strings.Contains(err.Error(), "another process") {
			t.Errorf("served twice: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if names, _ := os.ReadDir(dir); len(names) != 0 {
			t.Errorf("close leaves %v", names)
		}
	}
	// What a killed process leaves behind.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	l, err := Listen(path, 0o600, 8)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	// A successor's socket stays when we close ours.
	_ = os.Remove(path)
	next, err := Listen(path, 0o600, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	_ = l.Close()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the successor's socket is gone: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, 0o600, 8); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
	if data, _ := os.ReadFile(file); string(data) != "precious" {
		t.Error("the file was harmed")
	}
}

func TestRules(t *testing.T) {
	id := func(ns, svc string) spiffeid.ID {
		return spiffeid.RequireFromSegments(td, "ns", ns, "svc", svc)
	}
	gw := func(ns, name string) spiffeid.ID {
		return spiffeid.RequireFromSegments(td, "ns", ns, "gw", name)
	}
	var rules Rules
	for _, s := range []string{"uid:1001=orders", "user:root=shop/payments", "gid:2000=orders, shop/carts", "group:root=admin", "uid:33=gateway:public,gateway:shop/inner"} {
		r, err := ParseRule(td, s)
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		rules = append(rules, r)
	}
	for _, tc := range []struct {
		uid, gid uint32
		want     []spiffeid.ID
	}{
		{1001, 1001, []spiffeid.ID{id("default", "orders")}},
		{0, 1, []spiffeid.ID{id("shop", "payments")}},
		{0, 0, []spiffeid.ID{id("shop", "payments"), id("default", "admin")}},
		{7, 2000, []spiffeid.ID{id("default", "orders"), id("shop", "carts")}},
		{33, 33, []spiffeid.ID{gw("default", "public"), gw("shop", "inner")}},
		{2000, 7, nil}, // a uid is no gid
		{7, 1001, nil},
		{4294967295, 7, nil},
	} {
		got := rules.Allowed(Info{UID: tc.uid, GID: tc.gid})
		if len(got) != len(tc.want) {
			t.Errorf("uid %d gid %d: %v, want %v", tc.uid, tc.gid, got, tc.want)
			continue
		}
		for i := range got {
			if got[i] != tc.want[i] || !rules.Allows(Info{UID: tc.uid, GID: tc.gid}, got[i]) {
				t.Errorf("uid %d gid %d: %v, want %v", tc.uid, tc.gid, got, tc.want)
			}
		}
		if rules.Allows(Info{UID: tc.uid, GID: tc.gid}, id("default", "other")) {
			t.Error("an ID that no rule names is allowed")
		}
	}
	if (Rules{}).Allows(Info{}, id("default", "orders")) {
		t.Error("no rules allow root")
	}
	for _, s := range []string{"", "uid", "uid:", "uid:1", "uid:1=", "uid=1=x", "pid:1=x", "uid:-1=x", "uid:4294967296=x", "uid:4294967295=x", "uid:1x=x",
		"user:no-such-user-here=x", "group:no-such-group-here=x", "uid:1=a/b/c", "uid:1=a,", "uid:1=/a", "uid:1=a/", "uid:1=gateway:", "uid:1=gateway:/a", "uid:1=gw:a"} {
		if r, err := ParseRule(td, s); err == nil || !strings.Contains(err.Error(), strconv.Quote(s)) {
			t.Errorf("ParseRule(%q) = %+v, %v", s, r, err)
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(path, 0o600, 1)
	if err != nil {
		t.Fatal(err)
	}
	dial := func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	dial()
	dial()
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Of(first); err != nil {
		t.Error(err)
	}
	if n := len(l.(*listener).slots); n != cap(l.(*listener).slots) {
		t.Errorf("%d of %d slots taken", n, cap(l.(*listener).slots))
	}
	second := make(chan error, 1)
	go func() {
		c, err := l.Accept() // waits for the slot
		if err == nil {
			_ = c.Close()
		}
		second <- err
	}()
	_ = first.Close()
	_ = first.Close() // gives one slot back, not two
	if err := <-second; err != nil {
		t.Error(err)
	}
	if n := len(l.(*listener).slots); n != 0 {
		t.Errorf("%d slots taken at the end", n)
	}
	_ = l.Close()
	if _, err := l.Accept(); err == nil {
		t.Error("a closed listener accepts")
	}
}
