package redirect

import (
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// iptables-nft makes tables "ip nat" and so on of nftables when it first uses them, and leaves them behind. So that a
// cleanup leaves the rule set exactly as it was, the owner chain notes which tables were not there before us.

// freshTables is the note: what an earlier Apply has noted, or else which tables there are not.
func (t *iptables) freshTables(old []saved, prefix string) []string {
	if t.variant != IPTablesNFT {
		return nil
	}
	noted := noteOf(old, prefix)
	if len(old) > 0 && noted == nil {
		return nil
	}
	if noted == nil {
		conn, err := connect()
		if err != nil {
			return nil
		}
		for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
			there, err := conn.ListTablesOfFamily(family)
			if err != nil {
				return nil
			}
			for _, name := range iptablesTables {
				if !hasTable(there, name) {
					noted = append(noted, familyText(family)+"|"+name)
				}
			}
		}
	}
	if len(noted) == 0 {
		return nil
	}
	return []string{freshNote + strings.Join(noted, ",")}
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

// noteOf reads the note.
func noteOf(old []saved, prefix string) []string {
	for i := range old {
		if o, _ := readOwner(old[i].comments(prefix)); o.fresh != nil {
			return o.fresh
		}
	}
	return nil
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
		table := &nftables.Table{Family: family, Name: name}
		if empty, err := emptyTable(conn, table); err != nil || !empty {
			return err
		}
		conn.DelTable(table)
		if err := flush(conn); err != nil {
			return err
		}
	}
	return nil
}

func emptyTable(conn *nftables.Conn, t *nftables.Table) (bool, error) {
	chains, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return false, nftError(err)
	}
	for _, c := range chains {
		if c.Table.Name != t.Name {
			continue
		}
		rules, err := conn.GetRules(t, c)
		if err != nil {
			return false, nftError(err)
		}
		dropping := c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept
		if len(rules) > 0 || c.Hooknum == nil || dropping {
			return false, nil
		}
	}
	sets, err := conn.GetSets(t)
	return len(sets) == 0 && err == nil, nftError(err)
}
