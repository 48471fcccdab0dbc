package redirect

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// inNamespace gives the test's thread a network namespace of its own, with which it ends.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: needs root")
	}
	runtime.LockOSThread() // for ever: the thread ends with the goroutine of the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("NOT RUN: network namespaces may not be made here: ", err)
	}
}

// Between the look at a table and its removal somebody may have put a rule or a chain into it: it stays then.
func TestATableInUseIsNotDropped(t *testing.T) {
	inNamespace(t)
	conn, err := connect()
	if err != nil {
		t.Fatal(err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"}
	add := func(f func(output *nftables.Chain)) {
		t.Helper()
		conn.AddTable(table)
		output := conn.AddChain(&nftables.Chain{Table: table, Name: "OUTPUT", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
		f(output)
		if err := flush(conn); err != nil {
			t.Fatal(err)
		}
	}
	there := func() bool {
		all, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
		if err != nil {
			t.Fatal(err)
		}
		return hasTable(all, "nat")
	}
	for name, more := range map[string]func(*nftables.Chain){
		"a rule": func(c *nftables.Chain) {
			conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
		},
		"a chain": func(*nftables.Chain) { conn.AddChain(&nftables.Chain{Table: table, Name: "DOCKER"}) },
	} {
		add(more)
		if err := dropTable(table.Family, table.Name, []string{"OUTPUT"}); !errors.Is(err, syscall.EBUSY) || !there() {
			t.Errorf("with %s: %v, still there: %v", name, err, there())
		}
		conn.DelTable(table)
		if err := flush(conn); err != nil {
			t.Fatal(err)
		}
	}
	add(func(*nftables.Chain) {})
	if err := dropTable(table.Family, table.Name, []string{"OUTPUT"}); err != nil || there() {
		t.Errorf("empty: %v, still there: %v", err, there())
	}
}
