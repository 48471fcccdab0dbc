package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"sallyport/integration/harness"
)

// shop is a control plane with a catalog file, two instances of orders and a
// shop that calls them, each with its sidecar.
type shop struct {
	control *harness.ControlPlane
	caller  *harness.Proxy
	orders  []*harness.Proxy
	catalog string
}

func newShop(t *testing.T, args ...string) *shop {
	t.Helper()
	s := &shop{control: harness.NewControlPlane(t).Args("--status-listen", "-").Args(args...)}
	// The sidecars' addresses are known when they are built, and are in the
	// catalog before anything starts.
	var builders []*harness.ProxyBuilder
	var rows strings.Builder
	for i := range 2 {
		app := harness.NewBackend(t, fmt.Sprintf("orders-%d", i)).HTTP1()
		b := harness.NewSidecar(t).Service("orders", app.Port())
		builders = append(builders, b)
		fmt.Fprintf(&rows, "  - {id: orders-%d, address: 127.0.0.1, port: %d, sidecar: {port: %s}}\n", i, app.Port(), port(t, b.Address("mesh")))
	}
	s.catalog = "services:\n- name: shop\n  instances: []\n- name: orders\n  instances:\n" + rows.String()
	s.control.Catalog(s.catalog + "intentions: [{source: shop, destination: orders, action: allow}]\ndefaultIntention: deny\n").Run()
	for _, b := range builders {
		s.orders = append(s.orders, b.ControlPlane(s.control.Addr(), s.control.Token("--service", "orders")).Run())
	}
	s.caller = harness.NewSidecar(t).Service("shop", 1).ControlPlane(s.control.Addr(), s.control.Token("--service", "shop")).Upstream("orders").Run()
	return s
}

func port(t *testing.T, addr string) string {
	t.Helper()
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// url is where the shop's application reaches orders.
func (s *shop) url() string { return "http://" + s.caller.Addr("orders") + "/" }

func TestNobodyNoticesThatTheControlPlaneIsGone(t *testing.T) {
	s := newShop(t)
	load := harness.NewLoad(t, harness.HTTPCall(t, s.url(), false)).Rate(500).Life(60 * time.Second).Start()
	load.After(500)
	s.control.Kill()
	load.After(10_000) // twenty seconds without it
	s.control.Restart()
	load.After(500)
	// A change of after the restart arrives, so the proxies are connected again.
	s.control.Catalog(s.catalog + "intentions: [{source: shop, destination: orders, action: allow}, {source: ghost, destination: orders, action: deny}]\ndefaultIntention: deny\n")
	load.After(500)
	load.MustNotFail()
}

func TestNobodyNoticesThatSVIDsRotate(t *testing.T) {
	s := newShop(t, "--svid-ttl", "2s")
	load := harness.NewLoad(t, harness.HTTPCall(t, s.url(), false)).Rate(300).Life(60 * time.Second).Start()
	harness.Eventually(t, 50*time.Second, "twenty rotations", func() error {
		for _, p := range append([]*harness.Proxy{s.caller}, s.orders...) {
			if n := strings.Count(p.Log(), "identity renewed"); n < 20 {
				return fmt.Errorf("%d so far", n)
			}
		}
		return nil
	})
	load.MustNotFail()
}

func TestADenialIsInForceOnAnOpenConnection(t *testing.T) {
	s := newShop(t)
	open := harness.DialH2(t, s.caller.Addr("orders"), nil)
	status := func() int {
		m := open.Do(harness.H2Request{Method: "GET", Path: "/"})
		return m.Status()
	}
	if got := status(); got != 200 {
		t.Fatalf("before: %d", got)
	}
	s.control.Catalog(s.catalog + "intentions: [{source: shop, destination: orders, action: deny}]\ndefaultIntention: deny\n")
	harness.Eventually(t, time.Second, "denied on the open connection", func() error {
		if got := status(); got != 403 {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
	s.control.Catalog(s.catalog + "intentions: [{source: shop, destination: orders, action: allow}]\ndefaultIntention: deny\n")
	harness.Eventually(t, time.Second, "allowed again", func() error {
		if got := status(); got != 200 {
			return fmt.Errorf("%d", got)
		}
		return nil
	})
}

// TestAStreamOfACallerThatIsDeniedEnds soon, in the middle of its response; that of another caller, over the
// same sidecar, goes on to its end.
func TestAStreamOfACallerThatIsDeniedEnds(t *testing.T) {
	finish := make(chan struct{})
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun\n")
		w.(http.Flusher).Flush()
		select {
		case <-finish:
			io.WriteString(w, "whole")
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(app.Close)
	control := harness.NewControlPlane(t).Args("--status-listen", "-")
	orders := harness.NewSidecar(t).Service("orders", app.Listener.Addr().(*net.TCPAddr).Port)
	catalog := func(shop string) {
		control.Catalog(fmt.Sprintf("services:\n- {name: shop, instances: []}\n- {name: depot, instances: []}\n- name: orders\n  instances:\n"+
			"  - {id: orders, address: 127.0.0.1, port: %d, sidecar: {port: %s}}\nintentions: [{source: shop, destination: orders, action: %s}, "+
			"{source: depot, destination: orders, action: allow}]\ndefaultIntention: deny\n", app.Listener.Addr().(*net.TCPAddr).Port, port(t, orders.Address("mesh")), shop))
	}
	catalog("allow")
	control.Run()
	orders.ControlPlane(control.Addr(), control.Token("--service", "orders")).Run()
	ended := map[string]chan string{}
	for _, caller := range []string{"shop", "depot"} {
		p := harness.NewSidecar(t).Service(caller, 1).ControlPlane(control.Addr(), control.Token("--service", caller)).Upstream("orders").Run()
		resp, err := http.Get("http://" + p.Addr("orders") + "/")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		b := bufio.NewReader(resp.Body)
		if line, err := b.ReadString('\n'); line != "begun\n" {
			t.Fatalf("%s: %d %q, %v", caller, resp.StatusCode, line, err)
		}
		done := make(chan string, 1)
		ended[caller] = done
		go func() {
			rest, err := io.ReadAll(b)
			done <- fmt.Sprintf("%q, cut off: %v", rest, err != nil)
		}()
	}
	catalog("deny")
	select {
	case got := <-ended["shop"]:
		if got != `"", cut off: true` {
			t.Errorf("the shop got %s", got)
		}
	case <-time.After(3 * time.Second): // it is a tenth of that on a machine that has nothing else to do
		t.Error("three seconds after the denial the shop's stream is open")
	}
	close(finish)
	if got := <-ended["depot"]; got != `"whole", cut off: false` {
		t.Errorf("the depot got %s", got)
	}
}
