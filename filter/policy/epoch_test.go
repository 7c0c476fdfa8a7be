package policy_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sluice/filter/policy"
)

// TestEpochs lists, for each event, the endpoints that get a new epoch. An endpoint must get
// a new epoch if a verdict about it may have changed: otherwise a cache would answer with a
// stale verdict. No other endpoint may get a new epoch: that would invalidate verdicts that
// still hold.
func TestEpochs(t *testing.T) {
	const (
		toDBFromFrontend = `default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}]}]}`
		namedPort        = `default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: redis}]}]}`
		twoOfCluster     = `
			p: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {project: myproject}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
			q: {tier: Admin, priority: 2, subject: {namespaces: {matchLabels: {project: myproject}}}, ingress: [{action: Accept, from: [{namespaces: {}}]}]}`
		toNodes = `p: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {project: myproject}}}, egress: [{action: Deny, to: [{nodes: {matchLabels: {pool: a}}}]}]}`
		aNode   = `{kind: Node, metadata: {name: n1, labels: {pool: a}}, status: {addresses: [{type: InternalIP, address: 10.9.0.9}]}}` + "\n"
		onNode  = `{kind: Pod, metadata: {namespace: mine, name: job, labels: {role: frontend}}, spec: {nodeName: n1}, status: {podIP: 10.0.0.3, hostIP: 10.9.0.2}}`
		pod     = `{kind: Pod, metadata: {namespace: %s, name: %s, labels: %s}, status: {podIP: %s}}`
	)
	tests := []struct {
		name          string
		before, event step
		want          []string // the ends with a new epoch
	}{
		{name: "nothing"},
		{name: "equal objects again",
			before: step{policies: toDBFromFrontend}, event: step{policies: toDBFromFrontend, objects: fmt.Sprintf(pod, "mine", "job", "{role: frontend}", "10.0.0.3")}},
		{name: "a pod starts elsewhere",
			before: step{policies: toDBFromFrontend}, event: step{objects: fmt.Sprintf(pod, "default", "new", "{role: frontend}", "10.0.0.8")}, want: []string{"new"}},
		{name: "a pod ends elsewhere",
			before: step{policies: toDBFromFrontend}, event: step{remove: "Pod bare/odd"}, want: []string{"odd"}},
		{name: "a policy is added", event: step{policies: toDBFromFrontend}, want: []string{"db", "db6"}},
		{name: "a policy is deleted", before: step{policies: toDBFromFrontend}, event: step{remove: "NetworkPolicy default/p"}, want: []string{"db", "db6"}},
		{name: "a policy's rules change", before: step{policies: toDBFromFrontend}, event: step{policies: namedPort}, want: []string{"db", "db6"}},
		{name: "a policy that selects no pod is added", event: step{policies: `bare/p: {podSelector: {matchLabels: {role: none}}, ingress: [{from: [{podSelector: {matchLabels: {a: b}}}]}]}`}},
		{name: "a label that no policy names",
			before: step{policies: toDBFromFrontend}, event: step{objects: fmt.Sprintf(pod, "mine", "job", "{role: frontend, version: v2}", "10.0.0.3")}},
		{name: "a label that a peer names",
			before: step{policies: toDBFromFrontend}, event: step{objects: fmt.Sprintf(pod, "default", "web", "{role: backend}", "10.0.0.2")}, want: []string{"web", "web6"}},
		{name: "a label that a subject names",
			before: step{policies: toDBFromFrontend}, event: step{objects: fmt.Sprintf(pod, "default", "web", "{role: db}", "10.0.0.2")}, want: []string{"web", "web6"}},
		{name: "a namespace label that no policy names", before: step{policies: accessDemo2},
			event: step{objects: `{kind: Namespace, metadata: {name: mine, labels: {project: myproject, owner: me}}}`}},
		{name: "a namespace label that a peer names", before: step{policies: accessDemo2},
			event: step{objects: `{kind: Namespace, metadata: {name: mine}}`}, want: []string{"job"}},
		{name: "a named port", before: step{policies: namedPort},
			event: step{objects: `{kind: Pod, metadata: {namespace: default, name: web, labels: {role: frontend}},
				spec: {containers: [{name: a, ports: [{name: redis, containerPort: 7000}]}]}, status: {podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}}`},
			want: []string{"web", "web6"}},
		{name: "the node of a pod", event: step{objects: `{kind: Pod, metadata: {namespace: mine, name: job, labels: {role: frontend}}, status: {podIP: 10.0.0.3, hostIP: 10.9.0.2}}`},
			want: []string{"job"}},
		{name: "a newer pod takes over an address", event: step{objects: `{kind: Pod, metadata: {namespace: mine, name: next, labels: {role: frontend}, creationTimestamp: "2026-01-02T00:00:00Z"}, status: {podIP: 10.0.0.3}}`},
			want: []string{"job"}},
		{name: "a pod of the same name and address", event: step{remove: "Pod mine/job", objects: fmt.Sprintf(pod, "mine", "job", "{role: frontend}", "10.0.0.3")},
			want: []string{"job"}},
		{name: "a policy of the cluster is added", event: step{policies: `p: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {project: myproject}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`},
			want: []string{"job"}},
		{name: "a policy of the cluster without rules is added", event: step{policies: `p: {tier: Admin, priority: 1, subject: {namespaces: {}}}`}},
		{name: "the priority of a policy of the cluster", before: step{policies: twoOfCluster},
			event: step{policies: strings.Replace(twoOfCluster, "priority: 2", "priority: 0", 1)}, want: []string{"job"}},
		{name: "a namespace label that a subject names", before: step{policies: twoOfCluster},
			event: step{objects: `{kind: Namespace, metadata: {name: default, labels: {project: myproject}}}`}, want: []string{"db", "db6", "web", "web6"}},
		{name: "a pod label that a subject of the cluster names",
			before: step{policies: `p: {tier: Baseline, priority: 1, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: db}}}}, egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}]}]}`},
			event:  step{objects: fmt.Sprintf(pod, "default", "web", "{role: db}", "10.0.0.2")}, want: []string{"web", "web6"}},
		{name: "a Node that a peer names", before: step{policies: toNodes},
			event: step{objects: `{kind: Node, metadata: {name: n1, labels: {pool: a}}, status: {addresses: [{type: InternalIP, address: 10.9.0.9}]}}`}, want: []string{"job"}},
		{name: "a Node that no peer names", before: step{policies: toNodes},
			event: step{objects: `{kind: Node, metadata: {name: n1, labels: {pool: b}}, status: {addresses: [{type: InternalIP, address: 10.9.0.9}]}}`}},
		{name: "a Node that a peer names, with other labels", before: step{policies: toNodes, objects: aNode},
			event: step{objects: strings.Replace(aNode, "pool: a", "pool: a, zone: z", 1)}},
		{name: "a Node that a peer names, with another address", before: step{policies: toNodes, objects: aNode},
			event: step{objects: strings.Replace(aNode, "10.9.0.9", "10.9.0.8", 1)}, want: []string{"job"}},
		{name: "a Node that a peer names is deleted", before: step{policies: toNodes, objects: aNode}, event: step{remove: "Node n1"}, want: []string{"job"}},
		{name: "a further address of a pod's node", before: step{objects: aNode + "---\n" + onNode},
			event: step{objects: strings.Replace(aNode, "10.9.0.9", "10.9.0.2}, {type: ExternalIP, address: 192.0.2.9", 1)}, want: []string{"job"}},
		{name: "a Node with the addresses that its pods report", before: step{objects: onNode}, event: step{objects: strings.Replace(aNode, "10.9.0.9", "10.9.0.2", 1)}},
		{name: "a pod that finishes", event: step{objects: `{kind: Pod, metadata: {namespace: mine, name: job}, status: {phase: Succeeded, podIP: 10.0.0.3}}`},
			want: []string{"job"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := semanticsRun{t: t, cluster: readCluster(t, smallCluster)}
			r.store = r.cluster.newStore()
			r.apply(test.before)
			before, _ := r.store.Commit()
			epochs := epochsOf(before)
			r.apply(test.event)
			after, changes := r.store.Commit()
			if !maps.Equal(epochsOf(before), epochs) {
				t.Error("the commit changed the snapshot before it")
			}
			var got, changed []string
			for name, addr := range ends {
				a := netip.MustParseAddr(addr)
				if before.Endpoint(a).Epoch() != after.Endpoint(a).Epoch() {
					got = append(got, name)
				}
				if slices.Contains(changes, a) {
					changed = append(changed, name)
				}
			}
			slices.Sort(got)
			slices.Sort(changed)
			if !slices.Equal(got, test.want) || !slices.Equal(changed, test.want) || len(changes) != len(test.want) {
				t.Errorf("new epochs for %q, %d changes with %q among them, want exactly %q in both", got, len(changes), changed, test.want)
			}
			if after.Number() != before.Number()+1 {
				t.Errorf("snapshot %d follows %d", after.Number(), before.Number())
			}
		})
	}
}

func epochsOf(s *policy.Snapshot) map[netip.Addr]uint64 {
	epochs := map[netip.Addr]uint64{}
	for a, e := range s.Endpoints() {
		epochs[a] = e.Epoch()
	}
	return epochs
}

// TestNodeChange changes the node's addresses. The addresses that the node gains or loses
// are reported as changes, and an address that it gains is the node's even if a pod claims it.
func TestNodeChange(t *testing.T) {
	r := semanticsRun{t: t, cluster: readCluster(t, smallCluster)}
	r.store = r.cluster.newStore()
	r.store.Commit()
	r.store.SetNode(addrs("10.9.0.3", "10.0.0.4"))
	s, changes := r.store.Commit()
	slices.SortFunc(changes, netip.Addr.Compare)
	if want := addrs("10.0.0.4", "10.9.0.1", "10.9.0.3"); !slices.Equal(changes, want) {
		t.Errorf("changes %v, want %v", changes, want)
	}
	if name := s.Endpoint(netip.MustParseAddr("10.0.0.4")).String(); name != "node" {
		t.Errorf("10.0.0.4 is the address of %q, want the node, although a pod claims it too", name)
	}
}
