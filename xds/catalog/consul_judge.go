package catalog

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/consul/api"
)

// Every answer of Consul is judged here before anything is taken from it. Consul says 200 also where it has left something
// out: what the ACL token may not read, or what a server without a leader does not know. Endpoints that are left out are
// only missing; a denial that is left out lets callers in. So such an answer is a failed read, and what was read last stays.

// ACL rules that the queries need (https://developer.hashicorp.com/consul/docs/security/acl/acl-rules).
const (
	needServices   = `service_prefix "" { policy = "read" } and node_prefix "" { policy = "read" }`
	needIntentions = `service_prefix "" { policy = "read" intentions = "read" }`
	needDefaults   = `service_prefix "" { policy = "read" }`
	needProxy      = `operator = "read" or mesh = "read"` // Consul 1.22 shows proxy-defaults to every token
	needAgent      = `agent_prefix "" { policy = "read" }`
)

// maxContact is how old what a server knows of its leader may be. Answers are old where discovery_max_stale allows it.
const maxContact = time.Minute

// anonymousToken is the accessor of the token that stands for requests without one.
const anonymousToken = "00000000-0000-0000-0000-000000000002"

var (
	errNoLeader  = errors.New("the cluster has no leader, the answer cannot be trusted")
	errStale     = errors.New("the server has not heard of its leader, the answer cannot be trusted")
	errFiltered  = errors.New("the ACL token may not read all of it, and consul left the rest out")
	errAnonymous = errors.New("ACLs deny by default and there is no ACL token: consul leaves out what anonymous requests may not read, " +
		"and does not say so; set CONSUL_HTTP_TOKEN")
	errStreamed = errors.New("the answer came from a stream, which does not say whether ACLs left something out")
	errUnnamed  = errors.New("it was not known whether the request had a token")
)

// judge says why an answer cannot be believed; nil: it is what Consul knows. named is what was known of the request's token
// when it was sent. lacks: the answer has not all that was held before.
func (c *Consul) judge(ctx context.Context, meta *api.QueryMeta, named, lacks bool) error {
	streamed := meta.QueryBackend == api.QueryBackendStreaming
	switch {
	// Without a leader a server answers from what it happens to have. Streamed answers never name a leader: their view has
	// none to name, and is told apart by its backend.
	case !streamed && !meta.KnownLeader:
		return errNoLeader
	case !streamed && meta.LastContact > maxContact:
		return fmt.Errorf("%w: for %s", errStale, meta.LastContact.Round(time.Second))
	case meta.ResultsFilteredByACLs:
		return errFiltered
	case streamed && lacks:
		return errStreamed
	}
	if c.hasToken || meta.DefaultACLPolicy != "deny" {
		return nil
	}
	// Consul says that it filtered an answer only to those who have a token; the agent may have one for us.
	if named && !lacks {
		return nil
	}
	err := c.identify(ctx)
	if err == nil && !named && c.named.Load() {
		return errUnnamed
	}
	return err
}

// identify finds out whether the requests have a token, of the agent's (acl.tokens.default), where we were given none.
func (c *Consul) identify(ctx context.Context) error {
	t, _, err := c.client.ACL().TokenReadSelf((&api.QueryOptions{}).WithContext(ctx))
	s, answered := errors.AsType[api.StatusError](err)
	switch {
	case err == nil && t.AccessorID != anonymousToken:
		c.named.Store(true)
		return nil
	case err == nil, answered && (s.Code == http.StatusForbidden || s.Code == http.StatusNotFound):
		c.named.Store(false)
		return errAnonymous
	case answered && s.Code == http.StatusUnauthorized: // "ACL support disabled"
		return nil
	}
	return err
}
