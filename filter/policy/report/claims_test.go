package report

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
)

// The claims of the summary about addresses outside the cluster agree with Decide for every packet that
// the test tries.
func TestClaimsAboutTheOutside(t *testing.T) {
	none, open := 0, 0
	for seed := range uint64(300) {
		d := newDice(seed)
		v := inventory.New(d.objects())
		r := New(reach.New(v), Options{Namespaces: []string{"pci"}})
		var text []string
		for _, s := range r.summary(newWords(r)) {
			text = append(text, s.Text)
		}
		summary := strings.Join(text, "\n")
		closedIn := strings.Contains(summary, "nothing on the Internet reaches it directly")
		closedOut := strings.Contains(summary, "It can reach no address outside the cluster")
		in, out := false, false
		for _, pod := range places(t, r, v, false) {
			if !r.within(pod.party) || pod.party.Kind != reach.Pods {
				continue
			}
			for _, far := range places(t, r, v, true) {
				if far.party.Kind != reach.Outside || far.addr.Is4() != pod.addr.Is4() {
					continue
				}
				in = in || anyAllowed(v, far, pod)
				out = out || anyAllowed(v, pod, far)
			}
		}
		if in && closedIn || out && closedOut {
			t.Fatalf("seed %d: in %t, out %t, but the summary is\n%s", seed, in, out, summary)
		}
		if closedIn {
			none++
		}
		if in {
			open++
		}
	}
	if none == 0 || open == 0 {
		t.Errorf("%d clusters let nothing in, and %d something", none, open)
	}
}

func anyAllowed(v *inventory.Inventory, from, to place) bool {
	return slices.ContainsFunc(keys(from.addr, to.addr), func(k filter.Key) bool {
		return v.Decide(inventory.Flow{From: from.end, To: to.end, Key: k}).Action == filter.Allow
	})
}

// The report has different names for parts of a workload and for workloads with equal names, and lists
// pods that have ended.
func TestNames(t *testing.T) {
	var o inventory.Objects
	for i, kind := range []string{"StatefulSet", "StatefulSet", "StatefulSet", "DaemonSet"} {
		o.Pods = append(o.Pods, &policy.Pod{
			Namespace: "pci", Name: fmt.Sprint("p", i), Labels: labels.Set{"app": []string{"a", "b", "b", "b"}[i]},
			Owner: policy.Ref{Kind: kind, Namespace: "pci", Name: "web"}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})},
		})
	}
	ended := *o.Pods[0]
	ended.Name, ended.Ended, ended.Addrs = "done", "Succeeded", nil
	o.Pods = append(o.Pods, &ended)
	o.Policies = []*policy.Policy{{
		Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "pci", Name: "n"}, Tier: policy.NetworkPolicy, Isolates: [2]bool{true, true},
		Subject: policy.Subject{Namespace: "pci", Pods: selector("a")},
	}}
	text := New(reach.New(inventory.New(o)), Options{Namespaces: []string{"pci"}}).Text()
	for _, want := range []string{
		"pci/statefulset/web part 1 (1 of 3 pods)", "pci/statefulset/web part 2 (2 of 3 pods)", "pci/daemonset/web",
		"2 workloads (4 pods)", "Left out: 1 pod that has ended: pci/done", "  pci/statefulset/web part 2 (2 of 3 pods)  pci/p1, pci/p2\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
}
