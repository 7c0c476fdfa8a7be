package reach_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/reach"
)

// running returns a pod of a workload, "kind/name" or empty, with labels as in "app=web".
func running(name, workload, set string, n int) *policy.Pod {
	p := &policy.Pod{Namespace: "shop", Name: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})}}
	p.Labels, _ = labels.ConvertSelectorToLabelsMap(set)
	if kind, of, is := strings.Cut(workload, "/"); is {
		p.Owner = policy.Ref{Kind: kind, Namespace: "shop", Name: of}
	}
	return p
}

func template(workload, set string) *kubepod.Workload {
	kind, name, _ := strings.Cut(workload, "/")
	ref := policy.Ref{Kind: kind, Namespace: "shop", Name: name}
	pod := running(name, workload, set, 0)
	pod.Addrs = nil
	return &kubepod.Workload{Ref: ref, Pod: pod}
}

// isolating returns a policy that isolates the pods with a label.
func isolating(name, set string) *policy.Policy {
	sel, err := labels.Parse(set)
	if err != nil {
		panic(err)
	}
	return &policy.Policy{
		Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "shop", Name: name}, Tier: policy.NetworkPolicy,
		Subject: policy.Subject{Namespace: "shop", Pods: sel}, Isolates: [2]bool{true, true},
	}
}

// Workloads match even if their pods have other names. Pods of a workload that policies tell apart
// match by their names or by their labels.
func TestMatches(t *testing.T) {
	old := func(pods ...*policy.Pod) inventory.Objects { return inventory.Objects{Pods: pods} }
	tests := map[string]struct {
		before, after inventory.Objects
		want          string
	}{
		"a rollout": {
			old(running("web-1-a", "Deployment/web", "app=web,pod-template-hash=1", 1), running("web-1-b", "Deployment/web", "app=web,pod-template-hash=1", 2)),
			old(running("web-2-c", "Deployment/web", "app=web,pod-template-hash=2", 3)),
			"shop/web: shop/web > shop/web",
		},
		"a cluster and Git": {
			old(running("web-1-a", "Deployment/web", "app=web", 1)),
			inventory.Objects{Workloads: []*kubepod.Workload{template("Deployment/web", "app=web")}},
			"shop/web: shop/web > shop/web",
		},
		"another kind": {
			old(running("web-1-a", "Deployment/web", "app=web", 1)),
			old(running("web-0", "StatefulSet/web", "app=web", 1)),
			"shop/web: shop/web > shop/web",
		},
		"a pod becomes a workload": {
			old(running("web", "", "app=web", 1)),
			old(running("web-0", "StatefulSet/web", "app=web", 1)),
			"shop/web: shop/web > shop/web",
		},
		"new and gone": {
			old(running("a", "", "", 1)), old(running("b", "", "", 1)),
			"shop/a: shop/a > -, shop/b: - > shop/b",
		},
		"replicas by name": {
			old(running("web-0", "StatefulSet/web", "app=web", 1), running("web-1", "StatefulSet/web", "app=web,x=1", 2)),
			old(running("web-0", "StatefulSet/web", "app=web,x=1", 1), running("web-1", "StatefulSet/web", "app=web", 2)),
			"shop/web-0: shop/web-0 > shop/web-0, shop/web-1: shop/web-1 > shop/web-1",
		},
		"replicas by labels": {
			old(running("web-a", "Deployment/web", "app=web,pod-template-hash=1", 1), running("web-b", "Deployment/web", "app=web,x=1,pod-template-hash=2", 2)),
			old(running("web-c", "Deployment/web", "app=web,pod-template-hash=3", 1), running("web-d", "Deployment/web", "app=web,x=1,pod-template-hash=4", 2)),
			"shop/web-c: shop/web-a > shop/web-c, shop/web-d: shop/web-b > shop/web-d",
		},
		"replicas are now equal": {
			old(running("web-a", "Deployment/web", "app=web", 1), running("web-b", "Deployment/web", "app=web,x=1", 2)),
			old(running("web-c", "Deployment/web", "app=web", 1)),
			"shop/web (before: shop/web-a): shop/web-a > shop/web, shop/web (before: shop/web-b): shop/web-b > shop/web",
		},
		"scaled": {
			old(running("web-0", "StatefulSet/web", "app=web", 1)),
			old(running("web-0", "StatefulSet/web", "app=web", 1), running("web-1", "StatefulSet/web", "app=web", 2)),
			"shop/web: shop/web > shop/web",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.before.Policies, tt.after.Policies = []*policy.Policy{isolating("x", "x=1")}, []*policy.Policy{isolating("x", "x=1")}
			var got []string
			for _, m := range reach.Compare(inventory.New(tt.before), inventory.New(tt.after)).Matches {
				if m.Party().Kind == reach.Pods {
					got = append(got, fmt.Sprintf("%s: %s > %s", m.Name, nameOf(m.Old), nameOf(m.New)))
				}
			}
			slices.Sort(got)
			if text := strings.Join(got, ", "); text != tt.want {
				t.Errorf("%s\nwant %s", text, tt.want)
			}
		})
	}
}

func nameOf(p *reach.Party) string {
	if p == nil {
		return "-"
	}
	return p.Name
}

// The names of parties are unique, and name the pods or the workload in them.
func TestPartyNames(t *testing.T) {
	o := inventory.Objects{
		Pods: []*policy.Pod{
			running("web-0", "StatefulSet/web", "app=web", 1), running("web-1", "StatefulSet/web", "app=web", 2),
			running("web-a", "Deployment/web", "app=web", 3),
			running("db-a", "Deployment/db", "app=db", 4), running("db-b", "Deployment/db", "app=db,x=1", 5),
			running("one", "", "", 6),
		},
		Nodes:    []*policy.Node{{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, {Name: "n2", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}},
		Policies: []*policy.Policy{isolating("x", "x=1")},
	}
	host := running("proxy-a", "DaemonSet/proxy", "", 0)
	host.HostNetwork, host.Addrs, host.Hosts = true, nil, []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	ended := running("job", "", "", 7)
	ended.Ended = "Succeeded"
	o.Pods = append(o.Pods, host, ended)
	m := reach.New(inventory.New(o))
	var got []string
	for _, p := range m.Parties {
		got = append(got, p.Kind.String()+" "+p.Name)
	}
	want := "pods shop/db-a, pods shop/db-b, pods shop/deployment/web, pods shop/one, host-network shop/proxy, pods shop/statefulset/web, nodes nodes, outside world"
	if text := strings.Join(got, ", "); text != want {
		t.Errorf("%s\nwant %s", text, want)
	}
	if len(m.LeftOut) != 1 || m.LeftOut[0].Pod != ended || !strings.Contains(m.LeftOut[0].Why.Error(), "has ended") {
		t.Errorf("left out: %v", m.LeftOut)
	}
}

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }
