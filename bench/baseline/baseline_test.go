package baseline_test

import (
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"sluice/bench/baseline"
	"sluice/bench/testbed/cluster"
	"sluice/bench/testbed/lab"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// walk evaluates the rules for the first packet of a flow, as iptables does.
func walk(r *baseline.Rules, chain string, k filter.Key) (dropped bool) {
	sets := make(map[string]baseline.Set)
	for _, s := range r.Sets {
		sets[s.Name] = s
	}
	var visit func(chain string) bool
	visit = func(chain string) bool {
		for _, rule := range r.In[chain] {
			if !matches(rule, sets, k) {
				continue
			}
			switch rule.Target {
			case baseline.Return:
				return false
			case baseline.Drop:
				return true
			}
			if visit(rule.Target) {
				return true
			}
		}
		return false
	}
	return visit(chain)
}

func matches(r baseline.Rule, sets map[string]baseline.Set, k filter.Key) bool {
	src, dst := k.SrcAddr(), k.DstAddr()
	if r.Established || r.Src.IsValid() && r.Src != src || r.Dst.IsValid() && r.Dst != dst {
		return false
	}
	if r.Proto != 0 && r.Proto != k.Protocol || r.Last != 0 && (k.Port < r.First || k.Port > r.Last) {
		return false
	}
	if r.Set == "" {
		return true
	}
	a := dst
	if r.Side == filter.Ingress {
		a = src
	}
	s := sets[r.Set]
	if s.Kind == "hash:ip,port" {
		return s.Has(a, k.Protocol, k.Port)
	}
	return s.Has(a, 0, 0)
}

// read returns a cluster as input of Write.
func read(c *cluster.Cluster) baseline.Cluster {
	return baseline.Cluster{Namespaces: c.Namespaces, Pods: kubepod.ReadAll(c.Pods), Policies: netpol.ReadAll(c.Policies)}
}

// TestSameVerdicts compares the verdicts of the rules with Sluice's decisions. A comparison
// of contenders that enforce different policies would be meaningless.
func TestSameVerdicts(t *testing.T) {
	for _, o := range []cluster.Options{
		{Pods: 10, Policies: 1},
		{Pods: 200, Policies: 40},
		{Pods: 300, Policies: 30, Namespaces: 6},
	} {
		c, w := cluster.New(3, o), policy.NewStore()
		c.Fill(w)
		snapshot, _ := w.Commit()
		var all []netip.Addr
		for _, p := range c.Pods {
			all = append(all, netip.MustParseAddr(p.Status.PodIP))
		}
		rules := baseline.Write(read(c), all)
		keys := c.Keys(1, 1500)
		// Add flows to addresses outside of the cluster, which egress rules with an ipBlock
		// match, and flows over UDP.
		for _, k := range c.Keys(2, 300) {
			out := netip.AddrFrom4([4]byte{203, 0, byte(k.Port), byte(k.Port >> 3)})
			keys = append(keys, filter.NewKey(k.SrcAddr(), out, filter.TCP, k.Port), filter.NewKey(k.SrcAddr(), k.DstAddr(), filter.UDP, k.Port))
		}
		var seen [2]int
		for _, k := range keys {
			v := snapshot.Decide(k)
			seen[v.Action]++
			// A pod's packet to itself does not leave the pod.
			if dropped := walk(rules, baseline.Root, k); dropped != (v.Action == filter.Deny) && k.Src != k.Dst {
				t.Fatalf("%+v: %s: Sluice decides %s (%s); dropped by the rules: %v", o, k, v.Action, v.Reason, dropped)
			}
		}
		if seen[filter.Allow] < 200 || seen[filter.Deny] < 200 {
			t.Errorf("%+v: of %d flows %d are denied, %d allowed", o, len(keys), seen[filter.Deny], seen[filter.Allow])
		}
	}
}

// TestOnlyLocalPods checks that pods of other nodes have no chains.
func TestOnlyLocalPods(t *testing.T) {
	c := cluster.New(1, cluster.Options{Pods: 100, Policies: 10})
	local := []netip.Addr{netip.MustParseAddr(c.Pods[3].Status.PodIP)}
	r := baseline.Write(read(c), local)
	for _, rule := range r.In[baseline.Root][1:] {
		if rule.Src != local[0] && rule.Dst != local[0] {
			t.Errorf("%+v is not about %s", rule, local[0])
		}
	}
	if len(r.Chains) < 2 {
		t.Error("the pod has no chain")
	}
	c.Pods[3].Status.Phase = corev1.PodSucceeded
	if r = baseline.Write(read(c), local); len(r.Chains) > 1 {
		t.Errorf("a pod that has ended has chains: %v", r.Chains)
	}
}

// TestKernelAcceptsRules loads the rules into the kernel.
func TestKernelAcceptsRules(t *testing.T) {
	l := lab.ForTest(t, lab.Options{})
	if _, err := exec.LookPath("ipset"); err != nil {
		t.Skip("needs ipset: install the package ipset")
	}
	c := cluster.New(3, cluster.Options{Pods: 400, Policies: 120, Namespaces: 4})
	var all []netip.Addr
	for _, p := range c.Pods {
		all = append(all, netip.MustParseAddr(p.Status.PodIP))
	}
	r := baseline.Write(read(c), all)
	kinds := make(map[string]bool)
	for _, s := range r.Sets {
		kinds[s.Kind] = true
	}
	if len(kinds) != 3 {
		t.Errorf("kinds of sets: %v, want all three to be tried", kinds)
	}
	if err := r.Apply(l.Nodes[0]); err != nil {
		t.Fatal(err)
	}
	out, err := l.Nodes[0].Output(exec.Command("iptables-save", "-t", "filter"))
	if err != nil {
		t.Fatal(err)
	}
	want := 1
	for _, rules := range r.In {
		want += len(rules)
	}
	if got := strings.Count(out, "\n-A "); got != want {
		t.Errorf("the kernel has %d rules, want %d", got, want)
	}
}

// TestBaselineTracksConnections checks that the node tracks connections of both families: without that,
// a connection costs less than on any node with an agent.
func TestBaselineTracksConnections(t *testing.T) {
	l := lab.ForTest(t, lab.Options{})
	if err := baseline.ApplyBaseline(l.Nodes[0]); err != nil {
		t.Fatal(err)
	}
	web, err := l.AddPod("web")
	if err == nil {
		err = web.Serve("tcp", 80)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range web.Addrs() {
		if r := l.Outside.Connect(t.Context(), "tcp", netip.AddrPortFrom(a, 80), time.Minute); r.Err != nil {
			t.Fatal(r.Err)
		}
		var tracked []byte
		if err := l.Nodes[0].Do(func() (err error) {
			tracked, err = os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if got, want := strings.TrimSpace(string(tracked)), strconv.Itoa(i+1); got != want {
			t.Errorf("after a connection to %s, the node tracks %s connections, want %s", a, got, want)
		}
	}
}
