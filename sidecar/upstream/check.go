package upstream

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
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
	defer k.cluster.registry.panics.Recover("health checks of a cluster")
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
	defer k.cluster.registry.panics.Recover("health checks of a host")
	probe, end := k.probe(h, hc)
	defer end()
	st := k.cluster.Stats.Shared()
	var good, bad uint32
	first := true
	for {
		st.Inc(StatHealthAttempt)
		err := k.try(ctx, hc.Timeout, probe)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			st.Inc(StatHealthSuccess)
			good, bad = good+1, 0
			// The first answer decides at once, as in Envoy: a host need not wait out the threshold at start.
			if first || good >= max(hc.HealthyThreshold, 1) {
				k.turn(h, false, nil)
			}
			k.uneject(h)
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
		if !k.rest(ctx, interval, hc.NoTrafficInterval) {
			return
		}
	}
}

// try makes one check. One that panics has failed.
func (k *checker) try(ctx context.Context, timeout time.Duration, probe func(context.Context) error) (err error) {
	err = errPanic
	defer k.cluster.registry.panics.Recover("health check")
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return probe(ctx)
}

// uneject gives a host back that outlier detection has ejected and that passes its checks, whether this one changed
// something or not: successful_active_health_check_uneject_host.
func (k *checker) uneject(h *Host) {
	if o := k.cluster.Config.Outlier; o != nil && o.SuccessfulUneject && h.flags.Load()&(flagEjected|flagActive) == flagEjected {
		h.uneject(anyEjection)
	}
}

// rest waits until the next check is due: for interval, or, while the cluster
// was never used, for quiet, but not beyond its first use. It answers false
// when ctx ended.
func (k *checker) rest(ctx context.Context, interval, quiet time.Duration) bool {
	for waited := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(interval):
		}
		waited += interval
		if waited >= quiet || k.cluster.Stats.Value(StatCxTotal) > 0 {
			return true
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
		k.cluster.registry.log.Warn("host fails its health check", "cluster", k.cluster.Config.Name, "host", h, "error", cause)
	}
	k.cluster.refresh()
	if failed {
		// As in Envoy: other connections may do better than those that exist.
		k.cluster.drainHosts([]*Host{h}, k.cluster.Config.CloseOnHealthFailure)
	}
}

// statusError is an answer with a status that is not expected.
type statusError struct {
	status    int
	text      string // of gRPC
	retriable bool
}

func (e *statusError) Error() string {
	if e.text != "" {
		return e.text
	}
	return fmt.Sprintf("status %d", e.status)
}

// probe returns the function that makes one check, and one that closes what it
// keeps open between them.
func (k *checker) probe(h *Host, hc *HealthCheck) (check func(context.Context) error, end func()) {
	dial := func(ctx context.Context) (net.Conn, error) {
		network, target := "tcp", h.String()
		switch {
		case h.where.Load().IsUnix():
			network = "unix"
		case h.check.IsValid():
			target = h.check.String()
		case hc.AltPort != 0:
			target = netip.AddrPortFrom(h.Address().Addr(), hc.AltPort).String()
		}
		var alpn []string
		switch {
		case !hc.HTTP && !hc.GRPC:
		case k.http2(hc):
			alpn = []string{"h2"}
		default:
			alpn = []string{"http/1.1"}
		}
		return k.cluster.dialNet(ctx, network, target, h.hostname, alpn)
	}
	if !hc.HTTP && !hc.GRPC {
		return func(ctx context.Context) error { return probeTCP(ctx, hc, dial) }, func() {}
	}
	client := k.client(hc, dial)
	if hc.GRPC {
		return func(ctx context.Context) error { return k.probeGRPC(ctx, h, hc, client) }, client.CloseIdleConnections
	}
	return func(ctx context.Context) error { return k.probeHTTP(ctx, h, hc, client) }, client.CloseIdleConnections
}

// http2 says that the check is made over HTTP/2.
func (k *checker) http2(hc *HealthCheck) bool {
	return hc.HTTP2 || hc.GRPC || k.cluster.Config.Protocol == HTTP2
}

func (k *checker) client(hc *HealthCheck, dial func(context.Context) (net.Conn, error)) *http.Client {
	// The connection is made by dial, TLS included, so the transport is
	// told to speak plaintext over it.
	var protocols http.Protocols
	if k.http2(hc) {
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
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// do sends a check and returns the answer with at most the first 64 KiB of its
// body. One that does not end in time is no answer.
func (k *checker) do(client *http.Client, req *http.Request, h *Host, hc *HealthCheck) (*http.Response, []byte, error) {
	if req.Host = hc.Host; req.Host == "" {
		// Envoy asks by the cluster's name; one that cannot be a host is
		// refused by any strict server.
		if req.Host = k.cluster.Config.Name; strings.ContainsFunc(req.Host, notInHost) {
			req.Host = h.String()
		}
	}
	req.Header.Set("User-Agent", "sallyport/HC")
	for _, v := range hc.Headers {
		req.Header.Add(v.Name, v.Value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeAnswer))
	return resp, body, err
}

func (k *checker) probeHTTP(ctx context.Context, h *Host, hc *HealthCheck, client *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, cmp.Or(hc.Method, http.MethodGet), "http://health.invalid"+hc.Path, nil)
	if err != nil {
		return err
	}
	resp, _, err := k.do(client, req, h, hc)
	if err != nil {
		return err
	}
	expected := hc.Expected
	if len(expected) == 0 {
		expected = []StatusRange{{200, 201}}
	}
	if within(expected, resp.StatusCode) {
		return nil
	}
	return &statusError{status: resp.StatusCode, retriable: within(hc.Retriable, resp.StatusCode)}
}

// probeGRPC makes one call of grpc.health.v1.Health/Check
// (https://github.com/grpc/grpc/blob/master/doc/health-checking.md); a message
// is a byte without compression, its length and its bytes.
func (k *checker) probeGRPC(ctx context.Context, h *Host, hc *HealthCheck, client *http.Client) error {
	msg, err := proto.Marshal(&grpc_health_v1.HealthCheckRequest{Service: hc.GRPCService})
	if err != nil {
		return err
	}
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://health.invalid/grpc.health.v1.Health/Check", bytes.NewReader(frame))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	resp, body, err := k.do(client, req, h, hc)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return &statusError{status: resp.StatusCode}
	}
	if status := cmp.Or(resp.Trailer.Get("Grpc-Status"), resp.Header.Get("Grpc-Status")); status != "0" {
		return fmt.Errorf("gRPC status %q", status)
	}
	var answer grpc_health_v1.HealthCheckResponse
	if len(body) < 5 || body[0] != 0 || int64(binary.BigEndian.Uint32(body[1:])) != int64(len(body)-5) || proto.Unmarshal(body[5:], &answer) != nil {
		return errors.New("the answer is not a HealthCheckResponse")
	}
	if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return &statusError{status: resp.StatusCode, text: answer.GetStatus().String()}
	}
	return nil
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
