package redirect

import (
	"fmt"
	"net/url"
	"os/user"
	"strconv"
	"strings"
)

// Field is one flag of "sallyport redirect apply". The same names and values are the text form of a Config that is
// kept in the kernel.
type Field struct {
	Name  string
	Usage string
	Value string // its placeholder in the usage: PORT, LIST, …
	set   func(*Config, string) error
	get   func(*Config) string // "" where it is not set
}

// Set sets the field of a Config from text.
func (f *Field) Set(c *Config, text string) error { return f.set(c, text) }

// Get is the text of the field, and empty where it is not set.
func (f *Field) Get(c *Config) string { return f.get(c) }

// Fields are all of them, in the order in which they are printed.
var Fields = []Field{
	text("name", "NAME", "name of the rules of one cgroup", func(c *Config) *string { return &c.Name }),
	text("cgroup", "PATH", "redirect only the process tree in this cgroup (version 2); needs --name", func(c *Config) *string { return &c.Cgroup }),
	number16("outbound-port", "where outbound TCP goes to; 0 leaves it alone", func(c *Config) *uint16 { return &c.OutboundPort }),
	number16("inbound-port", "where inbound TCP goes to, and the mesh comes in", func(c *Config) *uint16 { return &c.InboundPort }),
	text("inbound-mode", "MODE", "redirect, tproxy or off", func(c *Config) *string { return (*string)(&c.InboundMode) }),
	number16("dns-port", "where port 53 goes to, UDP and TCP; 0 leaves it alone", func(c *Config) *uint16 { return &c.DNSPort }),
	text("dns-to", "WHICH", "port 53 of which servers: all, local (resolvers of this host), or auto, which is local where it asks only such", func(c *Config) *string { return (*string)(&c.DNSTo) }),
	number16("health-port", "port of the sidecar's own health page, which is left alone; 0 for none", func(c *Config) *uint16 { return &c.HealthPort }),
	ids("sidecar-uid", "user of the sidecar, whose packets pass untouched; number or name, may be repeated", false,
		func(c *Config) *[]uint32 { return &c.Sidecar.UIDs }),
	ids("sidecar-gid", "group of the sidecar, likewise", true, func(c *Config) *[]uint32 { return &c.Sidecar.GIDs }),
	{Name: "sidecar-mark", Value: "MARK", Usage: "mark of the sidecar's packets, likewise; applications with CAP_NET_RAW can set it too", set: setMark, get: getMark},
	text("sidecar-cgroup", "PATH", "cgroup of the sidecar, likewise", func(c *Config) *string { return &c.Sidecar.Cgroup }),
	portList("include-outbound-ports", "redirect only these destination ports", func(c *Config) *[]PortRange { return &c.IncludeOutboundPorts }),
	portList("exclude-outbound-ports", "leave these destination ports alone", func(c *Config) *[]PortRange { return &c.ExcludeOutboundPorts }),
	portList("include-inbound-ports", "redirect only these ports of this host", func(c *Config) *[]PortRange { return &c.IncludeInboundPorts }),
	portList("exclude-inbound-ports", "leave these ports of this host alone", func(c *Config) *[]PortRange { return &c.ExcludeInboundPorts }),
	cidrList("include-outbound-cidrs", "redirect only these destinations"),
	cidrList("exclude-outbound-cidrs", "leave these destinations alone"),
	ids("include-uids", "redirect only what these users send", false, func(c *Config) *[]uint32 { return &c.IncludeUIDs }),
	ids("exclude-uids", "leave alone what these users send, DNS too", false, func(c *Config) *[]uint32 { return &c.ExcludeUIDs }),
	names("include-interfaces", "redirect only what passes these interfaces", func(c *Config) *[]string { return &c.IncludeInterfaces }),
	names("exclude-interfaces", "leave alone what passes these interfaces", func(c *Config) *[]string { return &c.ExcludeInterfaces }),
	text("backend", "NAME", "auto, nftables, iptables-nft or iptables-legacy", func(c *Config) *string { return (*string)(&c.Backend) }),
}

func text(name, value, usage string, of func(*Config) *string) Field {
	return Field{Name: name, Value: value, Usage: usage,
		set: func(c *Config, s string) error { *of(c) = s; return nil },
		get: func(c *Config) string { return *of(c) }}
}

func number16(name, usage string, of func(*Config) *uint16) Field {
	return Field{Name: name, Value: "PORT", Usage: usage,
		set: func(c *Config, s string) error {
			n, err := strconv.ParseUint(s, 10, 16)
			if err != nil {
				return fmt.Errorf("%q is not a port: give 0 to 65535", s)
			}
			*of(c) = uint16(n)
			return nil
		},
		get: func(c *Config) string {
			if *of(c) == 0 {
				return ""
			}
			return strconv.Itoa(int(*of(c)))
		}}
}

// ids appends, so that the flag may be repeated.
func ids(name, usage string, group bool, of func(*Config) *[]uint32) Field {
	return Field{Name: name, Value: "LIST", Usage: usage,
		set: func(c *Config, s string) error {
			for item := range items(s) {
				id, err := lookupID(item, group)
				if err != nil {
					return err
				}
				*of(c) = append(*of(c), id)
			}
			return nil
		},
		get: func(c *Config) string { return list(*of(c)) }}
}

func lookupID(s string, group bool) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), nil
	}
	id, kind := "", "user"
	if group {
		kind = "group"
		if g, err := user.LookupGroup(s); err == nil {
			id = g.Gid
		}
	} else if u, err := user.Lookup(s); err == nil {
		id = u.Uid
	}
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a %s of this host: give its name or number", s, kind)
	}
	return uint32(n), nil
}

func setMark(c *Config, s string) error {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is not a mark: give 1 to 4294967295, or 0x1 to 0xffffffff", s)
	}
	c.Sidecar.Mark = uint32(n)
	return nil
}

func getMark(c *Config) string {
	if c.Sidecar.Mark == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(c.Sidecar.Mark), 10)
}

func portList(name, usage string, of func(*Config) *[]PortRange) Field {
	return Field{Name: name, Value: "LIST", Usage: usage,
		set: func(c *Config, s string) error {
			ports, err := ParsePorts(s)
			*of(c) = append(*of(c), ports...)
			return err
		},
		get: func(c *Config) string { return list(*of(c)) }}
}

func cidrList(name, usage string) Field {
	return Field{Name: name, Value: "LIST", Usage: usage,
		set: func(c *Config, s string) error {
			nets, err := ParseCIDRs(s)
			if name == "include-outbound-cidrs" {
				c.IncludeOutboundCIDRs = append(c.IncludeOutboundCIDRs, nets...)
			} else {
				c.ExcludeOutboundCIDRs = append(c.ExcludeOutboundCIDRs, nets...)
			}
			return err
		},
		get: func(c *Config) string {
			if name == "include-outbound-cidrs" {
				return list(c.IncludeOutboundCIDRs)
			}
			return list(c.ExcludeOutboundCIDRs)
		}}
}

func names(name, usage string, of func(*Config) *[]string) Field {
	return Field{Name: name, Value: "LIST", Usage: usage,
		set: func(c *Config, s string) error {
			for item := range items(s) {
				*of(c) = append(*of(c), item)
			}
			return nil
		},
		get: func(c *Config) string { return strings.Join(*of(c), ",") }}
}

func list[T any](of []T) string {
	out := make([]string, len(of))
	for i, v := range of {
		out[i] = fmt.Sprint(v)
	}
	return strings.Join(out, ",")
}

// String is the configuration as the flags that it comes from, without their dashes; Parse reads it. It holds no quote,
// backslash or control character, so that it may stand in a comment of either backend and survives "nft list ruleset".
func (c *Config) String() string {
	var b strings.Builder
	for i := range Fields {
		v := Fields[i].get(c)
		if v == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(Fields[i].Name + "=" + escape(v))
	}
	return b.String()
}

// escape is the percent-encoding of RFC 3986 section 2.1, of all but what paths and lists are usually made of.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; letter(rune(c)) || strings.IndexByte("-_.:@/,+", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// Parse reads what String wrote.
func Parse(s string) (c Config, err error) {
	for word := range strings.FieldsSeq(s) {
		name, value, _ := strings.Cut(word, "=")
		if value, err = url.PathUnescape(value); err != nil {
			return c, fmt.Errorf("%s: %w", name, err)
		}
		f := field(name)
		if f == nil {
			return c, fmt.Errorf("%s is not known to this version", name)
		}
		if err := f.set(&c, value); err != nil {
			return c, fmt.Errorf("%s: %w", name, err)
		}
	}
	return c, nil
}

// parseKnown is Parse that leaves out what it cannot read, and names it.
func parseKnown(s string) (c Config, unknown []string) {
	for word := range strings.FieldsSeq(s) {
		name, value, _ := strings.Cut(word, "=")
		value, err := url.PathUnescape(value)
		f := field(name)
		if err != nil || f == nil || f.set(&c, value) != nil {
			unknown = append(unknown, name)
		}
	}
	return c, unknown
}

func field(name string) *Field {
	for i := range Fields {
		if Fields[i].Name == name {
			return &Fields[i]
		}
	}
	return nil
}
