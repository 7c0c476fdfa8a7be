package seen_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter/flow"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/reach"
	"sluice/filter/policy/seen"
)

func addrs(texts ...string) (all []netip.Addr) {
	for _, t := range texts {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

// cluster has a Deployment with pods, a StatefulSet without pods, two single pods that policies treat
// differently, a node, a Service and a range.
func cluster() *reach.Map {
	web := policy.Ref{Kind: "Deployment", Namespace: "shop", Name: "web"}
	pod := func(name, addr string, owner policy.Ref, l labels.Set) *policy.Pod {
		return &policy.Pod{Namespace: "shop", Name: name, Labels: l, Owner: owner, Node: "n1", Hosts: addrs("192.0.2.1"), Addrs: addrs(addr)}
	}
	cart := policy.Ref{Kind: "StatefulSet", Namespace: "shop", Name: "cart"}
	range8 := policy.Peer{Block: &policy.Block{CIDR: netip.MustParsePrefix("198.51.100.0/24")}}
	var deny policy.Policy
	deny.Ref, deny.Tier, deny.Isolates = policy.Ref{Kind: "NetworkPolicy", Namespace: "shop", Name: "db"}, policy.NetworkPolicy, [2]bool{false, true}
	deny.Subject = policy.Subject{Namespace: "shop", Pods: labels.SelectorFromSet(labels.Set{"app": "db"})}
	deny.Rules[1] = []policy.Rule{{Action: policy.Accept, Peers: []policy.Peer{range8}}}
	return reach.New(inventory.New(inventory.Objects{
		Pods: []*policy.Pod{
			pod("web-7d9-a", "10.0.0.1", web, labels.Set{"app": "web", "pod-template-hash": "7d9"}), pod("web-7d9-b", "10.0.0.2", web, labels.Set{"app": "web", "pod-template-hash": "7d9"}),
			pod("db", "10.0.0.3", policy.Ref{}, labels.Set{"app": "db"}),
			pod("plain", "10.0.0.4", policy.Ref{}, nil),
		},
		Workloads: []*kubepod.Workload{
			{Ref: cart, Pod: &policy.Pod{Namespace: "shop", Name: "cart", Labels: labels.Set{"app": "cart"}}},
		},
		Nodes:    []*policy.Node{{Name: "n1", Addrs: addrs("192.0.2.1")}},
		Policies: []*policy.Policy{&deny},
		Services: []*corev1.Service{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1"}}},
	}))
}

func podEnd(name string, l map[string]string) *flow.End {
	return &flow.End{Kind: flow.PodEnd, Namespace: "shop", Pod: name, Labels: l}
}

var begin = time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)

// record returns an allowed flow to port 80.
func record(from, into *flow.End, src, dst string) *flow.Record {
	r := &flow.Record{Time: begin, Event: "allowed", From: from, Into: into, Protocol: "TCP", DstPort: 80}
	r.Src, _ = netip.ParseAddr(src)
	r.Dst, _ = netip.ParseAddr(dst)
	return r
}

func denied(r *flow.Record, reason string) *flow.Record {
	r.Event, r.Reason = "denied", reason
	return r
}

// text describes all counts of a tally.
func text(t *seen.Tally) string {
	var lines []string
	t.Each(func(at seen.At, c seen.Count) {
		name := func(u seen.Unit) string {
			if u.Pod != nil {
				return u.Pod.String()
			}
			return u.Name
		}
		own := ""
		if at.OwnNode {
			own = " on its own node"
		}
		lines = append(lines, fmt.Sprintf("%s → %s %s %d%s: %d allowed, %d denied", name(at.From), name(at.To), at.Protocol, at.Port, own, c.Allowed, c.Denied))
	})
	for _, l := range t.LeftOut() {
		lines = append(lines, fmt.Sprintf("%d %s %v", l.Flows, l.Why, l.Examples))
	}
	return strings.Join(lines, "\n")
}

func TestEnds(t *testing.T) {
	db := podEnd("db", nil)
	host, world := &flow.End{Kind: flow.HostEnd, Node: "n1"}, &flow.End{Kind: flow.WorldEnd}
	workload := &flow.End{Kind: flow.PodEnd, Namespace: "shop", Workload: &flow.Workload{Kind: "Deployment", Name: "web"}}
	tests := map[string]struct {
		r    *flow.Record
		want string
	}{
		"by name, though another pod has the address": {record(podEnd("web-7d9-b", nil), db, "10.0.0.4", "10.0.0.3"), "shop/web → shop/db TCP 80: 1 allowed, 0 denied"},
		"by workload":                           {record(workload, db, "", ""), "shop/web → shop/db TCP 80: 1 allowed, 0 denied"},
		"by the beginning of the name":          {record(podEnd("web-5c8-x", nil), db, "", ""), "shop/web → shop/db TCP 80: 1 allowed, 0 denied"},
		"of a StatefulSet that has not run yet": {record(podEnd("cart-0", nil), db, "", ""), "shop/cart → shop/db TCP 80: 1 allowed, 0 denied"},
		"not by the beginning, with other labels": {record(podEnd("web-tools", map[string]string{"app": "tools"}), db, "", ""),
			"1 flows with ends that are not in these manifests [{shop/web-tools 1}]"},
		"by labels":                  {record(podEnd("blue-5c8-x", map[string]string{"app": "web", "pod-template-hash": "5c8"}), db, "", ""), "shop/web → shop/db TCP 80: 1 allowed, 0 denied"},
		"by address, without a name": {record(nil, db, "10.0.0.1", "10.0.0.3"), "shop/web → shop/db TCP 80: 1 allowed, 0 denied"},
		"not by address, with the name of another pod": {record(podEnd("gone", nil), db, "10.0.0.1", "10.0.0.3"), "1 flows with ends that are not in these manifests [{shop/gone 1}]"},
		"own node": {record(host, db, "192.0.2.1", "10.0.0.3"), "n1 → shop/db TCP 80 on its own node: 1 allowed, 0 denied"},
		"another node that is not in the manifests": {record(&flow.End{Kind: flow.RemoteNodeEnd, Node: "n9"}, db, "192.0.2.9", "10.0.0.3"), "n1 → shop/db TCP 80: 1 allowed, 0 denied"},
		"a range":   {record(world, db, "198.51.100.7", "10.0.0.3"), "198.51.100.0/24 → shop/db TCP 80: 1 allowed, 0 denied"},
		"the world": {record(world, db, "203.0.113.7", "10.0.0.3"), "world → shop/db TCP 80: 1 allowed, 0 denied"},
		"the world, though a pod has the address now": {record(world, db, "10.0.0.1", "10.0.0.3"), "world → shop/db TCP 80: 1 allowed, 0 denied"},
		"a Service's address":                         {record(db, world, "10.0.0.3", "10.96.0.1"), "1 flows to addresses of Services, before their translation [{shop/web 1}]"},
		"a denial":                                    {denied(record(world, db, "203.0.113.7", ""), "ingress-denied"), "world → shop/db TCP 80: 0 allowed, 1 denied"},
		"a denial for another reason":                 {denied(record(world, db, "203.0.113.7", ""), "malformed"), "1 denied for other reasons than policies [{malformed 1}]"},
		"a port that could not be read":               {&flow.Record{Event: "allowed", From: db, Into: db, Protocol: "TCP", Transport: "opaque"}, "1 flows whose ports could not be read []"},
		"ICMPv6":                                      {&flow.Record{Event: "allowed", From: podEnd("web-7d9-a", nil), Into: db, Protocol: "ICMPv6"}, "shop/web → shop/db ICMP 0: 1 allowed, 0 denied"},
		"another protocol":                            {&flow.Record{Event: "allowed", From: db, Into: db, Protocol: "GRE"}, "1 flows of other protocols than TCP, UDP, SCTP and ICMP [{GRE 1}]"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tally := seen.New(cluster(), false)
			tally.Add(tt.r, time.Time{})
			if got := text(tally); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
			if tally.Flows() != 1 {
				t.Errorf("%d flows", tally.Flows())
			}
		})
	}
}

func TestByPod(t *testing.T) {
	tally := seen.New(cluster(), true)
	tally.Add(record(podEnd("web-7d9-b", nil), podEnd("db", nil), "", ""), time.Time{})
	tally.Add(record(podEnd("web-5c8-x", nil), podEnd("db", nil), "", ""), time.Time{}) // it counts for another pod
	if got, want := text(tally), "shop/web-7d9-a → shop/db TCP 80: 1 allowed, 0 denied\nshop/web-7d9-b → shop/db TCP 80: 1 allowed, 0 denied"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Each connection has a record of its begin and a record of its end. If the begin is not in the files, the
// record of the end counts. The times are those of all records.
func TestCount(t *testing.T) {
	tally := seen.New(cluster(), false)
	at := func(minute int, event string) *flow.Record {
		r := record(podEnd("web-7d9-a", nil), podEnd("db", nil), "", "")
		r.Time, r.Event = begin.Add(time.Duration(minute)*time.Minute), event
		return r
	}
	long := at(5, "ended")
	long.Seconds = 3600
	for _, r := range []*flow.Record{at(1, "allowed"), at(2, "ended"), long, at(3, "denied")} {
		r.Reason = map[bool]string{true: "egress-denied"}[r.Event == "denied"]
		tally.Add(r, time.Time{})
	}
	missing := &flow.Record{Event: "left-out", Count: 7}
	tally.Add(missing, time.Time{})
	for _, seconds := range []float64{60, 3600} {
		tally.Add(&flow.Record{Time: begin.Add(9 * time.Hour), Event: "unrecorded", Missing: "all", Seconds: seconds}, time.Time{})
	}
	if want := (seen.Gaps{Periods: 2, Longest: 3600}); tally.Gaps() != want {
		t.Errorf("gaps %+v, want %+v", tally.Gaps(), want)
	}
	tally.Each(func(_ seen.At, c seen.Count) {
		got := fmt.Sprint(c.Allowed, c.Denied, c.First.Sub(begin), c.Last.Sub(begin), c.LastAllowed.Sub(begin), c.LastDenied.Sub(begin))
		if want := "2 1 -55m0s 5m0s 2m0s 3m0s"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
	first, last := tally.Span()
	if tally.Missing() != 7 || tally.Flows() != 3 || first.Sub(begin) != -55*time.Minute || last.Sub(begin) != 5*time.Minute {
		t.Errorf("%d missing, %d flows, %s to %s", tally.Missing(), tally.Flows(), first, last)
	}
}

// A scan of all ports from a million addresses costs bounded memory. The flows that are not counted at a
// port are counted as left out.
func TestMemoryIsBounded(t *testing.T) {
	tally := seen.New(cluster(), false)
	before := heap()
	const flows = 1_000_000
	for i := range flows {
		r := denied(record(&flow.End{Kind: flow.WorldEnd}, podEnd([]string{"db", "plain", "web-7d9-a", "cart-0", fmt.Sprint("gone-", i)}[i%5], nil), "", ""), "ingress-denied")
		r.Src, r.DstPort = netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), uint16(i/5%65535)+1
		tally.Add(r, time.Time{})
	}
	if used := heap() - before; used > 100<<20 {
		t.Errorf("%d MB are used", used>>20)
	}
	if tally.Flows() != flows {
		t.Errorf("%d flows of %d are counted", tally.Flows(), flows)
	}
	if got := text(tally); !strings.Contains(got, "flows at more ports than are counted") || !strings.Contains(got, "200000 flows with ends that are not in these manifests") {
		t.Errorf("what is left out is missing in %s", got[max(0, len(got)-500):])
	}
	runtime.KeepAlive(tally)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
