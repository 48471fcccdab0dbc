package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// checker makes a cluster's active health checks: one goroutine per host and
// check, off the workers, with the standard library's client (checks are not
// the data path). It changes the hosts' flags and rebuilds the host set when
// one of them turns.
type checker struct {
	cluster *Cluster
	ctx     context.Context
	update  chan []entry
}

func newChecker(ctx context.Context, c *Cluster) *checker {
	k := &checker{cluster: c, ctx: ctx, update: make(chan []entry, 1)}
	go k.run()
	return k
}

// hosts hands over the hosts to check. Called with the cluster's lock held, so
// it must not wait: an update not yet taken is replaced.
func (k *checker) hosts(entries []entry) {
	select {
	case <-k.update:
	default:
	}
	k.update <- entries
}

func (k *checker) run() {
	running := map[*Host]context.CancelFunc{}
	for {
		select {
		case <-k.ctx.Done():
			return // the hosts' contexts are children of this one
		case entries := <-k.update:
			now := map[*Host]bool{}
			for _, e := range entries {
				now[e.host] = true
				if running[e.host] != nil {
					continue
				}
				ctx, cancel := context.WithCancel(k.ctx)
				running[e.host] = cancel
				for i := range k.cluster.Config.HealthChecks {
					go k.watch(ctx, e.host, &k.cluster.Config.HealthChecks[i])
				}
			}
			for h, cancel := range running {
				if !now[h] {
					cancel()
					delete(running, h)
				}
			}
		}
	}
}

// watch checks one host until ctx ends.
func (k *checker) watch(ctx context.Context, h *Host, hc *HealthCheck) {
	probe := k.probe(h, hc)
	st := k.cluster.Stats.Shared()
	var good, bad uint32
	first := true
	for {
		st.Inc(StatHealthAttempt)
		try, cancel := context.WithTimeout(ctx, hc.Timeout)
		err := probe(try)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			st.Inc(StatHealthSuccess)
			good, bad = good+1, 0
			// The first answer decides at once, as in Envoy: a host need not wait out the threshold at start.
			if first || good >= hc.HealthyThreshold {
				k.turn(h, false, nil)
			}
		} else {
			st.Inc(StatHealthFailure)
			good, bad = 0, bad+1
			var s *statusError
			// An answer that is not the expected one is the host's own
			// word; only silence is given the benefit of the threshold.
			if first || bad >= hc.UnhealthyThreshold || errors.As(err, &s) && !s.retriable {
				k.turn(h, true, err)
			}
		}
		first = false
		interval := hc.Interval
		if err != nil && hc.UnhealthyInterval > 0 {
			interval = hc.UnhealthyInterval
		}
		if hc.Jitter > 0 {
			interval += rand.N(hc.Jitter)
		}
		if hc.JitterPercent > 0 {
			interval += rand.N(interval*time.Duration(hc.JitterPercent)/100 + 1)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		}
	}
}

// turn changes what active checks say of the host.
func (k *checker) turn(h *Host, failed bool, cause error) {
	a := h.set(flagActive, failed)
	b := h.set(flagPending, false)
	if !a && !b {
		return
	}
	if failed {
		k.cluster.registry.log.Warn("host fails its health check", "cluster", k.cluster.Config.Name, "host", h.text, "error", cause)
	} else if o := k.cluster.Config.Outlier; o != nil && o.SuccessfulUneject {
		h.uneject()
	}
	k.cluster.refresh()
	if failed && k.cluster.Config.CloseOnHealthFailure {
		k.cluster.drainHosts([]*Host{h})
	}
}

// statusError is an answer with a status that is not expected.
type statusError struct {
	status    int
	retriable bool
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d", e.status) }

// probe returns the function that makes one check.
func (k *checker) probe(h *Host, hc *HealthCheck) func(context.Context) error {
	dial := func(ctx context.Context) (net.Conn, error) {
		network, target := "tcp", h.text
		switch {
		case h.address.Path != "":
			network = "unix"
		case h.check.IsValid():
			target = h.check.String()
		case hc.AltPort != 0:
			target = netip.AddrPortFrom(h.addr.Addr(), hc.AltPort).String()
		}
		var alpn []string
		switch {
		case !hc.HTTP:
		case k.cluster.Config.Protocol == HTTP2:
			alpn = []string{"h2"}
		default:
			alpn = []string{"http/1.1"}
		}
		return dialNet(ctx, network, target, h.hostname, k.cluster.Config.TLS, alpn)
	}
	if hc.HTTP {
		return k.probeHTTP(h, hc, dial)
	}
	return func(ctx context.Context) error { return probeTCP(ctx, hc, dial) }
}

func (k *checker) probeHTTP(h *Host, hc *HealthCheck, dial func(context.Context) (net.Conn, error)) func(context.Context) error {
	// The connection is made by dial, TLS included, so the transport is
	// told to speak plaintext over it.
	var protocols http.Protocols
	if hc.HTTP2 || k.cluster.Config.Protocol == HTTP2 {
		protocols.SetUnencryptedHTTP2(true)
	} else {
		protocols.SetHTTP1(true)
	}
	tr := &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		Protocols:              &protocols,
		DisableKeepAlives:      !hc.ReuseConnection,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}
	host := hc.Host
	if host == "" {
		// Envoy asks by the cluster's name; one that cannot be a host is
		// refused by any strict server.
		if host = k.cluster.Config.Name; strings.ContainsFunc(host, notInHost) {
			host = h.text
		}
	}
	client := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	context.AfterFunc(k.ctx, tr.CloseIdleConnections)
	method := hc.Method
	if method == "" {
		method = http.MethodGet
	}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, method, "http://health.invalid"+hc.Path, nil)
		if err != nil {
			return err
		}
		req.Host = host
		req.Header.Set("User-Agent", "sallyport/HC")
		for _, v := range hc.Headers {
			req.Header.Add(v.Name, v.Value)
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		// A bounded read lets the connection be reused.
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
		resp.Body.Close()
		expected := hc.Expected
		if len(expected) == 0 {
			expected = []StatusRange{{200, 201}}
		}
		if within(expected, resp.StatusCode) {
			return nil
		}
		return &statusError{resp.StatusCode, within(hc.Retriable, resp.StatusCode)}
	}
}

func notInHost(r rune) bool {
	return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune(".-_:", r)
}

func within(ranges []StatusRange, status int) bool {
	for _, r := range ranges {
		if status >= r.Start && status < r.End {
			return true
		}
	}
	return false
}

// maxProbeAnswer bounds what a TCP check reads.
const maxProbeAnswer = 64 << 10

func probeTCP(ctx context.Context, hc *HealthCheck, dial func(context.Context) (net.Conn, error)) error {
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if d, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(d); err != nil {
			return err
		}
	}
	if len(hc.Send) > 0 {
		if _, err := c.Write(hc.Send); err != nil {
			return err
		}
	}
	var got []byte
	buf := make([]byte, 4096)
	for !received(got, hc.Receive) {
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			return err
		}
		if len(got) > maxProbeAnswer {
			return errors.New("the expected bytes are not in the first 64 KiB of the answer")
		}
	}
	return nil
}

// received says whether the pieces stand in got one after another, with
// anything between them, as Envoy matches TCP health checks.
func received(got []byte, pieces [][]byte) bool {
	for _, p := range pieces {
		i := bytes.Index(got, p)
		if i < 0 {
			return false
		}
		got = got[i+len(p):]
	}
	return true
}
