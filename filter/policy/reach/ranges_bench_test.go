package reach_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
)

// BenchmarkCompareRanges compares two clusters of 100 pods. They have a policy with 2,000 ranges, of
// which the second lacks one.
func BenchmarkCompareRanges(b *testing.B) {
	var o inventory.Objects
	for i := range 100 {
		o.Pods = append(o.Pods, running(fmt.Sprint("p", i), "", fmt.Sprint("n=", i%10), i+1))
	}
	p := isolating("ranges", "n=1")
	rule := policy.Rule{Action: policy.Accept}
	for i := range 2000 {
		rule.Peers = append(rule.Peers, policy.Peer{Block: &policy.Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{203, byte(i >> 8), byte(i), 0}), 24)}})
	}
	p.Rules[filter.Ingress] = []policy.Rule{rule}
	q := *p
	rule.Peers = slices.Clone(rule.Peers[1:])
	rule.Peers[0].Pods, rule.Peers[0].Block = labels.Everything(), nil
	q.Rules[filter.Ingress] = []policy.Rule{rule}
	later := o
	o.Policies, later.Policies = []*policy.Policy{p}, []*policy.Policy{&q}
	before, after := inventory.New(o), inventory.New(later)
	for b.Loop() {
		d := reach.Compare(before, after)
		b.ReportMetric(float64(len(d.Changes)), "changes")
	}
}
