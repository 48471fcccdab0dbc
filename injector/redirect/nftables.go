package redirect

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
)

// nft is the backend over netlink, without another program.
type nft struct{}

func (nft) name() Backend { return NFTables }

// usable says why nftables cannot be used here. It is asked without CAP_NET_ADMIN too.
func (nft) usable() error {
	conn, err := connect()
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
	case errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.EMSGSIZE):
		return errors.New("nftables: the rules are too many for the socket's buffers: raise net.core.rmem_max and net.core.wmem_max, or give shorter lists")
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
	table *nftables.Table
	rules map[string]int // how many, by chain
	sets  map[string]int // how many elements, by name
	owner owner
	ours  bool
}

// tables reads the tables that have names of ours.
func (nft) tables() (out []nftTable, err error) {
	conn, err := connect(nftables.AsLasting())
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
	out := nftTable{table: t, rules: map[string]int{}, sets: map[string]int{}}
	sets, err := conn.GetSets(t)
	if err != nil {
		return out, nftError(err)
	}
	for _, s := range sets {
		if s.Anonymous {
			continue
		}
		elements, err := conn.GetSetElements(s)
		if err != nil {
			return out, nftError(err)
		}
		out.sets[s.Name] = len(elements)
	}
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
		out.owner, out.ours = readOwner(comments)
		out.ours = out.ours && tableName(out.owner.config.Name) == t.Name
	}
	return out, nil
}

// find returns the rule set of a name.
func (n nft) find(name string) (*Status, error) {
	t, err := n.named(name)
	if t == nil || err != nil {
		return nil, err
	}
	s := t.status()
	return &s, nil
}

// named returns the table of a name, and nil where there is none. It refuses one that is not ours.
func (n nft) named(name string) (*nftTable, error) {
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
	if _, err := n.named(r.Config.Name); err != nil {
		return err
	}
	r = r.noted(cgroupIDs(&r.Config, cgroups)...)
	conn, err := connect()
	if err != nil {
		return nftError(err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName(r.Config.Name)}
	conn.AddTable(t) // so that there is something to delete
	conn.DelTable(t)
	conn.AddTable(t)
	for _, s := range r.sets() {
		set := &nftables.Set{Table: t, Name: s.name, KeyType: s.kind, KeyByteOrder: binaryutil.NativeEndian}
		if err := conn.AddSet(set, s.keys); err != nil {
			return fmt.Errorf("nftables: set %s: %w", s.name, err)
		}
	}
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
	if err := conn.Flush(); err != nil && !(errors.Is(err, syscall.ENOBUFS) && n.took(r)) {
		return nftError(fmt.Errorf("%w: %w", errBatch, err))
	}
	return nil
}

// took says whether the kernel has the ruleset. Where it cannot say so itself (ENOBUFS: its answers, one for each part of
// the transaction, do not fit into the socket) it has either put all of it in force or nothing.
func (n nft) took(r *Ruleset) bool {
	t, err := n.named(r.Config.Name)
	return err == nil && t != nil && t.changed() == "" && t.owner.config.String() == r.Config.String()
}

// connect opens the socket, with room for the kernel's answers to a long transaction. Where it may not be had, took helps.
func connect(options ...nftables.ConnOption) (*nftables.Conn, error) {
	const room = 4 << 20
	return nftables.New(append(options, nftables.WithSockOptions(func(c *netlink.Conn) error {
		_, _ = c.SetReadBuffer(room), c.SetWriteBuffer(room)
		return nil
	}))...)
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

// cleanup removes the tables of some names in one transaction.
func (n nft) cleanup(names ...string) error {
	conn, err := connect()
	if err != nil {
		return nftError(err)
	}
	for _, name := range names {
		t, err := n.named(name)
		if err != nil {
			return err
		}
		if t != nil {
			conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: t.table.Name})
		}
	}
	return flush(conn)
}

func (n nft) inForce() (out []Status, err error) {
	tables, err := n.tables()
	for i := range tables {
		out = append(out, tables[i].status())
	}
	return out, err
}

func (t *nftTable) status() Status {
	s := Status{Backend: NFTables, Place: "table inet " + t.table.Name, Foreign: !t.ours}
	if t.ours {
		s.Config, s.Changed = t.owner.config, t.changed()
	}
	return s
}

// changed says where the kernel's rules are not those that the configuration makes.
func (t *nftTable) changed() string {
	if why := t.owner.changed(); why != "" {
		return why
	}
	plan, err := Plan(t.owner.config)
	if err != nil {
		return err.Error()
	}
	for i := range plan.Chains {
		c := &plan.Chains[i]
		if c.Name == ownerChain {
			continue
		}
		if n, ok := t.rules[c.Name]; !ok || n != len(c.Rules) {
			return fmt.Sprintf("chain %s has %d rules in place of %d", c.Name, n, len(c.Rules))
		}
	}
	for _, s := range plan.sets() {
		if n := t.sets[s.name]; n != len(s.keys) {
			return fmt.Sprintf("set %s has %d entries in place of %d", s.name, n, len(s.keys))
		}
	}
	if len(t.rules) != len(plan.Chains) {
		return fmt.Sprintf("%d chains in place of %d", len(t.rules), len(plan.Chains))
	}
	return ""
}
