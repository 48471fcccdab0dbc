package redirect

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
)

// nft is the backend over netlink, without another program.
type nft struct{}

func (nft) name() Backend { return NFTables }

// usable says why nftables cannot be used here. It is asked without CAP_NET_ADMIN too.
func (nft) usable() error {
	conn, err := nftables.New()
	if err == nil {
		_, err = conn.ListTablesOfFamily(nftables.TableFamilyINet)
	}
	return nftError(err)
}

// errMissing wraps what the kernel lacks, where another backend may do.
type errMissing struct{ what string }

func (e *errMissing) Error() string { return e.what }

// errNoAdmin is said by every backend.
var errNoAdmin = errors.New("changing the rules of the network needs CAP_NET_ADMIN: run it as root, or in a container with NET_ADMIN (the sidecar itself needs none)")

// nftError says what to do about what netlink answered.
func nftError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EPERM):
		return errNoAdmin
	case errors.Is(err, syscall.EPROTONOSUPPORT), errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EAFNOSUPPORT),
		errors.Is(err, syscall.EINVAL) && !errors.Is(err, errBatch):
		return &errMissing{"this kernel has no nftables (CONFIG_NF_TABLES_INET; modprobe nf_tables)"}
	case errors.Is(err, syscall.ENOENT) && errors.Is(err, errBatch):
		return &errMissing{"this kernel's nftables lacks an expression that the rules need: " +
			"modprobe nft_redir nft_nat nft_fib_inet nft_socket nft_tproxy nft_ct"}
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("nftables: %w: something refers to our table; see nft list ruleset", err)
	}
	return fmt.Errorf("nftables: %w", err)
}

// errBatch is in errors of a transaction, where the kernel's numbers mean something else than in questions.
var errBatch = errors.New("the kernel took back the whole transaction")

func flush(conn *nftables.Conn) error {
	if err := conn.Flush(); err != nil {
		return nftError(fmt.Errorf("%w: %w", errBatch, err))
	}
	return nil
}

// nftTable is one of ours, or one that has our name.
type nftTable struct {
	table  *nftables.Table
	rules  map[string]int // how many, by chain
	config Config
	ours   bool
}

// tables reads the tables that have names of ours.
func (nft) tables() (out []nftTable, err error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, nftError(err)
	}
	defer conn.CloseLasting()
	all, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, nftError(err)
	}
	for _, t := range all {
		if t.Name != "sallyport" && !strings.HasPrefix(t.Name, "sallyport-") {
			continue
		}
		read, err := readTable(conn, t)
		if err != nil {
			return nil, err
		}
		out = append(out, read)
	}
	return out, nil
}

func readTable(conn *nftables.Conn, t *nftables.Table) (nftTable, error) {
	out := nftTable{table: t, rules: map[string]int{}}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return out, nftError(err)
	}
	for _, c := range chains {
		if c.Table.Name != t.Name {
			continue
		}
		rules, err := conn.GetRules(t, c)
		if err != nil {
			return out, nftError(err)
		}
		out.rules[c.Name] = len(rules)
		if c.Name != ownerChain {
			continue
		}
		var comments []string
		for _, r := range rules {
			if s, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok {
				comments = append(comments, s)
			}
		}
		out.config, out.ours = readOwner(comments)
		out.ours = out.ours && tableName(out.config.Name) == t.Name
	}
	return out, nil
}

// find returns the table of a name, and nil where there is none. It refuses one that is not ours.
func (n nft) find(name string) (*nftTable, error) {
	tables, err := n.tables()
	if err != nil {
		return nil, err
	}
	for i := range tables {
		if t := &tables[i]; t.table.Name == tableName(name) {
			if !t.ours {
				return nil, &errNotOurs{"the nftables table inet " + t.table.Name}
			}
			return t, nil
		}
	}
	return nil, nil
}

// apply replaces the table in one transaction: packets meet the old rules or the new ones, never none.
func (n nft) apply(r *Ruleset, cgroups map[string]cgroup) error {
	if _, err := n.find(r.Config.Name); err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return nftError(err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName(r.Config.Name)}
	conn.AddTable(t) // so that there is something to delete
	conn.DelTable(t)
	conn.AddTable(t)
	chains := make([]*nftables.Chain, len(r.Chains))
	for i := range r.Chains { // all of them before the first jump
		chains[i] = conn.AddChain(nftChain(t, &r.Chains[i]))
	}
	for i := range r.Chains {
		for j := range r.Chains[i].Rules {
			rule := &r.Chains[i].Rules[j]
			e := nftRule{conn: conn, table: t}
			exprs := e.exprs(rule, cgroups)
			if e.err != nil {
				return fmt.Errorf("nftables: rule %q: %w", rule.nft(), e.err)
			}
			conn.AddRule(&nftables.Rule{Table: t, Chain: chains[i], Exprs: exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, rule.Why)})
		}
	}
	return flush(conn)
}

var hooks = map[string]*nftables.ChainHook{
	"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput, "output": nftables.ChainHookOutput,
}

func nftChain(t *nftables.Table, c *Chain) *nftables.Chain {
	out := &nftables.Chain{Table: t, Name: c.Name}
	if h := c.Hook; h != nil {
		accept := nftables.ChainPolicyAccept
		out.Type, out.Policy = nftables.ChainType(h.Kind), &accept
		out.Hooknum = hooks[h.At]
		out.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(h.Priority))
	}
	return out
}

func (n nft) cleanup(name string) (found bool, err error) {
	t, err := n.find(name)
	if t == nil || err != nil {
		return false, err
	}
	conn, err := nftables.New()
	if err != nil {
		return true, nftError(err)
	}
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: t.table.Name})
	return true, flush(conn)
}

func (n nft) inForce() (out []Status, err error) {
	tables, err := n.tables()
	if err != nil {
		return nil, err
	}
	for i := range tables {
		t := &tables[i]
		s := Status{Backend: NFTables, Config: t.config, Place: "table inet " + t.table.Name}
		if !t.ours {
			s.Foreign = true
			out = append(out, s)
			continue
		}
		s.Changed = t.changed()
		out = append(out, s)
	}
	return out, nil
}

// changed says where the kernel's rules are not those that the configuration makes.
func (t *nftTable) changed() string {
	plan, err := Plan(t.config)
	if err != nil {
		return "made by another version of sallyport"
	}
	for i := range plan.Chains {
		c := &plan.Chains[i]
		if n, ok := t.rules[c.Name]; !ok || n != len(c.Rules) {
			return fmt.Sprintf("chain %s has %d rules in place of %d", c.Name, n, len(c.Rules))
		}
	}
	if len(t.rules) != len(plan.Chains) {
		return fmt.Sprintf("%d chains in place of %d", len(t.rules), len(plan.Chains))
	}
	return ""
}
