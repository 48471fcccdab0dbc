package redirect

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// backend puts rules into the kernel. All methods act on the network namespace of the calling thread.
type backend interface {
	name() Backend
	// usable is nil where the backend can be used; *errMissing where the host lacks it.
	usable() error
	// find returns what is in force under a name, nil if nothing is; *errNotOurs if that is somebody else's.
	find(name string) (*Status, error)
	// apply replaces what is in force under the name of the ruleset. Where it fails everything is as before.
	apply(r *Ruleset, cgroups map[string]cgroup) error
	// cleanup removes what is in force under some names.
	cleanup(names ...string) error
	inForce() ([]Status, error)
}

// backends are all of them, the best first.
var backends = []backend{nft{}, &iptables{variant: IPTablesNFT}, &iptables{variant: IPTablesLegacy}}

// Status is one rule set that is in force.
type Status struct {
	Backend Backend
	Place   string // the table or chains, for people
	Config  Config
	Changed string // how it differs from what Config makes; ""
	Foreign bool   // it has our name and is not ours; Config is empty
}

// Apply puts the rules of a configuration in force in place of those of the same name, whichever backend made them.
// Applying the same twice changes nothing. When it fails, the network is as it was.
func Apply(c Config) error {
	c.LookAround()
	r, err := Plan(c)
	if err != nil {
		return err
	}
	cgroups, err := cgroupsOf(&c)
	if err != nil {
		return err
	}
	defer lock(lockFolder)()
	b, err := choose(r.Config.Backend)
	if err != nil {
		return err
	}
	old, err := findAll(r.Config.Name)
	if err != nil {
		return err
	}
	if r.PolicyRoute {
		if err := addPolicyRoute(); err != nil {
			return errors.Join(err, dropUnusedRoutes())
		}
	}
	if r.Config.OutboundPort != 0 {
		if err := addVirtualRoutes(); err != nil {
			return errors.Join(err, dropUnusedRoutes())
		}
	}
	if err := b.apply(r, cgroups); err != nil {
		return errors.Join(wrongBackend(r, err), dropUnusedRoutes())
	}
	finish(r, b, old)
	return nil
}

// findAll is what the backends have under a name. It is asked before the first change: what cannot be replaced must not
// be found out in the middle.
func findAll(name string) (map[Backend]*Status, error) {
	out := map[Backend]*Status{}
	for _, b := range backends {
		s, err := b.find(name)
		if err != nil && !missing(err) {
			return nil, err
		}
		if s != nil {
			out[b.name()] = s
		}
	}
	return out, nil
}

// finish does what remains once new rules are in force. They stay so whatever happens here: a caller that was told of an
// error would take them for refused.
func finish(r *Ruleset, b backend, old map[Backend]*Status) {
	// Only now, so that there is no moment without rules. Until then what the first of the two decides stands.
	for _, other := range backends {
		if old[other.name()] == nil || other.name() == b.name() {
			continue
		}
		if err := other.cleanup(r.Config.Name); err != nil {
			slog.Warn("the new rules are in force, and the old ones of another backend cannot be removed", "new", b.name(), "old", other.name(),
				"error", err, "remove_by", "sallyport redirect cleanup, then apply again")
		}
	}
	if err := dropUnusedRoutes(); err != nil {
		slog.Warn("the rules are in force, and routes of earlier ones cannot be removed", "error", err)
	}
	if was := old[b.name()]; len(old) != 1 || was == nil || was.Changed != "" || was.Config.String() != r.Config.String() {
		forgetDNS()
	}
}

// wrongBackend adds what would help where the kernel has the backend but not all that the rules need.
func wrongBackend(r *Ruleset, err error) error {
	if missing(err) && r.Config.Backend == Auto {
		return fmt.Errorf("%w; or try --backend %s or %s", err, IPTablesLegacy, IPTablesNFT)
	}
	return err
}

func missing(err error) bool {
	var m *errMissing
	return errors.As(err, &m)
}

// choose returns the backend that was asked for, or the best that the host has.
func choose(want Backend) (backend, error) {
	var lacking []string
	for _, b := range backends {
		if want != Auto && want != b.name() {
			continue
		}
		err := b.usable()
		if err == nil {
			return b, nil
		}
		if !missing(err) {
			return nil, err
		}
		lacking = append(lacking, fmt.Sprintf("%s: %v", b.name(), err))
	}
	if want == Auto {
		return nil, fmt.Errorf("there is neither nftables nor iptables here: %s", strings.Join(lacking, "; "))
	}
	return nil, fmt.Errorf("--backend %s", lacking[0])
}

// Cleanup removes the rules of a name, and what a crash may have left beside them; nothing to remove is no error.
func Cleanup(name string) error {
	if name != "" {
		if err := checkName(name); err != nil {
			return fmt.Errorf("--name %q: %w", name, err)
		}
	}
	defer lock(lockFolder)()
	return cleanup(name)
}

// CleanupAll removes all of our rules.
func CleanupAll() error {
	defer lock(lockFolder)()
	return cleanupWhere(func(b backend) (names []string, err error) {
		all, err := b.inForce()
		for i := range all {
			if !all[i].Foreign {
				names = append(names, all[i].Config.Name)
			}
		}
		return names, err
	})
}

func cleanup(name string) error {
	return cleanupWhere(func(b backend) ([]string, error) {
		s, err := b.find(name)
		if s == nil {
			return nil, err
		}
		return []string{name}, err
	})
}

// cleanupWhere removes the rule sets that which finds, and what a crash may have left beside them.
func cleanupWhere(which func(backend) (names []string, err error)) error {
	var errs []error
	usable, changed := false, false
	for _, b := range backends {
		names, err := which(b)
		if missing(err) {
			continue
		}
		usable = true
		if errors.Is(err, errNoAdmin) {
			return err
		}
		if err == nil && len(names) > 0 {
			changed = true
			err = b.cleanup(names...)
		}
		errs = append(errs, err)
	}
	if !usable {
		return nil // without a backend there are no rules
	}
	errs = append(errs, dropUnusedRoutes())
	if changed {
		forgetDNS()
	}
	return errors.Join(errs...)
}

// dropUnusedRoutes removes the routes that no rule set in force needs.
func dropUnusedRoutes() error {
	all, err := inForce()
	if err != nil {
		return err
	}
	needed := func(by func(*Config) bool) bool {
		return slices.ContainsFunc(all, func(s Status) bool { return !s.Foreign && by(&s.Config) })
	}
	var errs []error
	if !needed(func(c *Config) bool { return c.InboundMode == TProxy }) {
		errs = append(errs, removePolicyRoute())
	}
	if !needed(func(c *Config) bool { return c.OutboundPort != 0 }) {
		errs = append(errs, removeVirtualRoutes())
	}
	return errors.Join(errs...)
}

// InForce says which rule sets are in force.
func InForce() ([]Status, error) { return inForce() }

func inForce() (out []Status, err error) {
	for _, b := range backends {
		s, err := b.inForce()
		if missing(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s...)
	}
	return out, nil
}

// cgroupsOf finds the cgroups that a configuration names.
func cgroupsOf(c *Config) (map[string]cgroup, error) {
	out := map[string]cgroup{}
	for flag, path := range map[string]string{"--cgroup": c.Cgroup, "--sidecar-cgroup": c.Sidecar.Cgroup} {
		if path == "" {
			continue
		}
		g, err := resolveCgroup(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		out[path] = g
	}
	return out, nil
}
