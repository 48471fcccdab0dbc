package active

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/sidecar/ads"
)

// tcp is a listener that waits for nothing.
func tcp(name, port string) string {
	return `{name: ` + name + `, address: {socket_address: {address: 127.0.0.1, port_value: ` + port + `}}, filter_chains: [{filters: [{name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: xds}}]}]}`
}

const noRoutes = `{name: r, virtual_hosts: []}`

var errTaken = errors.New("127.0.0.1:9000 is in use by another process")

// lacks checks what is missing, of a process that was never ready and of one that was.
func lacks(t *testing.T, s *State, never, once string) {
	t.Helper()
	for wasReady, want := range map[bool]string{false: never, true: once} {
		if got := s.Lacking(wasReady); got != want && (want == "" || !strings.Contains(got, want)) {
			t.Errorf("was ready %v: lacks %q, want %q", wasReady, got, want)
		}
	}
}

func TestAListenerThatWasAcceptedAndCannotBeOpenedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e, _ := start(t, Options{}, bootstrap)
		accept(t, s, response(t, ads.ClusterType, true))
		accept(t, s, response(t, ads.ListenerType, true, rds))
		lacks(t, s, "waiting for endpoints, routes or secrets of: listener in", "")
		e.bind = errTaken
		accept(t, s, response(t, ads.RouteType, true, noRoutes)) // the listener is warm now, and its response long accepted
		<-s.Ready()
		lacks(t, s, errTaken.Error(), errTaken.Error())
		if err := s.Unopened("in"); err != errTaken {
			t.Errorf("%v", err)
		}
		e.take()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := strings.Count(e.take(), "add listener in"); n < 5 || n > 15 {
			t.Errorf("its sockets were tried %d times in a minute", n)
		}
		e.mu.Lock()
		e.bind = nil
		e.mu.Unlock()
		time.Sleep(lastRebind)
		synctest.Wait()
		lacks(t, s, "", "")
		if f := s.Failures(); len(f) > 0 || s.Unopened("in") != nil {
			t.Errorf("it is open, and yet: %v", f)
		}
		e.take()
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := e.take(); got != "" {
			t.Errorf("it is open, and was tried again: %s", got)
		}
	})
}

func TestAListenerThatWasRefusedForItsSocketIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e, _ := start(t, Options{}, bootstrap)
		accept(t, s, response(t, ads.ClusterType, true))
		e.bind = errTaken
		if refused := s.Apply(response(t, ads.ListenerType, true, tcp("l", "9000"))); len(refused) != 1 {
			t.Fatal("the control plane was not told") // before anything is tried again
		}
		// A process that was ready goes on with what it has.
		lacks(t, s, errTaken.Error(), "")
		e.mu.Lock()
		e.bind = nil
		e.mu.Unlock()
		time.Sleep(lastRebind)
		synctest.Wait()
		lacks(t, s, "", "")
		e.take()
		accept(t, s, response(t, ads.ListenerType, true, tcp("l", "9000")))
		if got := e.take(); got != "" {
			t.Errorf("the same version was put in force twice: %s", got)
		}
	})
}

func TestAVersionThatCouldNotBeOpenedIsForgottenWithItsReason(t *testing.T) {
	for name, then := range map[string]func(t *testing.T) ads.Response{
		"the version in force comes again": func(t *testing.T) ads.Response { return response(t, ads.ListenerType, true, tcp("l", "1")) },
		"a third version comes":            func(t *testing.T) ads.Response { return response(t, ads.ListenerType, true, tcp("l", "3")) },
		"the listener is no longer sent":   func(t *testing.T) ads.Response { return response(t, ads.ListenerType, true) },
		"the listener is removed": func(*testing.T) ads.Response {
			return ads.Response{Type: ads.ListenerType, Removed: []string{"l"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, e, _ := start(t, Options{}, bootstrap)
				accept(t, s, response(t, ads.ClusterType, true))
				accept(t, s, response(t, ads.ListenerType, true, tcp("l", "1")))
				e.bind = errTaken
				s.Apply(response(t, ads.ListenerType, true, tcp("l", "2")))
				e.bind = nil
				accept(t, s, then(t))
				e.take()
				time.Sleep(time.Hour)
				synctest.Wait()
				if got := e.take(); got != "" {
					t.Errorf("a version that nobody wants was tried: %s", got)
				}
				lacks(t, s, "", "")
			})
		})
	}
}

func TestTheFirstConfigurationIsAcceptedOrLacks(t *testing.T) {
	s, _, _ := start(t, Options{}, bootstrap)
	lacks(t, s, "waiting for the first configuration", "")
	s.Apply(response(t, ads.ClusterType, true, eds, `{name: c, lb_subset_config: {}}`))
	lacks(t, s, `the first configuration was refused: cluster "c": lb_subset_config`, "")
	accept(t, s, response(t, ads.EndpointType, true, loadOne))
	accept(t, s, response(t, ads.ListenerType, true))
	lacks(t, s, `the first configuration was refused: cluster "c": lb_subset_config`, "")
	if s.Configured() {
		t.Error("clusters were never accepted")
	}
	accept(t, s, response(t, ads.ClusterType, true, eds)) // c is not sent any more
	lacks(t, s, "", "")
	if !s.Configured() {
		t.Error("everything was accepted")
	}
	// A later refusal of what has a good version takes nothing away.
	s.Apply(response(t, ads.ClusterType, true, `{name: orders, lb_subset_config: {}}`))
	lacks(t, s, "", "")
	// What cannot even be read has no name.
	s.Apply(ads.Response{Type: ads.ClusterType, Resources: []ads.Resource{{Body: nil}}})
	lacks(t, s, "the first configuration was refused", "")
	accept(t, s, response(t, ads.ClusterType, false, eds))
	lacks(t, s, "", "")
}

func TestSilenceIsNoConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := start(t, Options{}, bootstrap)
		<-s.Ready() // the patience is over
		if s.Lacking(false) != "" || s.Configured() {
			t.Error("a control plane that never answered has configured something")
		}
		synctest.Wait()
	})
}
