package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// step is a change of the cluster, and the verdicts of some flows after it.
type step struct {
	policies string // set in this step: lines of "namespace/name: {spec}", or "name: {spec}" for a ClusterNetworkPolicy
	objects  string // set in this step: manifests of other objects
	remove   string // lines of "kind namespace/name", removed first
	// flows are lines of "source > destination protocol port = verdict". An end is an
	// address or a key of the map "ends". The verdict is a prefix of what verdictText returns: the
	// action, then the reason, then the policies and the rule of each isolated side.
	flows string
}

// ends maps names to addresses: those in smallCluster and a few others.
var ends = map[string]string{
	"db": "10.0.0.1", "db6": "fd00::1", "web": "10.0.0.2", "web6": "fd00::2", "job": "10.0.0.3", "odd": "10.0.0.4",
	"done": "10.0.0.5", "agent": "10.9.0.3", "new": "10.0.0.8",
	"node": "10.9.0.1", "nodeOfDB": "10.9.0.2", "out": "192.0.2.7", "out6": "2001:db8::7",
}

// semanticsCase is a test case of the meaning of NetworkPolicy, in smallCluster.
type semanticsCase struct {
	name  string
	steps []step
}

// one returns a case with one step.
func one(name, policies, flows string) semanticsCase {
	return semanticsCase{name, []step{{policies: policies, flows: flows}}}
}

// Two policies of the demo.
const (
	accessDemo1 = `default/access-demo1: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{port: 6379}]}]}`
	accessDemo2 = `default/access-demo2: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {project: myproject}}}], ports: [{port: 6379}]}]}`
)

// toDB returns a policy p for db with one ingress rule.
func toDB(rule string) string {
	return "default/p: {podSelector: {matchLabels: {role: db}}, ingress: [" + rule + "]}"
}

// fromDB returns a policy p for db with one egress rule.
func fromDB(rule string) string {
	return "default/p: {podSelector: {matchLabels: {role: db}}, policyTypes: [Egress], egress: [" + rule + "]}"
}

// TestSemantics compares the verdicts in the cases with those of the policy store's snapshot
// (the engine) and of the oracle in oracle_test.go. After each step, it also compares engine and
// oracle for flows between any two addresses in ends. It does not cover address translation,
// replies and live connections, which are not part of a decision: the tests of the iptables rules
// and of conntrack cover them.
func TestSemantics(t *testing.T) {
	for _, c := range slices.Concat(directionCases, peerCases, portCases, trafficCases, changeCases, scenarioCases, clusterCases) {
		t.Run(c.name, func(t *testing.T) {
			r := semanticsRun{t: t, cluster: readCluster(t, smallCluster)}
			r.store = r.cluster.newStore()
			for i, s := range c.steps {
				r.apply(s)
				r.snapshot, _ = r.store.Commit()
				if strings.TrimSpace(s.flows) == "" {
					t.Fatalf("step %d has no flows", i)
				}
				for line := range strings.Lines(s.flows) {
					if line = strings.TrimSpace(line); line != "" {
						r.expect(i, line)
					}
				}
				r.agree(i)
			}
		})
	}
}

// semanticsRun runs a case: it gives the same objects to the engine (store) and to the
// oracle (cluster).
type semanticsRun struct {
	t        *testing.T
	cluster  *cluster
	store    *policy.Store
	snapshot *policy.Snapshot
}

func (r *semanticsRun) apply(s step) {
	r.t.Helper()
	for line := range strings.Lines(s.remove) {
		r.removeObject(strings.TrimSpace(line))
	}
	changed := readCluster(r.t, s.objects)
	for line := range strings.Lines(s.policies) {
		switch line = strings.TrimSpace(line); {
		case line == "":
		case isNamespaced(line):
			changed.Policies = append(changed.Policies, readPolicyLine(r.t, line))
		default:
			changed.Cluster = append(changed.Cluster, readClusterPolicyLine(r.t, line))
		}
	}
	for _, o := range changed.Namespaces {
		r.cluster.Namespaces = set(r.cluster.Namespaces, o)
		r.store.SetNamespace(o.Name, o.Labels)
	}
	for _, o := range changed.Pods {
		r.cluster.Pods = set(r.cluster.Pods, o)
		r.store.SetPod(kubepod.Read(o))
	}
	for _, o := range changed.Policies {
		r.cluster.Policies = set(r.cluster.Policies, o)
		r.store.SetPolicy(netpol.Read(o))
	}
	for _, o := range changed.Cluster {
		r.cluster.Cluster = set(r.cluster.Cluster, o)
		r.store.SetPolicy(clusterpolicy.Read(o))
	}
	for _, o := range changed.Nodes {
		r.cluster.Nodes = set(r.cluster.Nodes, o)
		r.store.SetNodeObject(readNode(o))
	}
}

// isNamespaced reports whether a line is a policy of a namespace: "namespace/name: ...".
func isNamespaced(line string) bool {
	name, _, _ := strings.Cut(line, ":")
	return strings.Contains(name, "/")
}

// readClusterPolicyLine reads "name: {spec}".
func readClusterPolicyLine(t *testing.T, line string) *v1beta1.ClusterNetworkPolicy {
	t.Helper()
	name, spec, _ := strings.Cut(line, ": ")
	o := &v1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := yaml.UnmarshalStrict([]byte(spec), &o.Spec); err != nil {
		t.Fatalf("reading policy %q: %v", line, err)
	}
	return o
}

// readPolicyLine reads a policy in the form "namespace/name: {spec}".
func readPolicyLine(t *testing.T, line string) *networkingv1.NetworkPolicy {
	t.Helper()
	name, spec, _ := strings.Cut(line, ": ")
	o := &networkingv1.NetworkPolicy{}
	o.Namespace, o.Name, _ = strings.Cut(name, "/")
	if err := yaml.UnmarshalStrict([]byte(spec), &o.Spec); err != nil {
		t.Fatalf("reading policy %q: %v", line, err)
	}
	return o
}

// removeObject removes the object of a line "kind namespace/name".
func (r *semanticsRun) removeObject(line string) {
	r.t.Helper()
	kind, rest, _ := strings.Cut(line, " ")
	namespace, name, _ := strings.Cut(rest, "/")
	switch kind {
	case "":
	case "Pod":
		r.cluster.Pods = remove(r.cluster.Pods, namespace, name)
		r.store.DeletePod(namespace, name)
	case "NetworkPolicy":
		r.cluster.Policies = remove(r.cluster.Policies, namespace, name)
		r.store.DeletePolicy(netpol.Ref(namespace, name))
	case "ClusterNetworkPolicy":
		r.cluster.Cluster = remove(r.cluster.Cluster, "", rest)
		r.store.DeletePolicy(clusterpolicy.Ref(rest))
	case "Node":
		r.cluster.Nodes = remove(r.cluster.Nodes, "", rest)
		r.store.DeleteNodeObject(rest)
	case "Namespace":
		r.cluster.Namespaces = remove(r.cluster.Namespaces, "", rest)
		r.store.DeleteNamespace(rest)
	default:
		r.t.Fatalf("cannot remove %q", line)
	}
}

// expect checks one line of flows.
func (r *semanticsRun) expect(step int, line string) {
	r.t.Helper()
	text, want, found := strings.Cut(line, " = ")
	if !found {
		r.t.Fatalf("flow without verdict: %q", line)
	}
	words := strings.Fields(text)
	for i, word := range words {
		if addr, ok := ends[word]; ok {
			words[i] = addr
		}
	}
	f := readFlow(r.t, strings.Join(words, " "))
	got := verdictText(r.snapshot.Decide(f.key()))
	if got != want && !strings.HasPrefix(got, want+" ") {
		r.t.Errorf("step %d: %s = %s, want %s", step, text, got, want)
	}
	action, _, _ := strings.Cut(want, " ")
	if judged := r.cluster.judge(f); judged.Action.String() != action {
		r.t.Errorf("step %d: %s: the oracle decides %s, want %s", step, text, judged, action)
	}
}

// verdictText writes a verdict as in step.flows: "deny ingress-denied
// ingress=default/p,default/q:none". The policies before the colon isolate the pod. After the
// colon is the rule that allows, as in "default/p[0]", or "none". The rule of a
// ClusterNetworkPolicy has no colon before it, and its name after the index, if it has one:
// "ingress=admin/p[0:name]". An Admin rule that passes the flow on comes first, as in
// "ingress=admin/q[1]>default/p:none".
func verdictText(v filter.Verdict) string {
	text := v.Action.String() + " " + v.Reason.String()
	for d, side := range []filter.Side{filter.Egress: v.Egress, filter.Ingress: v.Ingress} {
		if side == (filter.Side{}) {
			continue
		}
		text += fmt.Sprintf(" %s=", filter.Direction(d))
		if side.Passed != nil {
			text += shortRule(side.Passed) + ">"
		}
		if side.Isolation != nil {
			text += strings.Join(side.Isolation.Policies, ",") + ":"
		}
		if side.Rule != nil {
			text += shortRule(side.Rule)
		} else {
			text += "none"
		}
	}
	return text
}

func shortRule(r *filter.Rule) string {
	if r.Name != "" {
		return fmt.Sprintf("%s[%d:%s]", r.PolicyTitle(), r.Index, r.Name)
	}
	return fmt.Sprintf("%s[%d]", r.PolicyTitle(), r.Index)
}

// agree compares engine and oracle about flows between all ends.
func (r *semanticsRun) agree(step int) {
	r.t.Helper()
	for _, src := range ends {
		for _, dst := range ends {
			for _, rest := range []string{"TCP 6379", "TCP 80", "UDP 53", "SCTP 6379", "ICMP", "TCP opaque"} {
				f := readFlow(r.t, src+" > "+dst+" "+rest)
				if d := r.cluster.judge(f).disagreement(r.snapshot.Decide(f.key())); d != "" {
					r.t.Fatalf("step %d: %s: %s", step, f.key(), d)
				}
			}
		}
	}
}

// A malformed part of a policy is reported with the policy, the field, and a hint at what
// would be right. The cases "15 ..." of TestSemantics test the verdicts of such policies.
func TestProblemsNameThePolicyAndTheField(t *testing.T) {
	tests := map[string]string{ // maps a spec to the field of its problem
		`{podSelector: {matchExpressions: [{key: a, operator: Is}]}}`:                                               "spec.podSelector",
		`{policyTypes: [Ingress, Sideways]}`:                                                                        "spec.policyTypes[1]",
		`{ingress: [{}, {from: [{podSelector: {}}, {podSelector: {matchExpressions: [{key: a, operator: In}]}}]}]}`: "spec.ingress[1].from[1].podSelector",
		`{egress: [{to: [{namespaceSelector: {matchExpressions: [{key: a, operator: In}]}}]}]}`:                     "spec.egress[0].to[0].namespaceSelector",
		`{ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}]}`:                                                     "spec.ingress[0].from[0].ipBlock.cidr",
		`{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.02.0.0/16]}}]}]}`:                 "spec.ingress[0].from[0].ipBlock.except[1]",
		`{ingress: [{from: [{}]}]}`: "spec.ingress[0].from[0]",
		`{ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}`: "spec.ingress[0].from[0]",
		`{ingress: [{ports: [{port: 80}, {port: 90, endPort: 80}]}]}`:           "spec.ingress[0].ports[1]",
		`{ingress: [{ports: [{port: 70000}]}]}`:                                 "spec.ingress[0].ports[0].port",
		`{ingress: [{ports: [{endPort: 80}]}]}`:                                 "spec.ingress[0].ports[0].endPort",
		`{ingress: [{ports: [{port: http, endPort: 80}]}]}`:                     "spec.ingress[0].ports[0]",
		`{ingress: [{ports: [{protocol: ICMP}]}]}`:                              "spec.ingress[0].ports[0].protocol",
		`{ingress: [{ports: [{protocol: ""}]}]}`:                                "spec.ingress[0].ports[0].protocol",
	}
	for spec, field := range tests {
		w := policy.NewStore()
		w.SetPolicy(netpol.Read(readPolicyLine(t, "default/p: "+spec)))
		problems := w.Problems()
		if len(problems) != 1 || problems[0].Policy != netpol.Ref("default", "p") || problems[0].Field != field || problems[0].Detail == "" || problems[0].Hint == "" {
			t.Errorf("%s: %v, want one problem in field %s", spec, problems, field)
			continue
		}
		if text := problems[0].Error(); !strings.Contains(text, "default/p") || !strings.Contains(text, field) {
			t.Errorf("%s: %q does not name both the policy and the field", spec, text)
		}
		w.SetPolicy(netpol.Read(readPolicyLine(t, "default/p: {}")))
		if problems := w.Problems(); len(problems) != 0 {
			t.Errorf("%s: corrected, but still %v", spec, problems)
		}
	}
}

// The store treats an IPv4-mapped address as the IPv4 address. It ignores the zone of an
// address, and any text that is not an address.
func TestUnusualAddresses(t *testing.T) {
	w := policy.NewStore()
	w.SetNode([]netip.Addr{netip.MustParseAddr("::ffff:10.9.0.1"), netip.MustParseAddr("fe80::1%eth0")})
	w.SetPod(kubepod.Read(&corev1.Pod{Status: corev1.PodStatus{PodIP: "::ffff:10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "nonsense"}}}}))
	s, _ := w.Commit()
	if s.Counts().Endpoints != 3 {
		t.Errorf("%d endpoints, want 3", s.Counts().Endpoints)
	}
	for _, addr := range addrs("10.9.0.1", "fe80::1") {
		if !s.Endpoint(addr).IsNode() {
			t.Errorf("%s is not the node", addr)
		}
	}
	if e := s.Endpoint(netip.MustParseAddr("10.0.0.1")); e == nil || e.IsNode() {
		t.Errorf("10.0.0.1 is %q, want the pod", e)
	}
}
