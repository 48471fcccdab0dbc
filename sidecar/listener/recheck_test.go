package listener

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"sallyport/sidecar/message"
	"sallyport/sidecar/route"
	"sallyport/sidecar/stream"
)

// door is a filter that lets nobody named "mallory" in once it is shut, nor
// anybody whom the route's override names.
type door struct{ shut bool }

func (*door) Name() string { return "door" }

func (d *door) allows(c stream.Context, h *message.Head) bool {
	user := string(h.Lookup("x-user"))
	return (!d.shut || user != "mallory") && c.Override() != user
}

func (d *door) RequestHead(c stream.Context, h *message.Head, _ bool) stream.Verdict {
	if d.allows(c, h) {
		return stream.Continue
	}
	return c.Stream.Reply(403, "", "shut", 0)
}

func (d *door) Recheck(c stream.Context, h *message.Head) (bool, string) {
	return d.allows(c, h), "shut"
}

func (d *door) chain(t *testing.T) *stream.Chain {
	t.Helper()
	c, err := stream.NewChain([]stream.Filter{d}, []route.FilterID{1})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// open begins a response that does not end, for a user; what came of it is sent when it ends.
func open(t *testing.T, client *http.Client, url, user string) <-chan error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-User", user)
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	b := bufio.NewReader(resp.Body)
	if line, err := b.ReadString('\n'); line != "begun\n" {
		t.Fatalf("%d %q, %v", resp.StatusCode, line, err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, b)
		ended <- err
	}()
	return ended
}

// TestWhatIsUnderWayEndsWhenItIsDenied: a denial holds for requests that are under way on open connections, those of
// others on the same connection stay.
func TestWhatIsUnderWayEndsWhenItIsDenied(t *testing.T) {
	for name, change := range map[string]func(e *engine){
		"by an update of the listener": func(e *engine) {
			next := *e.manager
			next.Filters = (&door{shut: true}).chain(e.t.(*testing.T))
			chain := *e.chain
			chain.HTTP = &next
			cfg := *e.cfg
			cfg.Chains = []*Chain{&chain}
			e.apply(&cfg)
		},
		"by other routes alone": func(e *engine) {
			f := &route.Forward{IdleTimeout: -1}
			table := e.table(f)
			f.Clusters[0].Overrides = []route.Override{{Filter: 1, Config: "mallory"}}
			e.manager.Routes.Publish(table)
			e.server.RoutesChanged()
		},
	} {
		for _, version := range []string{"HTTP/1.1", "HTTP/2"} {
			t.Run(name+", "+version, func(t *testing.T) {
				release := make(chan struct{})
				var begun atomic.Int32
				e := newEngine(t).to(backend(t, func(w http.ResponseWriter, r *http.Request) {
					fmt.Fprintln(w, "begun")
					_ = http.NewResponseController(w).Flush()
					begun.Add(1)
					select {
					case <-release:
					case <-r.Context().Done():
					}
				}))
				defer close(release)
				e.manager.Filters = (&door{}).chain(t)
				addr := e.serve()
				var p http.Protocols
				p.SetHTTP1(version == "HTTP/1.1")
				p.SetUnencryptedHTTP2(version == "HTTP/2")
				client := &http.Client{Transport: &http.Transport{Protocols: &p}}
				good, bad := open(t, client, "http://"+addr, "alice"), open(t, client, "http://"+addr, "mallory")
				change(e)
				select {
				case err := <-bad:
					if err == nil {
						t.Error("the denied response ended as if it were whole")
					}
				case <-time.After(10 * time.Second):
					t.Fatal("what was denied goes on")
				}
				select {
				case err := <-good:
					t.Errorf("another's request ended: %v", err)
				default:
				}
				if n := e.manager.Stats.Value(stream.StatRqRevoked); n != 1 {
					t.Errorf("counted %d times", n)
				}
				resp, err := client.Get("http://" + addr)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
			})
		}
	}
}

// TestManyRequestsAreAskedAboutInTurns: the worker goes on serving meanwhile.
func TestManyRequestsAreAskedAboutInTurns(t *testing.T) {
	s := newStepped(t)
	s.manager.Filters = (&door{}).chain(t)
	s.direct(200, nil)
	addr := s.serve()
	r := s.server.rechecks[0]
	const connections = 3 * recheckPerTurn
	for range connections {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	l := s.server.active["l"].locals[0]
	s.until("all are there", func() bool { return len(l.open) == connections })
	for _, k := range l.open {
		r.add(k)
		r.add(k) // twice is once
	}
	if len(r.left) != connections {
		t.Fatalf("%d are to be asked about", len(r.left))
	}
	for turns := 1; len(r.left) > 0; turns++ {
		left := len(r.left)
		s.worker.Step(0)
		if done := left - len(r.left); done > recheckPerTurn {
			t.Fatalf("%d in one turn", done)
		}
		if turns > 10 {
			t.Fatal("it does not end")
		}
	}
	if r.queued || l.open[0].rechecking {
		t.Error("it is not over")
	}
}
