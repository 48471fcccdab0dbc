package redirect

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ownerComments is a Config cut into comments "sallyport 1/2: …".
func ownerComments(c *Config) (out []string) {
	const room = maxComment - len("sallyport 99/99: ") - 1
	text := c.String()
	n := (len(text) + room - 1) / room
	for i := range n {
		out = append(out, fmt.Sprintf("sallyport %d/%d: %s", i+1, n, protectSpaces(text[i*room:min((i+1)*room, len(text))])))
	}
	return out
}

// A comment that ends in a space could lose it on its way through iptables-save.
func protectSpaces(s string) string { return strings.ReplaceAll(s, " ", "|") }

// errNotOurs is why rules of our name are left alone.
type errNotOurs struct{ what string }

func (e *errNotOurs) Error() string {
	return e.what + " is not of sallyport's making (it lacks our comments): rename or remove it, or give another --name"
}

// owner is what the comments say.
type owner struct {
	config  Config
	unknown []string // what of the configuration this version does not know
	ids     string   // as in idsNote
	fresh   []string // as in freshNote
}

// Notes stand beside the configuration in the owner chain.
const (
	idsNote   = "sallyport ids: "
	freshNote = "sallyport fresh: "
)

// readOwner puts the comments together again. They come in the order in which they were written. Whoever numbers them
// as we do is us, of whatever version; the caller compares the name.
func readOwner(comments []string) (o owner, ok bool) {
	var text strings.Builder
	next, last := 1, 0
	for _, s := range comments {
		if ids, is := strings.CutPrefix(s, idsNote); is {
			o.ids = ids
		}
		if fresh, is := strings.CutPrefix(s, freshNote); is {
			o.fresh = strings.Split(fresh, ",")
		}
		rest, ours := strings.CutPrefix(s, "sallyport ")
		count, chunk, cut := strings.Cut(rest, ": ")
		i, n, slash := strings.Cut(count, "/")
		if !ours || !cut || !slash {
			continue
		}
		total, err := strconv.Atoi(n)
		if err != nil || i != strconv.Itoa(next) || next > total || last != 0 && total != last {
			return o, false
		}
		text.WriteString(strings.ReplaceAll(chunk, "|", " "))
		next, last = next+1, total
	}
	if last == 0 || next != last+1 {
		return o, false
	}
	o.config, o.unknown = parseKnown(text.String())
	return o, true
}

// changed says why the rules are not what the configuration says today, whatever they are; "" if nothing is known.
func (o *owner) changed() string {
	if len(o.unknown) > 0 {
		return "made by another version of sallyport: this one does not know " + strings.Join(o.unknown, ", ")
	}
	if _, err := Plan(o.config); err != nil {
		return "made by another version of sallyport"
	}
	return staleCgroup(&o.config, o.ids)
}

// noted is the ruleset with notes in its owner chain.
func (r *Ruleset) noted(notes ...string) *Ruleset {
	out := *r
	out.Chains = slices.Clone(r.Chains)
	c := out.chain(ownerChain)
	c.Rules = slices.Clone(c.Rules)
	for _, note := range notes {
		c.Rules = append(c.Rules, Rule{Why: note, Do: Verdict{Return: true}})
	}
	return &out
}
