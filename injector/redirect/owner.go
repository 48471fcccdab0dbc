package redirect

import (
	"fmt"
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

// readOwner puts the comments together again. They come in the order in which they were written.
func readOwner(comments []string) (c Config, ok bool) {
	var text strings.Builder
	next := 1
	for _, s := range comments {
		rest, ours := strings.CutPrefix(s, "sallyport ")
		count, chunk, cut := strings.Cut(rest, ": ")
		i, n, slash := strings.Cut(count, "/")
		if !ours || !cut || !slash {
			continue
		}
		if i != strconv.Itoa(next) || next > maxText {
			return c, false
		}
		text.WriteString(strings.ReplaceAll(chunk, "|", " "))
		if i == n {
			c, err := Parse(text.String())
			return c, err == nil
		}
		next++
	}
	return c, false
}
