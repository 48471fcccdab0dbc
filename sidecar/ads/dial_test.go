package ads

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"
)

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

// rotating gives another configuration each time it is asked.
type rotating struct {
	calls atomic.Int32
	fail  atomic.Bool
	cfg   *tls.Config
}

func (r *rotating) ClientConfig(string) (*tls.Config, error) {
	r.calls.Add(1)
	if r.fail.Load() {
		return nil, errors.New("our own certificate expired")
	}
	return r.cfg, nil
}

// silent is a control plane that answers nothing but that it is there.
type silent struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
}

func TestEachConnectionAsksForTheSecretsOfItsMoment(t *testing.T) {
	own := selfSigned(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAnyClientCert})))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, silent{})
	go s.Serve(l)
	defer s.Stop()
	src := &rotating{cfg: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{selfSigned(t)}}}
	// The first address is dead: the next one is tried.
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := dead.Addr().String()
	dead.Close()
	cc, err := Dial(Target{Addresses: []string{gone, l.Addr().String()}, TLS: src})
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	c := New(Options{Conn: cc, Sink: nobody{}})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	heard, err := c.session(ctx)
	if heard || err == nil || !strings.Contains(err.Error(), "Unimplemented") {
		t.Fatalf("did not get through to the server: %v", err)
	}
	if src.calls.Load() == 0 {
		t.Error("the secrets were not asked for")
	}
	src.fail.Store(true)
	bad, err := Dial(Target{Addresses: []string{l.Addr().String()}, TLS: src})
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	if _, err := New(Options{Conn: bad, Sink: nobody{}}).session(ctx); err == nil || !strings.Contains(err.Error(), "our own certificate expired") {
		t.Errorf("connected without a certificate: %v", err)
	}
}

func TestAUnixSocketIsAnAddress(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, silent{})
	go s.Serve(l)
	defer s.Stop()
	cc, err := Dial(Target{Addresses: []string{"unix:" + path}})
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	if _, err := New(Options{Conn: cc, Sink: nobody{}}).session(context.Background()); err == nil || !strings.Contains(err.Error(), "Unimplemented") {
		t.Errorf("%v", err)
	}
	if _, err := Dial(Target{}); err == nil {
		t.Error("no address is an address")
	}
}

type nobody struct{}

func (nobody) Apply(Response) []Refused          { return nil }
func (nobody) Versions(string) map[string]string { return nil }
func (nobody) Expire(string, string)             {}

func TestLeasesRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l leases
		now := time.Now()
		l.renew(ClusterType, "long", durationpb.New(10*time.Second), now)
		l.renew(ClusterType, "short", durationpb.New(2*time.Second), now)
		l.renew(ClusterType, "renewed", durationpb.New(2*time.Second), now)
		l.renew(ClusterType, "for ever", nil, now)
		time.Sleep(time.Second)
		l.renew(ClusterType, "renewed", durationpb.New(5*time.Second), time.Now())
		var gone []string
		for len(gone) < 3 {
			at := <-l.due()
			for _, k := range l.over(at) {
				gone = append(gone, k.name+" "+at.Sub(now).String())
			}
		}
		if got := strings.Join(gone, ", "); got != "short 2s, renewed 6s, long 10s" {
			t.Error(got)
		}
		l.renew(ClusterType, "x", durationpb.New(time.Second), time.Now())
		l.renew(ClusterType, "x", nil, time.Now())
		if got := l.over(<-l.due()); len(got) != 0 {
			t.Errorf("%v ran out, though its lease was lifted", got)
		}
	})
}
