package upstream

import (
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// entry is a host in a host set, with what may change between updates.
type entry struct {
	host         *Host
	key          endpointKey
	weight       uint32
	priority     uint32
	region, zone string
}

// hostSet is the immutable picture of a cluster's hosts that workers choose
// from; a change of membership or health makes a new one.
type hostSet struct {
	entries []entry
	healthy int // hosts with nothing against them
	drop    uint32
	choices []choice
}

// choice is a share of the traffic and the balancer over the hosts that take
// it: the healthy hosts of a priority, its degraded ones, or in panic all.
type choice struct {
	balancer balancer
	upto     uint32 // percent of the traffic that this and earlier choices take
	panics   bool
}

// balancer chooses among a fixed list of hosts. Immutable.
type balancer interface {
	pick(c *Cluster, p *Pick) *Host
}

// overprovisioning is Envoy's default factor, in percent: a priority keeps all
// of its traffic until less than 1/1.4 of its hosts are healthy.
const overprovisioning = 140

// rank is one priority while a host set is made.
type rank struct {
	priority uint32
	counted  int // hosts that the share of healthy ones is taken of
	usable   []entry
	healthy  []entry
	degraded []entry

	healthyPercent, degradedPercent uint32 // with overprovisioning
	healthyLoad, degradedLoad       uint32
	panics                          bool
}

// newHostSet distributes the load as Envoy does
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority):
// first over the healthy hosts of each priority, then over degraded ones; where
// all priorities together cannot carry it, those below the threshold panic.
func newHostSet(cfg *Config, entries []entry) *hostSet {
	set := &hostSet{entries: entries}
	if len(entries) == 0 {
		return set
	}
	ranks := rankHosts(entries)
	available := uint32(0)
	for i := range ranks {
		r := &ranks[i]
		set.healthy += len(r.healthy)
		if r.counted > 0 {
			r.healthyPercent = min(100, uint32(overprovisioning*len(r.healthy)/r.counted))
			r.degradedPercent = min(100, uint32(overprovisioning*len(r.degraded)/r.counted))
		}
		available += r.healthyPercent + r.degradedPercent
	}
	available = min(available, 100)
	allPanic := true
	for i := range ranks {
		r := &ranks[i]
		well := len(r.healthy) + len(r.degraded)
		r.panics = available < 100 && cfg.PanicThreshold > 0 && (r.counted == 0 || 100*well < int(cfg.PanicThreshold)*r.counted)
		allPanic = allPanic && r.panics
	}
	switch {
	case allPanic:
		shareByHosts(ranks)
	case available > 0:
		shareByHealth(ranks, available)
	}
	upto := uint32(0)
	add := func(load uint32, hosts []entry, r *rank) {
		if load == 0 {
			return
		}
		if r.panics {
			hosts = r.usable
		}
		upto += load
		set.choices = append(set.choices, choice{newBalancer(cfg, hosts), upto, r.panics})
	}
	for i := range ranks {
		add(ranks[i].healthyLoad, ranks[i].healthy, &ranks[i])
	}
	for i := range ranks {
		add(ranks[i].degradedLoad, ranks[i].degraded, &ranks[i])
	}
	return set
}

// rankHosts sorts the hosts by priority and health.
func rankHosts(entries []entry) []rank {
	var ranks []rank
	at := map[uint32]int{}
	for _, e := range entries {
		if _, ok := at[e.priority]; !ok {
			at[e.priority] = 0
			ranks = append(ranks, rank{priority: e.priority})
		}
	}
	sort.Slice(ranks, func(i, j int) bool { return ranks[i].priority < ranks[j].priority })
	for i := range ranks {
		at[ranks[i].priority] = i
	}
	for _, e := range entries {
		r := &ranks[at[e.priority]]
		f := e.host.flags.Load()
		if f&flagPending == 0 {
			r.counted++ // ignore_new_hosts_until_first_hc: others do not count
		}
		if f&(flagGone|flagDraining) == 0 {
			r.usable = append(r.usable, e)
		}
		switch f {
		case 0:
			r.healthy = append(r.healthy, e)
		case flagDegraded:
			r.degraded = append(r.degraded, e)
		}
	}
	return ranks
}

// shareByHealth gives each priority load by its health, in order; rounding
// goes to the first that can take any.
func shareByHealth(ranks []rank, available uint32) {
	left := uint32(100)
	var first *uint32
	give := func(load *uint32, percent uint32) {
		*load = min(left, percent*100/available)
		left -= *load
		if first == nil && percent > 0 {
			first = load
		}
	}
	for i := range ranks {
		give(&ranks[i].healthyLoad, ranks[i].healthyPercent)
	}
	for i := range ranks {
		give(&ranks[i].degradedLoad, ranks[i].degradedPercent)
	}
	*first += left
}

// shareByHosts is total panic: health says nothing, so hosts count alike.
func shareByHosts(ranks []rank) {
	total, left := 0, uint32(100)
	for i := range ranks {
		total += len(ranks[i].usable)
	}
	if total == 0 {
		return
	}
	var first *uint32
	for i := range ranks {
		load := uint32(100 * len(ranks[i].usable) / total)
		ranks[i].healthyLoad = load
		left -= load
		if first == nil && len(ranks[i].usable) > 0 {
			first = &ranks[i].healthyLoad
		}
	}
	*first += left
}

func (s *hostSet) pick(c *Cluster, p *Pick) *Host {
	if len(s.choices) == 0 {
		return nil
	}
	n := 0
	if len(s.choices) > 1 {
		r := rand.Uint32N(100)
		if p.HasHash {
			r = uint32(p.Hash % 100)
		}
		for n < len(s.choices)-1 && r >= s.choices[n].upto {
			n++
		}
	}
	l := &s.choices[n]
	if l.panics {
		c.Stats.At(p.Worker).Inc(StatLBHealthyPanic)
	}
	return l.balancer.pick(c, p)
}

func newBalancer(cfg *Config, hosts []entry) balancer {
	if len(hosts) == 0 {
		return none{}
	}
	switch cfg.Policy {
	case LeastRequest:
		return newLeastRequest(hosts, max(cfg.Choices, 2))
	case Random:
		return newRoundRobin(hosts, true)
	case RingHash:
		return newRing(cfg, hosts)
	case Maglev:
		return newMaglev(cfg, hosts)
	}
	return newRoundRobin(hosts, false)
}

type none struct{}

func (none) pick(*Cluster, *Pick) *Host { return nil }

// roundRobin goes through a schedule in which each host stands as often as its
// weight says, spread out evenly.
type roundRobin struct {
	schedule []*Host
	random   bool
}

// maxSchedule bounds a weighted schedule; larger sums of weights are scaled down.
const maxSchedule = 8192

func newRoundRobin(hosts []entry, random bool) *roundRobin {
	r := &roundRobin{random: random}
	for _, i := range schedule(hosts) {
		r.schedule = append(r.schedule, hosts[i].host)
	}
	return r
}

// schedule lists the hosts' indexes, each as often as its weight says.
func schedule(hosts []entry) []int32 {
	weights, total := scaled(hosts)
	out := make([]int32, 0, total)
	if total == len(hosts) {
		for i := range hosts {
			out = append(out, int32(i))
		}
		return out
	}
	// Earliest deadline first: host i is due w times, 1/w apart. Where it
	// begins is spread by the golden ratio, or all light hosts would be due
	// together and the heavy ones bunched between.
	type due struct {
		at float64
		i  int32
	}
	all := make([]due, 0, total)
	for i, w := range weights {
		_, begin := math.Modf(float64(i) * (math.Phi - 1))
		for k := range w {
			all = append(all, due{(float64(k) + begin) / float64(w), int32(i)})
		}
	}
	sort.Slice(all, func(a, b int) bool {
		if all[a].at != all[b].at {
			return all[a].at < all[b].at
		}
		return all[a].i < all[b].i
	})
	for _, d := range all {
		out = append(out, d.i)
	}
	return out
}

// scaled divides the weights by their greatest common divisor and scales them
// down to at most maxSchedule in sum; no host falls below one.
func scaled(hosts []entry) (weights []int, total int) {
	g := hosts[0].weight
	for _, e := range hosts {
		for a, b := g, e.weight; ; a, b = b, a%b {
			if b == 0 {
				g = a
				break
			}
		}
	}
	sum := uint64(0)
	for _, e := range hosts {
		sum += uint64(e.weight / g)
	}
	for _, e := range hosts {
		w := int(e.weight / g)
		if sum > maxSchedule {
			w = max(1, int(uint64(w)*maxSchedule/sum))
		}
		weights = append(weights, w)
		total += w
	}
	return weights, total
}

func (r *roundRobin) pick(c *Cluster, p *Pick) *Host {
	if r.random {
		return r.schedule[rand.IntN(len(r.schedule))]
	}
	t := &c.turn[p.Worker]
	t.n++
	return r.schedule[t.n%uint32(len(r.schedule))]
}

// leastRequest compares a few random hosts and takes the one with the fewest
// requests under way for its weight (power of two choices). Candidates are
// drawn by weight, so that idle hosts share the load by their weights.
type leastRequest struct {
	hosts   []entry
	draw    []int32 // nil where all weights are equal
	choices int
}

func newLeastRequest(hosts []entry, choices uint32) *leastRequest {
	l := &leastRequest{hosts: hosts, choices: int(min(choices, maxChoices))}
	for _, e := range hosts {
		if e.weight != hosts[0].weight {
			l.draw = schedule(hosts)
			break
		}
	}
	return l
}

// maxChoices bounds the work of one pick, which choice_count does not.
const maxChoices = 64

func (l *leastRequest) candidate() *entry {
	if l.draw != nil {
		return &l.hosts[l.draw[rand.IntN(len(l.draw))]]
	}
	return &l.hosts[rand.IntN(len(l.hosts))]
}

func (l *leastRequest) pick(_ *Cluster, _ *Pick) *Host {
	best := l.candidate()
	for k := 1; k < l.choices && len(l.hosts) > 1; k++ {
		e := l.candidate()
		a, b := uint64(max(e.host.active.Load(), 0)), uint64(max(best.host.active.Load(), 0))
		if a*uint64(best.weight) < b*uint64(e.weight) {
			best = e
		}
	}
	return best.host
}

// ring is a consistent hash ring in Envoy's form: each host stands at the
// xxHash64 of "<address>_<i>", as often as its weight says.
type ring struct {
	points []point
}

type point struct {
	at   uint64
	host *Host
}

func hashName(cfg *Config, h *Host) string {
	if cfg.HashByHostname && h.hostname != "" {
		return h.hostname
	}
	return h.String()
}

func newRing(cfg *Config, hosts []entry) *ring {
	minRing, maxRing := cfg.MinRing, cfg.MaxRing
	if minRing == 0 {
		minRing = 1024
	}
	if maxRing == 0 {
		maxRing = 8 << 20
	}
	total, least := 0.0, float64(hosts[0].weight)
	for _, e := range hosts {
		total += float64(e.weight)
		least = min(least, float64(e.weight))
	}
	// Every host has a whole number of points in proportion to its weight,
	// the lightest at least one, the ring at least minRing and at most maxRing.
	perLeast := least / total
	scale := min(math.Ceil(perLeast*float64(minRing))/perLeast, float64(maxRing))
	r := &ring{}
	var buf []byte
	current, target := 0.0, 0.0
	for _, e := range hosts {
		buf = append(append(buf[:0], hashName(cfg, e.host)...), '_')
		prefix := len(buf)
		target += scale * float64(e.weight) / total
		for i := 0; current < target; i++ {
			buf = strconv.AppendInt(buf[:prefix], int64(i), 10)
			r.points = append(r.points, point{xxhash.Sum64(buf), e.host})
			current++
		}
	}
	sort.Slice(r.points, func(i, j int) bool { return r.points[i].at < r.points[j].at })
	return r
}

func (r *ring) pick(_ *Cluster, p *Pick) *Host {
	h := p.Hash
	if !p.HasHash {
		h = rand.Uint64()
	}
	i := sort.Search(len(r.points), func(i int) bool { return r.points[i].at >= h })
	if i == len(r.points) {
		i = 0
	}
	return r.points[i].host
}

// maglev is the table of Google's Maglev load balancer (section 3.4 of the paper).
type maglev struct {
	table []*Host
}

func newMaglev(cfg *Config, hosts []entry) *maglev {
	size := cfg.TableSize
	if size == 0 {
		size = 65537
	}
	type perm struct {
		host         *Host
		offset, skip uint64
		next         uint64
		weight, sum  float64
	}
	heaviest := uint32(0)
	for _, e := range hosts {
		heaviest = max(heaviest, e.weight)
	}
	// Sidecars that learned of the hosts in another order must have the same table.
	hosts = slices.Clone(hosts)
	slices.SortStableFunc(hosts, func(a, b entry) int { return strings.Compare(hashName(cfg, a.host), hashName(cfg, b.host)) })
	perms := make([]perm, len(hosts))
	for i, e := range hosts {
		name := hashName(cfg, e.host)
		perms[i] = perm{host: e.host, offset: xxhash.Sum64String(name) % size, skip: seeded(name)%(size-1) + 1, weight: float64(e.weight) / float64(heaviest)}
	}
	m := &maglev{table: make([]*Host, size)}
	filled := uint64(0)
	for round := 1.0; filled < size; round++ {
		for i := 0; i < len(perms) && filled < size; i++ {
			p := &perms[i]
			if round*p.weight < p.sum {
				continue // a light host passes this round
			}
			p.sum++
			for {
				at := (p.offset + p.next*p.skip) % size
				p.next++
				if m.table[at] == nil {
					m.table[at] = p.host
					filled++
					break
				}
			}
		}
	}
	return m
}

// seeded is a second hash, independent of the first.
func seeded(s string) uint64 {
	d := xxhash.NewWithSeed(1)
	_, _ = d.WriteString(s) // never fails
	return d.Sum64()
}

func (m *maglev) pick(_ *Cluster, p *Pick) *Host {
	h := p.Hash
	if !p.HasHash {
		h = rand.Uint64()
	}
	return m.table[h%uint64(len(m.table))]
}
