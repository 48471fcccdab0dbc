package demo

import (
	"context"
	"fmt"
	"io"
	"time"
)

// row is one thing that the check shows. see says what was seen; an error says what did not hold.
type row struct {
	name string
	see  func(context.Context) (string, error)
}

// rows are in the order of a request's way through the shop; what takes an
// instance away comes last.
func (s *shop) rows() []row {
	return []row{
		{"L4 balancing", s.seeL4},
		{"HTTPS at the edge", s.seeHTTPS},
		{"routing", s.seeRouting},
		{"JWT: valid", s.seeValidToken},
		{"JWT: absent, expired, forged", s.seeBadTokens},
		{"rate limit", s.seeRateLimit},
		{"path transformation", s.seePath},
		{"header transformation", s.seeHeaders},
		{"L7 balancing", s.seeL7},
		{"traffic split", s.seeSplit},
		{"session persistence", s.seeSession},
		{"mTLS on the wire", s.seeMutualTLS},
		{"SPIFFE identities", s.seeIdentities},
		{"denied service-to-service call", s.seeDenied},
		{"metrics", s.seeMetrics},
		{"one trace across three hops", s.seeTrace},
		{"policy pushed live", s.seeLivePolicy},
		{"health: an instance dies", s.seeDeath},
	}
}

// rowLimit is how long one row may take: far more than any needs, and still an
// end to a demo in which something hangs.
const rowLimit = 15 * time.Second

// check prints a row for each thing and says whether all held.
func (s *shop) check(ctx context.Context, out io.Writer, begin time.Time) bool {
	catalog := "file"
	if s.consul != nil {
		catalog = "Consul"
	}
	fmt.Fprintf(out, "started %d processes in %.1f s; catalog: %s\n", len(s.family.all()), time.Since(begin).Seconds(), catalog)
	rows := s.rows()
	held := walk(ctx, out, rows)
	fmt.Fprintf(out, "%d of %d held, %.1f s\n", held, len(rows), time.Since(begin).Seconds())
	return held == len(rows)
}

// walk prints the rows and counts those that held. It ends with ctx.
func walk(ctx context.Context, out io.Writer, rows []row) (held int) {
	for _, r := range rows {
		if ctx.Err() != nil {
			return held
		}
		one, cancel := context.WithTimeout(ctx, rowLimit)
		seen, err := r.see(one)
		cancel()
		if err != nil {
			fmt.Fprintf(out, "FAILED  %-31s %v\n", r.name, err)
			continue
		}
		held++
		fmt.Fprintf(out, "ok      %-31s %s\n", r.name, seen)
	}
	return held
}
