package secret

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"sallyport/sidecar/config/fields"
)

// maxData bounds what one data source holds.
const maxData = 4 << 20

var (
	dataFields = fields.Of(&corev3.DataSource{}, "filename", "inline_bytes", "inline_string", "environment_variable", "watched_directory").Strict()

	certificateFields = fields.Of(&tlsv3.TlsCertificate{}, "certificate_chain", "private_key", "watched_directory", "ocsp_staple",
		"signed_certificate_timestamp").Strict()
)

// reader reads data sources and notes the files it met.
type reader struct {
	r     *fields.Report
	files []string
	dirs  []string // watched_directory: only a move in there says that the files are whole
	parts [][]byte
}

// read returns what d holds, nil where it holds nothing or cannot be read, which is reported.
func (x *reader) read(path string, d *corev3.DataSource) []byte {
	if d == nil {
		return nil
	}
	fields.Check(x.r, path, d, dataFields)
	x.directory(d.GetWatchedDirectory())
	var b []byte
	switch t := d.GetSpecifier().(type) {
	case *corev3.DataSource_Filename:
		x.files = append(x.files, t.Filename)
		var err error
		if b, err = readFile(t.Filename); err != nil {
			x.r.Errorf(fields.At(path, "filename"), "%v", err)
			return nil
		}
	case *corev3.DataSource_InlineBytes:
		b = t.InlineBytes
	case *corev3.DataSource_InlineString:
		b = []byte(t.InlineString)
	case *corev3.DataSource_EnvironmentVariable:
		v, ok := os.LookupEnv(t.EnvironmentVariable)
		if !ok {
			x.r.Errorf(fields.At(path, "environment_variable"), "%s is not set", t.EnvironmentVariable)
			return nil
		}
		b = []byte(v)
	}
	x.parts = append(x.parts, b)
	return b
}

func (x *reader) directory(d *corev3.WatchedDirectory) {
	if d != nil {
		x.dirs = append(x.dirs, d.GetPath())
	}
}

// readFile reads a file that is not expected to be large.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		var p *os.PathError
		if errors.As(err, &p) {
			err = p.Err
		}
		return nil, fmt.Errorf("%s cannot be opened: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxData+1))
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read", name)
	}
	if len(b) > maxData {
		return nil, fmt.Errorf("%s is larger than %d MiB", name, maxData>>20)
	}
	return b, nil
}

// loadCertificate reads a certificate with its key.
func (s *Store) loadCertificate(r *fields.Report, path string, m *tlsv3.TlsCertificate) *material {
	fields.Check(r, path, m, certificateFields)
	n := r.Count()
	read := func(r *fields.Report) (*material, *reader) {
		x := &reader{r: r}
		before := r.Count()
		chain := x.read(fields.At(path, "certificate_chain"), m.GetCertificateChain())
		key := x.read(fields.At(path, "private_key"), m.GetPrivateKey())
		staple := x.read(fields.At(path, "ocsp_staple"), m.GetOcspStaple())
		x.directory(m.GetWatchedDirectory())
		if r.Count() > before {
			return nil, x
		}
		switch {
		case len(chain) == 0:
			r.Errorf(fields.At(path, "certificate_chain"), "is required")
			return nil, x
		case len(key) == 0:
			r.Errorf(fields.At(path, "private_key"), "is required")
			return nil, x
		}
		// The errors of crypto/tls say what is wrong with the form; they
		// hold nothing of the key.
		c, err := tls.X509KeyPair(chain, key)
		if err != nil {
			r.Errorf(path, "%s", strings.TrimPrefix(err.Error(), "tls: "))
			return nil, x
		}
		c.OCSPStaple = staple
		for i, t := range m.GetSignedCertificateTimestamp() {
			if b := x.read(fields.Index(path, "signed_certificate_timestamp", i), t); b != nil {
				c.SignedCertificateTimestamps = append(c.SignedCertificateTimestamps, b)
			}
		}
		return &material{certificate: &c}, x
	}
	mat, x := read(r)
	if r.Count() > n {
		return nil
	}
	return s.follow(mat, x, read)
}

// certificates parses a PEM bundle.
func certificates(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" && block.Type != "TRUSTED CERTIFICATE" && block.Type != "X509 CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("holds a certificate that cannot be parsed: %s", strings.TrimPrefix(err.Error(), "x509: "))
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("holds no certificate in PEM")
	}
	return out, nil
}
