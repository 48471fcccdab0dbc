package catalog

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

const intentionsPath = "/v1/config/service-intentions"

// fakeACL is Consul 1.22 with ACLs that deny by default. What it does was looked up there: integration/acl_test.go asks the
// real one the same.
type fakeACL struct {
	hidden     map[string]bool // paths whose answers are empty
	agentToken bool            // the agent has a token for requests that have none
	stale      time.Duration   // since the leader was heard of
}

// answers writes the answer to a request that ACLs are about.
func (a *fakeACL) answers(w http.ResponseWriter, r *http.Request, streamed bool) bool {
	h := w.Header()
	h.Set("X-Consul-Default-Acl-Policy", "deny")
	if a.stale > 0 {
		h.Set("X-Consul-LastContact", fmt.Sprint(a.stale.Milliseconds()))
	}
	anonymous := r.Header.Get("X-Consul-Token") == "" && !a.agentToken
	switch path := r.URL.Path; {
	case path == "/v1/acl/token/self" && anonymous:
		http.Error(w, "token does not exist: ACL not found", http.StatusForbidden)
	case path == "/v1/acl/token/self":
		_ = json.NewEncoder(w).Encode(object{"AccessorID": "7cbd9072-cf8b-c09f-9ba8-a94158815e51"})
	case !a.hidden[path] && !(anonymous && path != "/v1/agent/self"):
		return false
	case path == "/v1/agent/self":
		http.Error(w, "Permission denied: token lacks permission 'agent:read' on \"test\"", http.StatusForbidden)
	default:
		// The mark is not shown to those without a token, and streams have none.
		if !anonymous && !streamed {
			h.Set("X-Consul-Results-Filtered-By-Acls", "true")
		}
		empty := "[]"
		if path == listPath {
			empty = "{}"
		}
		_, _ = w.Write([]byte(empty))
	}
	return true
}

// hide has ACLs keep paths from the token.
func hide(paths ...string) *fakeACL {
	a := &fakeACL{hidden: map[string]bool{}}
	for _, p := range paths {
		a.hidden[p] = true
	}
	return a
}

func withToken(o *ConsulOptions) { o.Token = "d00bfc8b-35f2-9520-e02e-000000000000" }

// denied is a catalog with a service, and a denial that must not be lost.
func denied(f *fakeConsul) {
	f.service("orders")
	f.answers[intentionsPath] = []object{{"Kind": "service-intentions", "Name": "orders", "Sources": []object{{"Name": "web", "Action": "deny", "Precedence": 9}}}}
}

// holds says that nothing of it was lost.
func holds(s *Snapshot) bool { return has("orders")(s) && len(s.Intentions) == 1 }

// explained waits until the status says why, and with which rule it would go.
func explained(t *testing.T, f *fakeConsul, c *Consul, path string, want ...string) {
	t.Helper()
	for n := 1; ; n++ {
		s := c.Status()
		missing := ""
		for _, w := range want {
			if !strings.Contains(s.Error, w) {
				missing = w
			}
		}
		if missing == "" {
			return
		}
		if n > 200 {
			t.Fatalf("the status is %q, want %q in it", s.Error, missing)
		}
		f.await(t, path, n)
	}
}

func TestAnAnswerThatACLsFilteredIsAFailedRead(t *testing.T) {
	service := "/v1/health/service/orders"
	for name, x := range map[string]struct {
		path string
		say  []string
	}{
		"the list of services":                        {listPath, []string{"services: the ACL token may not read all of it", `service_prefix "" { policy = "read" } and node_prefix "" { policy = "read" }`}},
		"instances, by a stream that does not say so": {service, []string{"service orders: the ACL token may not read all of it", `node_prefix "" { policy = "read" }`}},
		"intentions":       {intentionsPath, []string{"service-intentions: the ACL token may not read all of it", `service_prefix "" { policy = "read" intentions = "read" }`}},
		"service-defaults": {"/v1/config/service-defaults", []string{"service-defaults: the ACL token may not read all of it", `service_prefix "" { policy = "read" }`}},
		"proxy-defaults":   {"/v1/config/proxy-defaults", []string{"proxy-defaults: the ACL token may not read all of it", `operator = "read" or mesh = "read"`}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.set(func() { denied(f); f.acl = hide() })
			c, ch := f.source(t, withToken)
			until(t, ch, holds, nil)
			f.set(func() { f.acl = hide(x.path) })
			explained(t, f, c, x.path, x.say...)
			// What was read before is in force, also while other things change.
			f.set(func() { f.answers[listPath] = map[string][]string{"orders": {}, "payments": {}} })
			f.await(t, x.path, 3)
			f.set(func() { f.acl = hide(); f.service("payments") })
			until(t, ch, func(s *Snapshot) bool { return has("payments")(s) && holds(s) }, holds)
		})
	}
	t.Run("and at the start nothing is published", func(t *testing.T) {
		f := newFake(t)
		f.set(func() { denied(f); f.acl = hide(intentionsPath) })
		c, ch := f.source(t, withToken)
		explained(t, f, c, intentionsPath, "service-intentions: the ACL token may not read all of it")
		f.set(func() { f.acl = hide() })
		until(t, ch, holds, holds)
	})
}

// Who has no token is not told that an answer was filtered.
func TestAnswersWithoutATokenAreNotBelievedWhereACLsDeny(t *testing.T) {
	f := newFake(t)
	f.set(func() { denied(f); f.acl = hide() })
	c, ch := f.source(t)
	explained(t, f, c, listPath, "ACLs deny by default and there is no ACL token", "set CONSUL_HTTP_TOKEN")
	f.set(func() { f.acl.agentToken = true }) // acl.tokens.default of the agent
	until(t, ch, holds, holds)
	// It is taken away again.
	f.set(func() { f.acl.agentToken = false })
	explained(t, f, c, listPath, "ACLs deny by default and there is no ACL token")
	f.set(func() { f.acl.agentToken = true; f.service("payments") })
	until(t, ch, has("payments"), holds)
}

func TestWhatAppliesWithoutAnIntentionIsDenyWhereItCannotBeRead(t *testing.T) {
	f := newFake(t)
	f.set(func() { denied(f); f.acl = hide("/v1/agent/self") })
	c, ch := f.source(t, withToken)
	if s := receive(t, ch); s.DefaultIntention != Deny {
		t.Errorf("%q, want deny", s.DefaultIntention)
	}
	explained(t, f, c, "/v1/agent/self", "agent: answered 403", `the ACL token lacks: agent_prefix "" { policy = "read" }`)
}

func TestAnswersOfAServerThatHasLongNotHeardOfItsLeaderAreRefused(t *testing.T) {
	f := newFake(t)
	f.set(func() { denied(f); f.acl = hide() })
	c, ch := f.source(t, withToken)
	until(t, ch, holds, nil)
	f.set(func() { f.acl.stale = time.Hour; delete(f.answers, intentionsPath) })
	explained(t, f, c, intentionsPath, "the server has not heard of its leader")
	f.set(func() { f.acl.stale = 0; denied(f); f.service("payments") })
	until(t, ch, has("payments"), holds)
}

// A loss that a stream tells is asked for once more without the stream, and is then believed at once.
func TestLossesInAStreamAreConfirmedWithoutIt(t *testing.T) {
	f := newFake(t)
	f.set(func() { denied(f); f.acl = hide() })
	_, ch := f.source(t, withToken)
	until(t, ch, holds, nil)
	f.set(func() { f.answers["/v1/health/service/orders"] = []any{} })
	s := receive(t, ch)
	if n := len(s.Service(Name{DefaultNamespace, "orders"}).Instances); n != 0 || len(s.Intentions) != 1 {
		t.Errorf("%d instances after deregistration, %d intentions", n, len(s.Intentions))
	}
}
