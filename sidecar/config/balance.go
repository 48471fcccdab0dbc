package config

//lint:file-ignore SA1019 files in use have deprecated fields, which Envoy reads still, and so do we

import (
	"math/big"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	providedv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/cluster_provided/v3"
	commonlbv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/common/v3"
	leastv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	maglevv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/maglev/v3"
	randomv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/random/v3"
	ringv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	roundv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sallyport/sidecar/config/fields"
	"sallyport/sidecar/upstream"
)

var (
	commonLBFields = fields.Of(&clusterv3.Cluster_CommonLbConfig{}, "healthy_panic_threshold", "ignore_new_hosts_until_first_hc", "consistent_hashing_lb_config").
			Harmless(&clusterv3.Cluster_CommonLbConfig{}, "update_merge_window")
	consistentFields = fields.Of(&clusterv3.Cluster_CommonLbConfig_ConsistentHashingLbConfig{}, "use_hostname_for_hashing")
	roundLBFields    = fields.Of(&clusterv3.Cluster_RoundRobinLbConfig{})
	leastLBFields    = fields.Of(&clusterv3.Cluster_LeastRequestLbConfig{}, "choice_count")
	ringLBFields     = fields.Of(&clusterv3.Cluster_RingHashLbConfig{}, "minimum_ring_size", "maximum_ring_size", "hash_function")
	maglevLBFields   = fields.Of(&clusterv3.Cluster_MaglevLbConfig{}, "table_size")

	roundFields  = fields.Of(&roundv3.RoundRobin{})
	randomFields = fields.Of(&randomv3.Random{})
	leastFields  = fields.Of(&leastv3.LeastRequest{}, "choice_count")
	ringFields   = fields.Of(&ringv3.RingHash{}, "minimum_ring_size", "maximum_ring_size", "use_hostname_for_hashing", "consistent_hashing_lb_config", "hash_function")
	maglevFields = fields.Of(&maglevv3.Maglev{}, "table_size", "consistent_hashing_lb_config")
	hashLBFields = fields.Of(&commonlbv3.ConsistentHashingLbConfig{}, "use_hostname_for_hashing")
)

const (
	minRing       = 1024
	maxRing       = 8 << 20
	maglevTable   = 65537
	maxMaglev     = 5000011
	defaultChoice = 2
)

// balancing reads the load-balancing policy.
func (c *compiler) balancing(m *clusterv3.Cluster, o *upstream.Config) {
	o.Choices, o.MinRing, o.MaxRing, o.TableSize, o.PanicThreshold = defaultChoice, minRing, maxRing, maglevTable, 50
	if l := m.GetCommonLbConfig(); l != nil {
		checkFields(c.report, "common_lb_config", l, commonLBFields)
		o.PanicThreshold = (c.percent("common_lb_config.healthy_panic_threshold", l.GetHealthyPanicThreshold(), 5000) + 50) / 100
		o.IgnoreNewHosts = l.GetIgnoreNewHostsUntilFirstHc()
		if h := l.GetConsistentHashingLbConfig(); h != nil {
			checkFields(c.report, "common_lb_config.consistent_hashing_lb_config", h, consistentFields)
			o.HashByHostname = h.GetUseHostnameForHashing()
		}
	}
	if p := m.GetLoadBalancingPolicy(); p != nil {
		c.extensionPolicy(p, o)
	} else {
		c.enumPolicy(m, o)
	}
	if o.Discovery == upstream.OriginalDst && o.Policy != upstream.ClusterProvided {
		c.Errorf("lb_policy", "a cluster of type ORIGINAL_DST takes CLUSTER_PROVIDED alone")
	}
	if o.Discovery != upstream.OriginalDst && o.Policy == upstream.ClusterProvided {
		c.Errorf("lb_policy", "CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST")
	}
	if o.MinRing > o.MaxRing {
		c.Errorf("ring_hash_lb_config.minimum_ring_size", "%d is above the maximum, %d", o.MinRing, o.MaxRing)
	}
}

func (c *compiler) enumPolicy(m *clusterv3.Cluster, o *upstream.Config) {
	switch m.GetLbPolicy() {
	case clusterv3.Cluster_ROUND_ROBIN:
		o.Policy = upstream.RoundRobin
	case clusterv3.Cluster_LEAST_REQUEST:
		o.Policy = upstream.LeastRequest
	case clusterv3.Cluster_RING_HASH:
		o.Policy = upstream.RingHash
	case clusterv3.Cluster_RANDOM:
		o.Policy = upstream.Random
	case clusterv3.Cluster_MAGLEV:
		o.Policy = upstream.Maglev
	case clusterv3.Cluster_CLUSTER_PROVIDED:
		o.Policy = upstream.ClusterProvided
	default:
		c.Errorf("lb_policy", "%s needs load_balancing_policy", m.GetLbPolicy())
	}
	switch t := m.GetLbConfig().(type) {
	case *clusterv3.Cluster_RoundRobinLbConfig_:
		checkFields(c.report, "round_robin_lb_config", t.RoundRobinLbConfig, roundLBFields)
	case *clusterv3.Cluster_LeastRequestLbConfig_:
		checkFields(c.report, "least_request_lb_config", t.LeastRequestLbConfig, leastLBFields)
		o.Choices = number(t.LeastRequestLbConfig.GetChoiceCount(), defaultChoice)
	case *clusterv3.Cluster_RingHashLbConfig_:
		l := t.RingHashLbConfig
		checkFields(c.report, "ring_hash_lb_config", l, ringLBFields)
		c.murmur("ring_hash_lb_config.hash_function", l.GetHashFunction() == clusterv3.Cluster_RingHashLbConfig_MURMUR_HASH_2)
		c.ring("ring_hash_lb_config", l.GetMinimumRingSize(), l.GetMaximumRingSize(), o)
	case *clusterv3.Cluster_MaglevLbConfig_:
		checkFields(c.report, "maglev_lb_config", t.MaglevLbConfig, maglevLBFields)
		c.table("maglev_lb_config", t.MaglevLbConfig.GetTableSize(), o)
	}
}

func (c *compiler) murmur(path string, yes bool) {
	if yes {
		c.Warnf(path, "MURMUR_HASH_2 is not implemented; xxHash is used, so that keys map to other hosts")
	}
}

func (c *compiler) ring(path string, least, most *wrapperspb.UInt64Value, o *upstream.Config) {
	if least != nil {
		o.MinRing = least.GetValue()
	}
	if most != nil {
		o.MaxRing = most.GetValue()
	}
	if o.MaxRing > maxRing || o.MinRing > maxRing {
		c.Errorf(path, "a ring is at most %d entries", maxRing)
	}
}

// table reads maglev's table size, which must be prime for every host to reach every slot.
func (c *compiler) table(path string, size *wrapperspb.UInt64Value, o *upstream.Config) {
	if size == nil {
		return
	}
	o.TableSize = size.GetValue()
	if o.TableSize > maxMaglev || !new(big.Int).SetUint64(o.TableSize).ProbablyPrime(0) {
		c.Errorf(fields.At(path, "table_size"), "%d is not a prime number up to %d", o.TableSize, maxMaglev)
	}
}

// extensionPolicy takes the first policy of the list that is known, as Envoy does.
func (c *compiler) extensionPolicy(m *clusterv3.LoadBalancingPolicy, o *upstream.Config) {
	var unknown []string
	for i, p := range m.GetPolicies() {
		e := p.GetTypedExtensionConfig()
		if c.policy(fields.Index("load_balancing_policy", "policies", i)+".typed_extension_config.typed_config", e.GetTypedConfig(), o) {
			return
		}
		unknown = append(unknown, e.GetTypedConfig().GetTypeUrl())
	}
	c.Errorf("load_balancing_policy.policies", "none is implemented: %q; use round_robin, least_request, random, ring_hash or maglev", unknown)
}

func (c *compiler) policy(path string, a *anypb.Any, o *upstream.Config) (known bool) {
	switch a.GetTypeUrl() {
	case typeURL((*roundv3.RoundRobin)(nil)):
		var l roundv3.RoundRobin
		if c.decode(path, a, &l) {
			checkFields(c.report, path, &l, roundFields)
		}
		o.Policy = upstream.RoundRobin
	case typeURL((*leastv3.LeastRequest)(nil)):
		var l leastv3.LeastRequest
		if c.decode(path, a, &l) {
			checkFields(c.report, path, &l, leastFields)
			o.Choices = number(l.GetChoiceCount(), defaultChoice)
		}
		o.Policy = upstream.LeastRequest
	case typeURL((*randomv3.Random)(nil)):
		var l randomv3.Random
		if c.decode(path, a, &l) {
			checkFields(c.report, path, &l, randomFields)
		}
		o.Policy = upstream.Random
	case typeURL((*ringv3.RingHash)(nil)):
		var l ringv3.RingHash
		if c.decode(path, a, &l) {
			checkFields(c.report, path, &l, ringFields)
			c.murmur(fields.At(path, "hash_function"), l.GetHashFunction() == ringv3.RingHash_MURMUR_HASH_2)
			c.ring(path, l.GetMinimumRingSize(), l.GetMaximumRingSize(), o)
			c.consistent(path, l.GetConsistentHashingLbConfig(), o)
			o.HashByHostname = o.HashByHostname || l.GetUseHostnameForHashing()
		}
		o.Policy = upstream.RingHash
	case typeURL((*maglevv3.Maglev)(nil)):
		var l maglevv3.Maglev
		if c.decode(path, a, &l) {
			checkFields(c.report, path, &l, maglevFields)
			c.table(path, l.GetTableSize(), o)
			c.consistent(path, l.GetConsistentHashingLbConfig(), o)
		}
		o.Policy = upstream.Maglev
	case typeURL((*providedv3.ClusterProvided)(nil)):
		o.Policy = upstream.ClusterProvided
	default:
		return false
	}
	return true
}

func (c *compiler) consistent(path string, m *commonlbv3.ConsistentHashingLbConfig, o *upstream.Config) {
	if m != nil {
		checkFields(c.report, fields.At(path, "consistent_hashing_lb_config"), m, hashLBFields)
		o.HashByHostname = o.HashByHostname || m.GetUseHostnameForHashing()
	}
}
