package peercred

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"sallyport/certs"
)

// Rule gives the SPIFFE IDs that processes of one user, or of one group, may have. Only the primary group counts: it
// is what SO_PEERCRED tells.
type Rule struct {
	Group bool   // Number is a gid
	Num   uint32 // uid or gid
	IDs   []spiffeid.ID
}

// Rules is a rule table. No rule matches by default.
type Rules []Rule

// Allowed returns every ID that the rules give to a process.
func (rs Rules) Allowed(who Info) []spiffeid.ID {
	var ids []spiffeid.ID
	for _, r := range rs {
		if (r.Group && r.Num == who.GID) || (!r.Group && r.Num == who.UID) {
			ids = append(ids, r.IDs...)
		}
	}
	return ids
}

// Allows reports whether the rules give id to a process.
func (rs Rules) Allows(who Info, id spiffeid.ID) bool {
	for _, have := range rs.Allowed(who) {
		if have == id {
			return true
		}
	}
	return false
}

// ParseRule reads a rule as a flag or a config line has it:
//
//	uid:1001=orders              user 1001 may be service orders of namespace default
//	user:payments=shop/payments  by name; service payments of namespace shop
//	gid:2000=orders,shop/carts   processes whose primary group is 2000 may be either
//	uid:33=gateway:shop/public   user 33 may be an edge of gateway public of namespace shop
func ParseRule(td spiffeid.TrustDomain, s string) (Rule, error) {
	who, services, ok := strings.Cut(s, "=")
	kind, name, ok2 := strings.Cut(who, ":")
	if !ok || !ok2 || name == "" || services == "" {
		return Rule{}, fmt.Errorf("socket rule %q: must be uid:NUMBER=[gateway:][NAMESPACE/]SERVICE[,…], with uid, gid, user or group", s)
	}
	var r Rule
	var err error
	switch kind {
	case "uid":
		r.Num, err = number(name)
	case "gid":
		r.Group = true
		r.Num, err = number(name)
	case "user":
		var u *user.User
		if u, err = user.Lookup(name); err == nil {
			r.Num, err = number(u.Uid)
		}
	case "group":
		r.Group = true
		var g *user.Group
		if g, err = user.LookupGroup(name); err == nil {
			r.Num, err = number(g.Gid)
		}
	default:
		err = fmt.Errorf("%q is not uid, gid, user or group", kind)
	}
	if err != nil {
		return Rule{}, fmt.Errorf("socket rule %q: %w", s, err)
	}
	for svc := range strings.SplitSeq(services, ",") {
		name, isGateway := strings.CutPrefix(strings.TrimSpace(svc), "gateway:")
		namespace, service, ok := strings.Cut(name, "/")
		if !ok {
			namespace, service = "", namespace
		} else if namespace == "" {
			return Rule{}, fmt.Errorf("socket rule %q: service %q has an empty namespace", s, svc)
		}
		idOf := certs.ServiceID
		if isGateway {
			idOf = certs.GatewayID
		}
		id, err := idOf(td, namespace, service)
		if err != nil {
			return Rule{}, fmt.Errorf("socket rule %q: %w", s, err)
		}
		r.IDs = append(r.IDs, id)
	}
	return r, nil
}

func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number of 32 bits", s)
	}
	if n == 1<<32-1 {
		return 0, errors.New("4294967295 means nobody in the kernel") // (uid_t)-1
	}
	return uint32(n), nil
}
