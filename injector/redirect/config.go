package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Mode is how inbound connections come to the sidecar.
type Mode string

// The modes. TProxy leaves the destination as it was, and needs CAP_NET_ADMIN in the sidecar too.
const (
	Redirect Mode = "redirect"
	TProxy   Mode = "tproxy"
	Off      Mode = "off"
)

// Backend is what the rules are put into the kernel with.
type Backend string

// The backends. Auto is nftables, and iptables where the kernel has no nftables.
const (
	Auto           Backend = "auto"
	NFTables       Backend = "nftables"
	IPTablesNFT    Backend = "iptables-nft"
	IPTablesLegacy Backend = "iptables-legacy"
)

// The numbers that operators know from other meshes.
const (
	DefaultOutboundPort = 15001
	DefaultInboundPort  = 15006
	DefaultDNSPort      = 15053
	DefaultHealthPort   = 15021
	DefaultSidecarUID   = 1337
)

// Marks and tables of our own. They differ from the mark of a sidecar's packets (1337), which must never be routed to
// the loopback interface.
const (
	// routeMark is on packets that TPROXY took, and on replies to a client whose address the sidecar has borrowed:
	// they are routed to this host whatever their destination says. As a connection's mark it means the latter.
	routeMark = 1338
	// takenMark is on connections whose first packet TPROXY took: those after it need no other decision.
	takenMark = 1339
	// routeTable and rulePriority are those of the policy routing.
	routeTable   = 1338
	rulePriority = 1338
)

// maxList bounds each list of a Config, maxText the text form of the whole.
const (
	maxList = 256
	maxText = 4096
)

// Config says what is redirected, and whose traffic is not. Its zero value is refused by Validate: at least one
// direction must be on, and the sidecar must be told from the application.
type Config struct {
	// Name tells several rule sets of one namespace apart, and goes with Cgroup; "" is that of the whole namespace.
	Name string
	// Cgroup is the process tree whose outbound traffic is redirected: a folder below the cgroup2 mount, or its path
	// as in /proc/PID/cgroup. "": every process of the namespace.
	Cgroup string

	OutboundPort uint16 // where outbound TCP goes to; 0: outbound connections are left alone
	InboundPort  uint16 // where inbound TCP goes to; it is left alone itself, the mesh comes in by it
	InboundMode  Mode   // "" is off
	DNSPort      uint16 // where port 53 goes to, UDP and TCP; 0: DNS is left alone
	DNSTo        DNSTo  // of which servers; "" is all of them
	HealthPort   uint16 // the sidecar's own health page, left alone like InboundPort; 0: none

	// Sidecar is whose packets pass untouched. Without it they would be redirected to itself for ever.
	Sidecar Identity

	IncludeOutboundPorts, ExcludeOutboundPorts []PortRange    // of the destination; no includes: all
	IncludeInboundPorts, ExcludeInboundPorts   []PortRange    // of the destination; no includes: all
	IncludeOutboundCIDRs, ExcludeOutboundCIDRs []netip.Prefix // of the destination; no includes: all
	IncludeUIDs, ExcludeUIDs                   []uint32       // of the process that sends; no includes: all
	IncludeInterfaces, ExcludeInterfaces       []string       // outgoing and incoming; no includes: all

	Backend Backend // "" is Auto
}

// DNSTo says which questions are the sidecar's.
type DNSTo string

// DNSAuto is DNSLocal where a whole namespace is redirected whose /etc/resolv.conf names only resolvers of this host:
// systemd-resolved, dnsmasq, Docker's at 127.0.0.11. Such a resolver asks its servers as any program does; were that
// redirected too, the sidecar would get its own questions back. Elsewhere it is DNSAll.
const (
	DNSAll   DNSTo = "all"   // to any server
	DNSLocal DNSTo = "local" // to addresses of this host
	DNSAuto  DNSTo = "auto"
)

// Identity is how the sidecar is told from the application. A packet that meets any of it is the sidecar's.
type Identity struct {
	UIDs, GIDs []uint32
	Mark       uint32 // 0: none
	Cgroup     string // like Config.Cgroup
}

func (i *Identity) empty() bool {
	return len(i.UIDs) == 0 && len(i.GIDs) == 0 && i.Mark == 0 && i.Cgroup == ""
}

// Validate says what is wrong with the configuration, by the names of the command's flags. Lists are put in order and
// ranges that touch are joined.
func (c *Config) Validate() error {
	if c.InboundMode == "" {
		c.InboundMode = Off
	}
	if c.Backend == "" {
		c.Backend = Auto
	}
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	c.checkPorts(add)
	if c.Name != "" {
		if err := checkName(c.Name); err != nil {
			add("--name %q: %w", c.Name, err)
		}
	}
	if (c.Name == "") != (c.Cgroup == "") {
		add("--cgroup and --name go together: one process tree, and the name of its rules; without both the whole namespace is redirected")
	}
	for flag, path := range map[string]string{"--cgroup": c.Cgroup, "--sidecar-cgroup": c.Sidecar.Cgroup} {
		if path != "" {
			if err := checkCgroup(path); err != nil {
				add("%s %q: %w", flag, path, err)
			}
		}
	}
	if c.Cgroup != "" && c.Cgroup == c.Sidecar.Cgroup {
		add("--sidecar-cgroup is the same as --cgroup: nothing would be redirected; give the sidecar a cgroup of its own")
	}
	if c.Sidecar.empty() && (c.OutboundPort != 0 || c.DNSPort != 0) {
		add("nothing tells the sidecar from the application: give --sidecar-uid, --sidecar-gid, --sidecar-mark or --sidecar-cgroup")
	}
	if c.Sidecar.Mark == routeMark || c.Sidecar.Mark == takenMark {
		add("--sidecar-mark %d: %d and %d are used for TPROXY; take another, such as 1337", c.Sidecar.Mark, routeMark, takenMark)
	}
	if c.Cgroup != "" && c.InboundMode != Off && len(c.IncludeInboundPorts) == 0 {
		add("--cgroup needs --include-inbound-ports: which ports of this namespace are the service's (or --inbound-mode off)")
	}
	for _, uid := range c.Sidecar.UIDs {
		if slices.Contains(c.IncludeUIDs, uid) {
			add("--include-uids %d: that is the sidecar's own", uid)
		}
	}
	c.checkLists(add)
	if len(errs) == 0 {
		if n := len(c.String()); n > maxText {
			add("the configuration is %d bytes long as text, at most %d are kept: give ranges in place of single ports and addresses", n, maxText)
		}
	}
	return errors.Join(errs...)
}

func (c *Config) checkPorts(add func(string, ...any)) {
	switch c.InboundMode {
	case Redirect, TProxy:
		if c.InboundPort == 0 {
			add("--inbound-port 0: must be 1 to 65535 (--inbound-mode off leaves inbound connections alone)")
		}
	case Off:
		if c.OutboundPort == 0 && c.DNSPort == 0 {
			add("nothing is to be redirected: give --outbound-port, --dns-port, or --inbound-mode redirect or tproxy")
		}
	default:
		add("--inbound-mode %q: must be redirect, tproxy or off", c.InboundMode)
	}
	switch c.DNSTo {
	case "", DNSAll, DNSLocal, DNSAuto:
	default:
		add("--dns-to %q: must be auto, all or local", c.DNSTo)
	}
	switch c.Backend {
	case Auto, NFTables, IPTablesNFT, IPTablesLegacy:
	default:
		add("--backend %q: must be auto, nftables, iptables-nft or iptables-legacy", c.Backend)
	}
	given := map[uint16]string{}
	for _, p := range []struct {
		flag string
		port uint16
	}{{"--outbound-port", c.OutboundPort}, {"--inbound-port", c.InboundPort}, {"--dns-port", c.DNSPort}, {"--health-port", c.HealthPort}} {
		if p.port == 0 {
			continue
		}
		if other, ok := given[p.port]; ok {
			add("%s and %s are both %d: they must differ", other, p.flag, p.port)
		}
		given[p.port] = p.flag
	}
}

func (c *Config) checkLists(add func(string, ...any)) {
	for _, l := range []struct {
		flag string
		of   *[]PortRange
	}{{"include-outbound-ports", &c.IncludeOutboundPorts}, {"exclude-outbound-ports", &c.ExcludeOutboundPorts},
		{"include-inbound-ports", &c.IncludeInboundPorts}, {"exclude-inbound-ports", &c.ExcludeInboundPorts}} {
		for _, r := range *l.of {
			if r.From > r.To {
				add("--%s %s: the end is before the start", l.flag, r)
			}
		}
		*l.of = joinPorts(*l.of)
		tooLong(add, l.flag, len(*l.of))
	}
	for _, l := range []struct {
		flag string
		of   *[]netip.Prefix
	}{{"include-outbound-cidrs", &c.IncludeOutboundCIDRs}, {"exclude-outbound-cidrs", &c.ExcludeOutboundCIDRs}} {
		for _, p := range *l.of {
			if !p.IsValid() || p.Addr().Is4In6() {
				add("--%s %s: not a network such as 10.0.0.0/8 or fd00::/8", l.flag, p)
			}
		}
		*l.of = joinPrefixes(*l.of)
		tooLong(add, l.flag, len(*l.of))
	}
	for _, l := range []struct {
		flag string
		of   *[]uint32
	}{{"include-uids", &c.IncludeUIDs}, {"exclude-uids", &c.ExcludeUIDs}, {"sidecar-uid", &c.Sidecar.UIDs}, {"sidecar-gid", &c.Sidecar.GIDs}} {
		*l.of = inOrder(*l.of)
		tooLong(add, l.flag, len(*l.of))
	}
	for _, l := range []struct {
		flag string
		of   *[]string
	}{{"include-interfaces", &c.IncludeInterfaces}, {"exclude-interfaces", &c.ExcludeInterfaces}} {
		*l.of = inOrder(*l.of)
		for _, name := range *l.of {
			if err := checkInterface(name); err != nil {
				add("--%s %q: %w", l.flag, name, err)
			}
		}
		tooLong(add, l.flag, len(*l.of))
	}
}

func tooLong(add func(string, ...any), flag string, n int) {
	if n > maxList {
		add("--%s: %d entries, at most %d are taken", flag, n, maxList)
	}
}

var (
	errName      = errors.New("must be 1 to 48 letters, digits, '-', '_' or '.', and begin with a letter or digit")
	errInterface = errors.New("not the name of an interface: 1 to 15 letters, digits, '-', '_', '.', ':' or '@'")
	errCgroup    = errors.New("not a cgroup: give a folder below the cgroup2 mount, or a path as in /proc/PID/cgroup")
	errRoot      = errors.New("that is the root, and holds every process: leave it out to redirect the whole namespace")
)

// checkName keeps to what nftables takes as part of an identifier.
func checkName(name string) error {
	for i, r := range name {
		if !letter(r) && (i == 0 || !strings.ContainsRune("-_.", r)) {
			return errName
		}
	}
	if len(name) > 48 {
		return errName
	}
	return nil
}

// checkInterface is narrower than the kernel, which takes everything but '/' and white space: names go into text.
func checkInterface(name string) error {
	for _, r := range name {
		if !letter(r) && !strings.ContainsRune("-_.:@", r) {
			return errInterface
		}
	}
	if name == "" || len(name) > 15 || strings.HasPrefix(name, "-") { // IFNAMSIZ is 16 with its zero
		return errInterface
	}
	return nil
}

func checkCgroup(path string) error {
	if len(path) > 1024 || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f || r == '"' }) ||
		slices.Contains(strings.Split(path, "/"), "..") {
		return errCgroup
	}
	if strings.Trim(path, "/") == "" {
		return errRoot
	}
	return nil
}

func letter(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}
