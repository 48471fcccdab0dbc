// Package redirect makes the kernel hand an application's traffic to its sidecar: outbound TCP and DNS by REDIRECT,
// inbound TCP by REDIRECT or TPROXY, for a whole network namespace or for one process tree (a cgroup of version 2).
//
// It owns the nftables table "sallyport" (or "sallyport-NAME" of one cgroup), or the chains of that name where
// iptables is used instead, routing table 1338 with its rule, routes to the virtual addresses where the host has none, and
// a lock in /run/sallyport while it changes them. It owns nothing else and touches nothing else, but for what the kernel
// remembers of this host's own DNS questions (conntrack.go).
// Callers are the command "sallyport redirect" and package injector/run, on any goroutine; it acts on the network
// namespace of the calling thread, and needs CAP_NET_ADMIN in it.
//
// A Config is turned by Plan, a pure function, into a Ruleset; a backend puts that into the kernel as one transaction.
// The Config itself is kept in the kernel beside the rules, so that InForce can say what is in force without a file
// that a crash or a reboot would leave behind.
//
//   - config.go, fields.go, ranges.go: Config, its check, its text form (the flags of the command).
//   - plan.go: the rules themselves, in one place, top to bottom. rule.go: what a rule may say.
//   - nfttext.go, iptablestext.go: their printed forms (--dry-run, goldens).
//   - nftables.go, nftexpr.go: the backend over netlink. iptables.go: the one over iptables-restore.
//   - policyroute.go, virtualroute.go, conntrack.go, cgroup.go: what lies beside the rules.
//   - resolvers.go: whose DNS questions are redirected, where the host decides that. owner.go: the Config in the rules.
//   - apply.go: Apply, Cleanup, InForce. lock.go: one of us at a time.
package redirect
