package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sallyport/sidecar/logging"
)

// pages are the documents of the repository, as git knows them.
func pages(t *testing.T) (files []string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md").Output()
	if err != nil {
		t.Skipf("git cannot list the documents: %v", err) // a tree without its repository
	}
	for f := range strings.FieldsSeq(string(out)) {
		if _, err := os.Stat(f); err == nil { // not deleted since
			files = append(files, f)
		}
	}
	if len(files) < 10 {
		t.Fatalf("only %q were found", files)
	}
	return files
}

var (
	fence  = regexp.MustCompile("(?ms)^[ \t]*```[^\n]*\n(.*?)^[ \t]*```")
	inline = regexp.MustCompile("`([^`\n]+)`")
	call   = regexp.MustCompile(`(?:^|[\s/"'(])sallyport((?:[ \t]+[^\s|;&)]+)*)`)
	flag   = regexp.MustCompile(`^--?[a-z][a-z0-9-]*`)
	name   = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
)

// snippet is a piece of code in a document.
type snippet struct {
	text  string
	block bool // between fences; otherwise in a line of text
}

func snippets(text string) (out []snippet) {
	text = strings.ReplaceAll(text, "\\\n", " ")
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		for line := range strings.Lines(m[1]) {
			line, _, _ = strings.Cut(line, " #") // a comment behind a command
			out = append(out, snippet{line, true})
		}
	}
	for _, m := range inline.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		out = append(out, snippet{m[1], false})
	}
	return out
}

// find walks down the command line; rest is what is no command.
func find(c *cobra.Command, words []string) (*cobra.Command, []string) {
	for i, w := range words {
		next := func() *cobra.Command {
			for _, sub := range c.Commands() {
				if sub.Name() == w {
					return sub
				}
			}
			return nil
		}()
		if next == nil {
			return c, words[i:]
		}
		c = next
	}
	return c, nil
}

// knows says that a command has a flag, by its long or its short name.
func knows(c *cobra.Command, name string) bool {
	for _, fs := range []*pflag.FlagSet{c.Flags(), c.InheritedFlags()} {
		long := strings.TrimPrefix(name, "--")
		if fs.Lookup(long) != nil || len(name) == 2 && fs.ShorthandLookup(name[1:]) != nil {
			return true
		}
	}
	return name == "--help" || name == "-h"
}

func anyKnows(c *cobra.Command, name string) bool {
	if knows(c, name) {
		return true
	}
	for _, sub := range c.Commands() {
		if anyKnows(sub, name) {
			return true
		}
	}
	return false
}

// foreign are flags that documents name of docker compose.
var foreign = map[string]bool{"--no-deps": true, "--scale": true, "--abort-on-container-exit": true, "--abort-on-container-failure": true}

// TestDocumentsNameWhatThereIs: each command and flag that a document names exists.
func TestDocumentsNameWhatThereIs(t *testing.T) {
	r := root(logging.NewOutput(io.Discard))
	calls := 0
	for _, file := range pages(t) {
		text, err := os.ReadFile(filepath.FromSlash(file))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range snippets(string(text)) {
			for _, m := range call.FindAllStringSubmatch(s.text, -1) {
				words := strings.Fields(m[1])
				if len(words) == 0 || !name.MatchString(words[0]) {
					continue // the program as such, a folder, a container
				}
				calls++
				c, rest := find(r, words)
				if c == r {
					t.Errorf("%s: there is no command %q: %s", file, words[0], strings.TrimSpace(s.text))
					continue
				}
				if len(rest) > 0 && c.HasSubCommands() && name.MatchString(rest[0]) {
					t.Errorf("%s: %s has no command %q: %s", file, c.CommandPath(), rest[0], strings.TrimSpace(s.text))
				}
				for _, w := range rest {
					if w == "--" {
						break
					}
					if f := flag.FindString(w); f != "" && !knows(c, f) {
						t.Errorf("%s: %s has no flag %s: %s", file, c.CommandPath(), f, strings.TrimSpace(s.text))
					}
				}
			}
			// A flag by itself.
			if w, _, _ := strings.Cut(s.text, " "); !s.block && strings.HasPrefix(w, "--") {
				if f := flag.FindString(w); f != "" && !strings.HasSuffix(f, "-") && !foreign[f] && !anyKnows(r, f) {
					t.Errorf("%s: no command has a flag %s", file, f)
				}
			}
		}
	}
	if calls < 40 {
		t.Errorf("only %d calls of sallyport were found", calls)
	}
}
