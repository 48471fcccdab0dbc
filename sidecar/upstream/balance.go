package upstream

import (
	"math/rand/v2"
	"sort"
	"strconv"

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
	healthy int
	drop    uint32
	// levels are the priorities; share[i] is the upper bound, in percent,
	// of what levels up to i take.
	levels []level
	share  []uint32
}

// level is one priority: the balancer over the hosts that may be chosen.
type level struct {
	balancer balancer
	panics   bool
}

// balancer chooses among a fixed list of hosts. Immutable.
type balancer interface {
	pick(c *Cluster, p *Pick) *Host
}

// overprovisioning is Envoy's default factor, in percent: a priority keeps all
// of its traffic until less than 1/1.4 of its hosts are healthy.
const overprovisioning = 140

func newHostSet(cfg *Config, entries []entry) *hostSet {
	set := &hostSet{entries: entries}
	byLevel := map[uint32][]entry{}
	var priorities []uint32
	for _, e := range entries {
		if e.host.Healthy() {
			set.healthy++
		}
		if byLevel[e.priority] == nil {
			priorities = append(priorities, e.priority)
		}
		byLevel[e.priority] = append(byLevel[e.priority], e)
	}
	sort.Slice(priorities, func(i, j int) bool { return priorities[i] < priorities[j] })

	health := make([]uint32, len(priorities))
	total := uint32(0)
	split := make([][3][]entry, len(priorities)) // usable, healthy, degraded
	for i, p := range priorities {
		all := byLevel[p]
		for _, e := range all {
			f := e.host.flags.Load()
			if f&(flagGone|flagDraining) == 0 {
				split[i][0] = append(split[i][0], e)
			}
			switch f {
			case 0:
				split[i][1] = append(split[i][1], e)
			case flagDegraded:
				split[i][2] = append(split[i][2], e)
			}
		}
		well := len(split[i][1])
		if well == 0 {
			well = len(split[i][2]) // degraded hosts serve where there is nothing better
		}
		health[i] = min(100, uint32(overprovisioning*well/len(all)))
		total = min(100, total+health[i])
	}
	left := uint32(100)
	upto := uint32(0)
	for i, p := range priorities {
		chosen := split[i][1]
		if len(chosen) == 0 {
			chosen = split[i][2]
		}
		// Envoy panics at a level only where all levels together cannot
		// carry the load.
		panics := total < 100 && uint32(100*len(chosen)/len(byLevel[p])) < cfg.PanicThreshold
		if panics {
			chosen = split[i][0]
		}
		set.levels = append(set.levels, level{newBalancer(cfg, chosen), panics})
		share := uint32(0)
		if total > 0 {
			share = min(left, health[i]*100/total)
		}
		left -= share
		upto += share
		set.share = append(set.share, upto)
	}
	if len(set.share) > 0 && left > 0 {
		// Rounding, or nothing healthy at all: the first level takes it.
		for i := range set.share {
			set.share[i] += left
		}
	}
	return set
}

func (s *hostSet) pick(c *Cluster, p *Pick) *Host {
	if len(s.levels) == 0 {
		return nil
	}
	n := 0
	if len(s.levels) > 1 {
		r := rand.Uint32N(100)
		if p.HasHash {
			r = uint32(p.Hash % 100)
		}
		for n < len(s.levels)-1 && r >= s.share[n] {
			n++
		}
	}
	l := &s.levels[n]
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
	weights, total := scaled(hosts)
	r := &roundRobin{schedule: make([]*Host, 0, total), random: random}
	if total == len(hosts) {
		for _, e := range hosts {
			r.schedule = append(r.schedule, e.host)
		}
		return r
	}
	// Earliest deadline first: host i is due at 1/w, 2/w, …, so that turns
	// of heavy hosts are spread out, not bunched.
	type due struct {
		at float64
		i  int
	}
	var all []due
	for i, w := range weights {
		for k := 1; k <= w; k++ {
			all = append(all, due{float64(k) / float64(w), i})
		}
	}
	sort.Slice(all, func(a, b int) bool {
		if all[a].at != all[b].at {
			return all[a].at < all[b].at
		}
		return all[a].i < all[b].i
	})
	for _, d := range all {
		r.schedule = append(r.schedule, hosts[d.i].host)
	}
	return r
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
// requests under way for its weight (power of two choices).
type leastRequest struct {
	hosts   []entry
	choices int
	equal   bool
}

func newLeastRequest(hosts []entry, choices uint32) *leastRequest {
	l := &leastRequest{hosts: hosts, choices: int(choices), equal: true}
	for _, e := range hosts {
		l.equal = l.equal && e.weight == hosts[0].weight
	}
	return l
}

func (l *leastRequest) pick(_ *Cluster, _ *Pick) *Host {
	n := len(l.hosts)
	best := &l.hosts[rand.IntN(n)]
	for k := 1; k < l.choices && n > 1; k++ {
		e := &l.hosts[rand.IntN(n)]
		a, b := uint64(e.host.active.Load()+1), uint64(best.host.active.Load()+1)
		if l.equal && a < b || !l.equal && a*uint64(best.weight) < b*uint64(e.weight) {
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
	return h.text
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
	scale := min(ceil(perLeast*float64(minRing))/perLeast, float64(maxRing))
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

func ceil(f float64) float64 {
	n := float64(uint64(f))
	if n < f {
		n++
	}
	return n
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
