package redirect

import (
	"errors"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// iptables-nft makes tables "ip nat" and so on of nftables when it first uses them, and leaves them behind. So that a
// cleanup leaves the rule set exactly as it was, the owner chain notes which tables were not there before us.

// freshTables is the note: which tables a ruleset is about to bring, and what the rule sets that are there have noted, for
// any of them may be the last to go.
func (t *iptables) freshTables(r *Ruleset, all []saved) []string {
	if t.variant != IPTablesNFT {
		return nil
	}
	noted := notes(all)
	conn, err := connect()
	if err != nil {
		return nil
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		there, err := conn.ListTablesOfFamily(family)
		if err != nil {
			return nil
		}
		for _, name := range r.tables() {
			if !hasTable(there, name) {
				noted = append(noted, familyText(family)+"|"+name)
			}
		}
	}
	if len(noted) == 0 {
		return nil
	}
	return []string{freshNote + strings.Join(inOrder(noted), ",")}
}

func hasTable(tables []*nftables.Table, name string) bool {
	for _, t := range tables {
		if t.Name == name {
			return true
		}
	}
	return false
}

func familyText(f nftables.TableFamily) string {
	if f == unix.NFPROTO_IPV6 {
		return "ip6"
	}
	return "ip"
}

// notes are those of all rule sets of ours.
func notes(all []saved) (out []string) {
	for _, o := range owners(all) {
		out = append(out, o.fresh...)
	}
	return inOrder(out)
}

// removeFresh removes noted tables in which there are no rules, no chains but the built-in ones, and no sets.
func removeFresh(noted []string) error {
	if len(noted) == 0 {
		return nil
	}
	conn, err := connect()
	if err != nil {
		return nftError(err)
	}
	for _, note := range noted {
		text, name, _ := strings.Cut(note, "|")
		family := nftables.TableFamilyIPv4
		if text == "ip6" {
			family = nftables.TableFamilyIPv6
		}
		there, err := conn.ListTablesOfFamily(family)
		if err != nil {
			return nftError(err)
		}
		if !hasTable(there, name) {
			continue
		}
		chains, empty, err := emptyTable(conn, &nftables.Table{Family: family, Name: name})
		if err != nil {
			return err
		}
		if !empty {
			continue
		}
		if err := dropTable(family, name, chains); err != nil && !errors.Is(err, syscall.EBUSY) {
			return nftError(err)
		}
	}
	return nil
}

// dropTable removes a table with its chains, in one transaction which fails (EBUSY) where somebody has put something
// into them since: with NLM_F_NONREC, which the library does not know, nothing goes together with what it holds.
func dropTable(family nftables.TableFamily, table string, chains []string) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	const nonRecursive = 0x100
	batch := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request}, Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	remove := func(kind netlink.HeaderType, names ...netlink.Attribute) (netlink.Message, error) {
		data, err := netlink.MarshalAttributes(names)
		return netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | kind, Flags: netlink.Request | netlink.Acknowledge | nonRecursive},
			Data:   append([]byte{byte(family), unix.NFNETLINK_V0, 0, 0}, data...),
		}, err
	}
	all := []netlink.Message{batch(unix.NFNL_MSG_BATCH_BEGIN)}
	for _, chain := range chains {
		m, err := remove(unix.NFT_MSG_DELCHAIN, netlink.Attribute{Type: unix.NFTA_CHAIN_TABLE, Data: append([]byte(table), 0)},
			netlink.Attribute{Type: unix.NFTA_CHAIN_NAME, Data: append([]byte(chain), 0)})
		if err != nil {
			return err
		}
		all = append(all, m)
	}
	m, err := remove(unix.NFT_MSG_DELTABLE, netlink.Attribute{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(table), 0)})
	if err != nil {
		return err
	}
	if _, err := conn.SendMessages(append(all, m, batch(unix.NFNL_MSG_BATCH_END))); err != nil {
		return err
	}
	for range len(chains) + 1 {
		if _, err := conn.Receive(); err != nil {
			return err
		}
	}
	return nil
}

// emptyTable says whether there is nothing in a table but built-in chains, and which these are.
func emptyTable(conn *nftables.Conn, t *nftables.Table) (chains []string, empty bool, err error) {
	all, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, false, nftError(err)
	}
	for _, c := range all {
		if c.Table.Name != t.Name {
			continue
		}
		rules, err := conn.GetRules(t, c)
		if err != nil {
			return nil, false, nftError(err)
		}
		dropping := c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept
		if len(rules) > 0 || c.Hooknum == nil || dropping {
			return nil, false, nil
		}
		chains = append(chains, c.Name)
	}
	sets, err := conn.GetSets(t)
	return chains, len(sets) == 0 && err == nil, nftError(err)
}
