package manifest

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// originalComment begins the last line of what was injected. The digest of all that stands above it follows, and the text
// that was there before, packed. Where the digest is another, somebody has edited the document, maybe no more than a
// comment of it: then the sidecar is taken out of what it is now.
const originalComment = "# sallyport: for uninject: "

// withOriginal puts the line under a text, which ends in a line feed.
func withOriginal(text, original string) (string, error) {
	packed, err := pack(original)
	return text + originalComment + digest(text) + " " + packed + "\n", err
}

// original is the text that a document was before it was injected, if nobody has edited it since.
func (f *file) original(d *document) (string, bool) {
	rest, line := cutOriginal(d.body)
	sum, packed, _ := strings.Cut(line, " ")
	if sum != digest(rest) {
		return "", false
	}
	text, err := unpack(packed)
	if err != nil {
		return "", false
	}
	// What was injected may have been so in part already, by hands that had removed the line.
	was := &document{file: d.file, line: d.line, text: text, body: text}
	if was.parse() != nil || was.root == nil {
		return "", false
	}
	changed, _, err := f.apply(was)
	return text, !changed && err == nil
}

// cutOriginal parts a text from the line that withOriginal has put under it.
func cutOriginal(text string) (rest, line string) {
	at := strings.LastIndex("\n"+text, "\n"+originalComment)
	if at < 0 {
		return text, ""
	}
	line, after, _ := strings.Cut(text[at:], "\n")
	return text[:at] + after, strings.TrimSpace(strings.TrimPrefix(line, originalComment))
}

// digest is the same whatever a checkout has made of the ends of lines.
func digest(text string) string {
	sum := sha256.Sum256([]byte(strings.ReplaceAll(text, "\r\n", "\n")))
	return hex.EncodeToString(sum[:8])
}

// forget removes the line from the comments of a tree, and says whether there was one.
func forget(n *yaml.Node) (found bool) {
	for _, c := range []*string{&n.HeadComment, &n.LineComment, &n.FootComment} {
		if !strings.Contains(*c, originalComment) {
			continue
		}
		var kept []string
		for line := range strings.Lines(*c) {
			if strings.HasPrefix(line, originalComment) {
				found = true
			} else {
				kept = append(kept, line)
			}
		}
		*c = strings.TrimRight(strings.Join(kept, ""), "\n")
	}
	for _, child := range n.Content {
		found = forget(child) || found
	}
	return found
}

func pack(text string) (string, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(z, text); err != nil {
		return "", err
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(b.Bytes()), nil
}

func unpack(packed string) (string, error) {
	data, err := base64.StdEncoding.DecodeString(packed)
	if err != nil {
		return "", err
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(z, maxSize+1))
	if err == nil && len(text) > maxSize {
		err = errors.New("too large")
	}
	return string(text), err
}
