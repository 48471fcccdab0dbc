package catalog

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
)

// Intentions are read as config entries, and not from /v1/connect/intentions: only the entry has the JWT that all of its
// sources must bring. They are decoded strictly: a condition that this program does not know and left out would turn an
// allowance under conditions into one without. What is not understood becomes a denial.

// intentionEntry is a config entry "service-intentions": who may call one destination.
type intentionEntry struct {
	Name, Namespace, Partition string
	Sources                    []json.RawMessage
	JWT                        json.RawMessage
}

// intentionSource is one source in it. The fields at the end are known not to matter.
type intentionSource struct {
	Name, Namespace, Partition, Peer, SamenessGroup string
	Action                                          api.IntentionAction
	Permissions                                     []json.RawMessage
	Precedence                                      int
	Type                                            api.IntentionSourceType

	Description, LegacyID, LegacyMeta, LegacyCreateTime, LegacyUpdateTime json.RawMessage
}

func (c *Consul) askIntentions(o *api.QueryOptions) (*api.QueryMeta, answer, error) {
	var list []intentionEntry
	meta, err := c.client.Raw().Query("/v1/config/"+api.ServiceIntentions, &list, o)
	var keys []string
	for _, e := range list {
		for _, raw := range e.Sources {
			var s intentionSource
			_ = json.Unmarshal(raw, &s)
			keys = append(keys, strings.Join([]string{e.Namespace, e.Name, s.Namespace, s.Name, s.Peer, s.Partition}, "\x00"))
		}
	}
	return meta, answer{keys, func() { c.intents, c.loaded[queryIntentions] = c.intentions(list), true }}, err
}

// intentions translates Consul's. Those of other partitions and of peers concern no service of this catalog.
func (c *Consul) intentions(list []intentionEntry) (out []Intention) {
	for i := range list {
		e := &list[i]
		if !isLocal(e.Partition) {
			continue
		}
		for _, raw := range e.Sources {
			if in, ok := c.intention(e, raw); ok {
				out = append(out, in)
			}
		}
	}
	return out
}

func isLocal(partition string) bool { return partition == "" || partition == "default" }

func isSet(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

func strictly(raw json.RawMessage, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

func (c *Consul) intention(e *intentionEntry, raw json.RawMessage) (Intention, bool) {
	var s intentionSource
	err := strictly(raw, &s)
	if err != nil {
		_ = json.Unmarshal(raw, &s) // for the names
	}
	if s.Peer != "" || !isLocal(s.Partition) || s.Name == "" && s.SamenessGroup == "" {
		return Intention{}, false
	}
	in := Intention{Source: nameOf(s.Namespace, s.Name), Destination: nameOf(e.Namespace, e.Name), Action: Deny, Precedence: s.Precedence}
	if in.Precedence == 0 {
		in.Precedence = precedence(in.Source, in.Destination)
	}
	denied := func(why string) (Intention, bool) {
		c.complain("intention not understood, it denies", "source", in.Source.String(), "destination", in.Destination.String(), "reason", why)
		in.Action, in.Permissions = Deny, nil
		return in, true
	}
	switch {
	case s.SamenessGroup != "":
		in.Source = Name{Wildcard, Wildcard}
		if s.Name != "" && s.Name != Wildcard {
			in.Source = nameOf(s.Namespace, s.Name)
		}
		if s.Action == api.IntentionActionDeny {
			return in, true
		}
		return denied("sameness groups are not supported")
	case err != nil:
		return denied(err.Error())
	case s.Type != "" && s.Type != api.IntentionSourceConsul:
		return denied("sources of type " + string(s.Type) + " are not supported")
	case isSet(e.JWT) && (s.Action == api.IntentionActionAllow || len(s.Permissions) > 0):
		return denied("it requires a JWT, which intentions cannot here; attach a JWT policy instead")
	}
	if len(s.Permissions) == 0 {
		switch s.Action {
		case api.IntentionActionAllow:
			in.Action = Allow
		case api.IntentionActionDeny:
		default:
			return denied("its action is " + string(s.Action))
		}
		return in, true
	}
	in.Action = ""
	for _, raw := range s.Permissions {
		p, why := permissionOf(raw)
		if why != "" {
			c.complain("permission of an intention not understood, it denies", "source", in.Source.String(),
				"destination", in.Destination.String(), "reason", why)
		}
		in.Permissions = append(in.Permissions, p)
	}
	return in, true
}

// nameOf is a name in an intention. Outside Consul Enterprise there are no namespaces, so that it is meant for every one;
// package build says what that means for callers.
func nameOf(namespace, name string) Name {
	if namespace == "" || namespace == DefaultNamespace {
		return Name{Wildcard, name}
	}
	return Name{namespace, name}
}

// permissionOf translates a permission, and says why it denies more than it says.
func permissionOf(raw json.RawMessage) (o Permission, why string) {
	all := Permission{Action: Deny} // of every request: where a condition is not known, any may be meant
	var p api.IntentionPermission
	if err := strictly(raw, &p); err != nil {
		return all, err.Error()
	}
	switch p.Action {
	case api.IntentionActionAllow:
		o.Action = Allow
	case api.IntentionActionDeny:
		o.Action = Deny
	default:
		return all, "its action is " + string(p.Action)
	}
	if h := p.HTTP; h != nil {
		if why := httpOf(h, &o); why != "" {
			return all, why
		}
	}
	if p.JWT != nil {
		o.Action = Deny
		return o, "it requires a JWT, which intentions cannot here; attach a JWT policy instead"
	}
	return o, ""
}

func httpOf(h *api.IntentionHTTPPermission, o *Permission) (why string) {
	paths := 0
	for _, m := range []Match{{Exact, h.PathExact}, {Prefix, h.PathPrefix}, {Regex, h.PathRegex}} {
		if m.Value == "" {
			continue
		}
		paths++
		o.Path = m
	}
	if paths > 1 {
		return "it has more than one path"
	}
	if !isRegex(o.Path) {
		return "its path is not a regular expression: " + o.Path.Value
	}
	o.Methods = slices.Clone(h.Methods)
	for _, m := range h.Header {
		x := HeaderMatch{Name: strings.ToLower(m.Name), Invert: m.Invert, IgnoreCase: m.IgnoreCase}
		set := 0
		for _, k := range []Match{{Exact, m.Exact}, {Prefix, m.Prefix}, {Suffix, m.Suffix}, {Contains, m.Contains}, {Regex, m.Regex}} {
			if k.Value != "" {
				set++
				x.Match = k
			}
		}
		if m.Present {
			set++
			x.Match = Match{Kind: Present}
		}
		switch {
		case m.Name == "":
			return "a header has no name"
		case set != 1:
			return "it has no condition that is known, or several, on header " + m.Name
		case !isRegex(x.Match):
			return "the condition on header " + m.Name + " is not a regular expression: " + x.Match.Value
		}
		o.Headers = append(o.Headers, x)
	}
	return ""
}

// isRegex says that m compiles, if it must.
func isRegex(m Match) bool {
	if m.Kind != Regex {
		return true
	}
	_, err := regexp.Compile(m.Value)
	return err == nil
}
