package match

import (
	"errors"
	"fmt"
	"io"
	"os"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

func readData(d *corev3.DataSource, limit int) ([]byte, error) {
	if d.GetWatchedDirectory() != nil {
		return nil, errors.New("watched_directory is not implemented; send the resource again when the file changed")
	}
	switch s := d.GetSpecifier().(type) {
	case *corev3.DataSource_InlineString:
		return []byte(s.InlineString), nil
	case *corev3.DataSource_InlineBytes:
		return s.InlineBytes, nil
	case *corev3.DataSource_EnvironmentVariable:
		v, ok := os.LookupEnv(s.EnvironmentVariable)
		if !ok {
			return nil, fmt.Errorf("environment variable %q is not set", s.EnvironmentVariable)
		}
		return []byte(v), nil
	case *corev3.DataSource_Filename:
		f, err := os.Open(s.Filename)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, int64(limit)+1))
	}
	return nil, errors.New("needs one of filename, inline_bytes, inline_string, environment_variable")
}
