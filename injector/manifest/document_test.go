package manifest

import (
	"bytes"
	"strings"
	"testing"
)

// aPod is a manifest of one that is injected, in block style.
func aPod(name string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata:\n  name: " + name + "\nspec:\n  serviceAccountName: " + name +
		"\n  containers:\n  - name: app\n    image: " + name + "\n    ports: [{containerPort: 80}]\n"
}

// injected counts the pods of a file that have their sidecar, as a reader of YAML finds them.
func injected(t *testing.T, text []byte) (pods, others int) {
	t.Helper()
	docs, err := split("f.yaml", string(bytes.TrimPrefix(text, []byte(byteOrderMark))))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range docs {
		if err := d.parse(); err != nil {
			t.Fatal(err)
		}
		if d.root == nil {
			continue
		}
		m := find(d.root, "metadata")
		if m != nil && find(m, "annotations") != nil && find(find(m, "annotations"), AnnotationStatus) != nil {
			pods++
		} else {
			others++
		}
	}
	return pods, others
}

// TestDocuments: whatever parts documents, each of them comes out, and uninject gives the very file back.
func TestDocuments(t *testing.T) {
	a, b := aPod("a"), aPod("b")
	for name, c := range map[string]struct {
		in         string
		pods       int
		has, hasNo []string // in what comes out
	}{
		"three dashes": {a + "---\n" + b, 2, nil, nil},
		"three dots, then a document without dashes":        {a + "...\n" + b, 2, []string{"\n...\napiVersion"}, nil},
		"three dots, then three dashes":                     {a + "...\n---\n" + b, 2, []string{"\n...\n---\n"}, nil},
		"three dots with a comment":                         {a + "... # end\n# next\n" + b, 2, []string{"\n... # end\n# next\n"}, nil},
		"three dots at the end":                             {a + "---\n" + b + "...\n", 2, nil, nil},
		"three dots at the end, and no line feed":           {a + "---\n" + b + "...", 2, nil, nil},
		"no line feed at the end":                           {strings.TrimSuffix(a, "\n"), 1, nil, nil},
		"a comment at the dashes":                           {"--- # first\n" + a + "--- # second\n" + b, 2, nil, []string{"# first\n# first", "# second\n# second"}},
		"comments before the dashes":                        {"# one\n\n---\n# two\n" + a, 1, []string{"# one\n\n---\n# two\n"}, nil},
		"a tag at the dashes":                               {"--- !!map\n" + a, 1, []string{"---\n!!map\n"}, []string{"--- !!map"}},
		"a tag and a comment at the dashes":                 {a + "--- !!map # second\n" + b, 2, []string{"# second"}, []string{"--- !!map"}},
		"a byte order mark":                                 {"\ufeff" + a + "---\n" + b, 2, []string{"\ufeffapiVersion"}, nil},
		"a byte order mark before the dashes":               {"\ufeff---\n" + a, 1, []string{"\ufeff---\n"}, nil},
		"line feeds of Windows":                             {strings.ReplaceAll("---\n"+a+"...\n---\n"+b, "\n", "\r\n"), 2, nil, nil},
		"line feeds kept at the end of a text":              {a + "x: |+\n  text\n\n\n---\n" + b, 2, nil, nil},
		"nothing between dashes":                            {"---\n---\n" + a + "---\n", 1, nil, nil},
		"dashes within a text do not begin at the margin":   {a + "x: |\n  ---\n   ...\n", 1, nil, nil},
		"dashes that go on in the same word are no markers": {"---x: 1\n" + a, 1, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := File("f.yaml", []byte(c.in), options())
			if err != nil {
				t.Fatal(err)
			}
			if pods, others := injected(t, out); pods != c.pods || others != 0 {
				t.Errorf("%d pods with a sidecar and %d without:\n%s", pods, others, out)
			}
			for _, want := range c.has {
				if !bytes.Contains(out, []byte(want)) {
					t.Errorf("%q is not in\n%s", want, out)
				}
			}
			for _, no := range c.hasNo {
				if bytes.Contains(out, []byte(no)) {
					t.Errorf("%q is in\n%s", no, out)
				}
			}
			if back, err := FileBack("f.yaml", out); err != nil || string(back) != c.in {
				t.Errorf("taken out again: %v\n%q\nwant\n%q", err, back, c.in)
			}
		})
	}
}

func TestDocumentsThatAreRefused(t *testing.T) {
	a, b := aPod("a"), aPod("b")
	for in, want := range map[string]string{
		"%YAML 1.2\n---\n" + a:                                `f.yaml:1: the directive "%YAML 1.2" is not taken: remove the line`,
		"# c\n\n%TAG ! tag:example.org,2000:\n---\n" + a:      `f.yaml:3: the directive "%TAG`,
		a + "...\n# c\n%YAML 1.1\n---\n" + b:                  `f.yaml:13: the directive "%YAML 1.1"`,
		strings.ReplaceAll(a+"---\n"+b, "\n", "\r"):           "f.yaml:11: another document follows in this one: put a line --- before it",
		"---\n" + strings.ReplaceAll(a+"---\n"+b, "\n", "\r"): "f.yaml:12: another document follows",
		a + "---\u2028" + b:                                   "f.yaml:11: another document follows",
		"{\"apiVersion\": \"v1\", \"kind\": \"Pod\"}\n{}\n":   "another document follows in this one: put a line --- before it",
		a + "---\nx: \xff\n":                                  "f.yaml:12: not UTF-8",
		"\xff\xfea\x00:\x00 \x00b\x00":                        "f.yaml:1: not UTF-8",
		a + "---\n\ufeff" + b:                                 "f.yaml:12: not a Kubernetes object",
	} {
		out, _, err := File("f.yaml", []byte(in), options())
		if err == nil || !strings.Contains(err.Error(), want) || out != nil {
			t.Errorf("%q:\n%v, want %q\n%s", in, err, want, out)
		}
	}
}

func TestJoin(t *testing.T) {
	for _, c := range []struct {
		files []string
		want  string
	}{
		{nil, ""},
		{[]string{"a: 1"}, "a: 1"},
		{[]string{"a: 1\n", "b: 2\n"}, "a: 1\n---\nb: 2\n"},
		{[]string{"a: 1", "b: 2"}, "a: 1\n---\nb: 2"},
		{[]string{"a: 1", "---\nb: 2\n", "--- # c\nd: 3\n"}, "a: 1\n---\nb: 2\n--- # c\nd: 3\n"},
		{[]string{"---\na: 1\n...\n", "# c\nb: 2\n"}, "---\na: 1\n...\n---\n# c\nb: 2\n"},
		{[]string{"\ufeffa: 1\n", "\ufeffb: 2\n", "\ufeff---\nc: 3\n"}, "\ufeffa: 1\n---\nb: 2\n---\nc: 3\n"},
		{[]string{"a: 1\n", "---x: 2\n"}, "a: 1\n---\n---x: 2\n"},
	} {
		var files [][]byte
		for _, f := range c.files {
			files = append(files, []byte(f))
		}
		if got := Join(files...); string(got) != c.want {
			t.Errorf("%q: %q, want %q", c.files, got, c.want)
		}
	}
}

// TestJoinedAndTakenOut: files that were injected and became one are taken out again, and stay parted.
func TestJoinedAndTakenOut(t *testing.T) {
	a, b, c := strings.TrimSuffix(aPod("a"), "\n"), "--- # b\n"+aPod("b"), aPod("c")
	var files [][]byte
	for _, in := range []string{a, b, c} {
		out, _, err := File("f.yaml", []byte(in), options())
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, out)
	}
	back, err := FileBack("f.yaml", Join(files...))
	if want := a + "\n" + b + "---\n" + c; err != nil || string(back) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, back, want)
	}
}
