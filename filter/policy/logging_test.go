package policy_test

import (
	"fmt"
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/netpol"
)

// logBed is a store with two pods, shop/web and bank/db.
type logBed struct {
	*policy.Store
	t *testing.T
}

var (
	logWeb   = netip.MustParseAddr("10.0.0.1")
	logDB    = netip.MustParseAddr("10.0.0.2")
	logWorld = netip.MustParseAddr("192.0.2.1")
)

func newLogBed(t *testing.T) logBed {
	w := logBed{policy.NewStore(), t}
	w.SetNamespace("shop", nil)
	w.SetNamespace("bank", nil)
	w.SetPod(&policy.Pod{Namespace: "shop", Name: "web", Addrs: []netip.Addr{logWeb}})
	w.SetPod(&policy.Pod{Namespace: "bank", Name: "db", Addrs: []netip.Addr{logDB}})
	return w
}

func logged(level string) map[string]string {
	if level == "" {
		return nil
	}
	return map[string]string{policy.LogAnnotation: level}
}

func (w logBed) namespace(name, level string) {
	w.SetNamespaceLog(name, policy.ReadNamespaceLog(name, logged(level)))
}

// policy isolates the pods of a namespace in one direction. It allows nothing, or everything.
func (w logBed) policy(namespace, name, level string, d networkingv1.PolicyType, allows bool) {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: logged(level)}}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{d}
	if allows && d == networkingv1.PolicyTypeIngress {
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{}}
	} else if allows {
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{}}
	}
	w.SetEncoded(netpol.Encode(p))
}

// admin sets a ClusterNetworkPolicy with a rule about everything that the pods of a namespace receive.
func (w logBed) admin(namespace, level string, action v1beta1.ClusterNetworkPolicyRuleAction) {
	p := &v1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "platform", Annotations: logged(level)}}
	p.Spec = v1beta1.ClusterNetworkPolicySpec{
		Tier:    v1beta1.AdminTier,
		Subject: v1beta1.ClusterNetworkPolicySubject{Namespaces: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": namespace}}},
		Ingress: []v1beta1.ClusterNetworkPolicyIngressRule{{Action: action, From: []v1beta1.ClusterNetworkPolicyIngressPeer{{Namespaces: &metav1.LabelSelector{}}}}},
	}
	w.SetEncoded(clusterpolicy.Encode(p))
}

// level returns the level for a flow. node is the level of the node.
func (w logBed) level(from, to netip.Addr, node filter.LogLevel) (filter.LogLevel, filter.Verdict) {
	s, _ := w.Commit()
	v := s.Decide(filter.NewKey(from, to, filter.TCP, 80))
	return s.Logging().Level(&v, s.Endpoint(from), s.Endpoint(to), node), v
}

const (
	ingress = networkingv1.PolicyTypeIngress
	egress  = networkingv1.PolicyTypeEgress
)

// The policies that decide about a flow set its level. If they have none, the namespaces whose policies
// decide set it, and otherwise the node. If several levels are set, the one that logs more counts.
func TestLogLevel(t *testing.T) {
	for _, tt := range []struct {
		name       string
		node       string
		shop, bank string // the namespaces of web and db
		set        func(w logBed)
		from, to   netip.Addr
		denied     bool
		want       string
	}{
		{"no annotation", "denied", "", "", nil, logWeb, logDB, false, "denied"},
		{"allowed without a policy: the source's namespace", "none", "all", "", nil, logWeb, logDB, false, "all"},
		{"allowed without a policy: the destination's namespace", "none", "", "all", nil, logWeb, logDB, false, "all"},
		{"of two namespaces, more prevails", "none", "denied", "all", nil, logWeb, logDB, false, "all"},
		{"one namespace is silent, the other is as the node", "all", "none", "", nil, logWeb, logDB, false, "all"},
		{"both namespaces are silent", "all", "none", "none", nil, logWeb, logDB, false, "none"},
		{"the world has no namespace: only that of the pod", "all", "none", "", nil, logWeb, logWorld, false, "none"},
		{"neither end is a pod", "denied", "all", "all", nil, logWorld, logWorld.Next(), false, "denied"},

		{"denied at the destination: its namespace", "none", "", "denied", func(w logBed) { w.policy("bank", "p", "", ingress, false) }, logWeb, logDB, true, "denied"},
		{"denied at the destination: not the source's namespace", "none", "all", "", func(w logBed) { w.policy("bank", "p", "", ingress, false) }, logWeb, logDB, true, "none"},
		{"denied at the destination: not a policy of the source that allows", "none", "", "", func(w logBed) {
			w.policy("bank", "p", "", ingress, false)
			w.policy("shop", "p", "all", egress, true)
		}, logWeb, logDB, true, "none"},
		{"denied at the source: its namespace", "none", "denied", "none", func(w logBed) { w.policy("shop", "p", "", egress, false) }, logWeb, logDB, true, "denied"},
		{"denied at the source, to the world", "none", "denied", "", func(w logBed) { w.policy("shop", "p", "", egress, false) }, logWeb, logWorld, true, "denied"},
		{"denied at both ends", "none", "none", "denied", func(w logBed) {
			w.policy("shop", "p", "", egress, false)
			w.policy("bank", "p", "", ingress, false)
		}, logWeb, logDB, true, "denied"},

		{"the policy rather than the namespace", "all", "", "all", func(w logBed) { w.policy("bank", "p", "none", ingress, false) }, logWeb, logDB, true, "none"},
		{"the policy rather than the node", "none", "", "", func(w logBed) { w.policy("bank", "p", "denied", ingress, false) }, logWeb, logDB, true, "denied"},
		{"a policy that allows", "none", "", "none", func(w logBed) { w.policy("bank", "p", "all", ingress, true) }, logWeb, logDB, false, "all"},
		{"of several policies that deny, more prevails", "none", "", "none", func(w logBed) {
			w.policy("bank", "a", "none", ingress, false)
			w.policy("bank", "b", "denied", ingress, false)
			w.policy("bank", "c", "", ingress, false)
		}, logWeb, logDB, true, "denied"},
		{"of several policies, one without a level sets none", "all", "", "all", func(w logBed) {
			w.policy("bank", "a", "none", ingress, false)
			w.policy("bank", "b", "", ingress, false)
		}, logWeb, logDB, true, "none"},

		{"a rule of a ClusterNetworkPolicy that denies", "none", "", "none", func(w logBed) { w.admin("bank", "denied", v1beta1.ClusterNetworkPolicyRuleActionDeny) }, logWeb, logDB, true, "denied"},
		{"a rule of a ClusterNetworkPolicy that accepts", "none", "", "", func(w logBed) { w.admin("bank", "all", v1beta1.ClusterNetworkPolicyRuleActionAccept) }, logWeb, logDB, false, "all"},
		{"a ClusterNetworkPolicy without a level: the pod's namespace", "none", "", "denied", func(w logBed) { w.admin("bank", "", v1beta1.ClusterNetworkPolicyRuleActionDeny) }, logWeb, logDB, true, "denied"},
		{"a rule that passes does not decide", "none", "", "", func(w logBed) { w.admin("bank", "all", v1beta1.ClusterNetworkPolicyRuleActionPass) }, logWeb, logDB, false, "none"},

		{"an unknown value is as no annotation", "denied", "All", "everything", func(w logBed) { w.policy("bank", "p", "true", ingress, false) }, logWeb, logDB, true, "denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newLogBed(t)
			w.namespace("shop", tt.shop)
			w.namespace("bank", tt.bank)
			if tt.set != nil {
				tt.set(w)
			}
			node, _ := filter.ParseLogLevel(tt.node)
			got, v := w.level(tt.from, tt.to, node)
			if denied := v.Action != filter.Allow; denied != tt.denied {
				t.Fatalf("denied: %t (%s)", denied, v.Reason)
			}
			if got.String() != tt.want {
				t.Errorf("level %s, want %s", got, tt.want)
			}
		})
	}
}

// If a packet is denied for another reason than policies, the namespaces of its source and of its
// destination both count. A packet in the middle of a connection has a verdict about the opposite
// direction.
func TestLogLevelWithoutPolicies(t *testing.T) {
	w := newLogBed(t)
	w.namespace("shop", "denied")
	w.namespace("bank", "all")
	w.policy("bank", "p", "", egress, false)
	s, _ := w.Commit()
	web, db := s.Endpoint(logWeb), s.Endpoint(logDB)
	back := s.Decide(filter.NewKey(logDB, logWeb, filter.TCP, 80))
	back.Reason = filter.MidStream
	for _, tt := range []struct {
		name     string
		v        filter.Verdict
		src, dst *policy.Endpoint
		want     filter.LogLevel
	}{
		{"from the pod", filter.Verdict{Reason: filter.Malformed}, web, nil, filter.LogDenied},
		{"to the pod", filter.Verdict{Reason: filter.PodNotKnown}, nil, web, filter.LogDenied},
		{"between the pods", filter.Verdict{Reason: filter.Malformed}, db, web, filter.LogAll},
		{"no end is known", filter.Verdict{Reason: filter.Malformed}, nil, nil, filter.LogNone},
		{"in the middle of a connection", back, web, db, filter.LogAll},
	} {
		if got := s.Logging().Level(&tt.v, tt.src, tt.dst, filter.LogNone); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// A change of the annotation is in the next snapshot. It changes nothing else: no epoch and no digest.
func TestLogChanges(t *testing.T) {
	w := newLogBed(t)
	w.policy("bank", "p", "", ingress, false)
	before, _ := w.Commit()
	if before.Logging() != nil {
		t.Error("without annotations, the snapshot has some")
	}
	version := ""
	for _, step := range []struct {
		do   func()
		most filter.LogLevel
		want filter.LogLevel // of web to db
	}{
		{func() { w.namespace("shop", "all") }, filter.LogAll, filter.LogNone},
		{func() { w.namespace("bank", "denied") }, filter.LogAll, filter.LogDenied},
		{func() { w.namespace("shop", "") }, filter.LogDenied, filter.LogDenied},
		{func() { w.policy("bank", "p", "none", ingress, false) }, filter.LogDenied, filter.LogNone},
		{func() { w.policy("bank", "p", "all", ingress, false) }, filter.LogAll, filter.LogAll},
		{func() { w.policy("bank", "p", "", ingress, false) }, filter.LogDenied, filter.LogDenied},
		{func() { w.namespace("bank", "nonsense") }, filter.LogUnset, filter.LogNone},
	} {
		step.do()
		version += "."
		s, changes := w.Commit()
		v := s.Decide(filter.NewKey(logWeb, logDB, filter.TCP, 80))
		if got := s.Logging().Level(&v, s.Endpoint(logWeb), s.Endpoint(logDB), filter.LogNone); got != step.want || s.Logging().Most() != step.most {
			t.Errorf("step %d: level %s and at most %s, want %s and %s", len(version), got, s.Logging().Most(), step.want, step.most)
		}
		if len(changes) > 0 || s.Digest() != before.Digest() || s.Endpoint(logDB) != before.Endpoint(logDB) {
			t.Errorf("step %d: %d addresses have changed, digest %s, want %s", len(version), len(changes), s.Digest(), before.Digest())
		}
		if again, _ := w.Commit(); again.Logging() != s.Logging() {
			t.Errorf("step %d: without a change, the next snapshot has another pointer", len(version))
		}
	}
	w.policy("bank", "p", "all", ingress, false)
	w.namespace("bank", "all")
	w.DeletePolicy(netpol.Ref("bank", "p"))
	w.DeleteNamespace("bank")
	if s, _ := w.Commit(); s.Logging() != nil || len(w.Problems()) > 0 {
		t.Errorf("deleted objects still have a level: %v, or problems: %v", s.Logging(), w.Problems())
	}
}

// An unknown value is a problem that changes no decision, as long as the object has it.
func TestLogUnknown(t *testing.T) {
	for value, hint := range map[string]string{
		"deny": "write denied", "Denied": "write denied", "allow": "write all", "non": "write none",
		"": "write denied, all or none", "true": "write denied, all or none", `{"deny":"info"}`: "write denied, all or none",
	} {
		s := policy.ReadLog(netpol.Ref("shop", "p"), map[string]string{policy.LogAnnotation: value})
		if s.Level != filter.LogUnset || s.Problem == nil || s.Problem.Hint != hint || s.Problem.Field != policy.LogField || !s.Problem.Minor {
			t.Errorf("%q: %v %+v, want the hint %q", value, s.Level, s.Problem, hint)
		}
	}
	w := newLogBed(t)
	w.namespace("shop", "deny")
	w.policy("bank", "p", "deny", ingress, false)
	w.admin("bank", "deny", v1beta1.ClusterNetworkPolicyRuleActionDeny)
	w.Commit()
	var of []string
	for _, p := range w.Problems() {
		of = append(of, p.Policy.Object())
	}
	if want := "[NetworkPolicy bank/p ClusterNetworkPolicy platform Namespace shop]"; fmt.Sprint(of) != want {
		t.Errorf("problems of %v, want %s", of, want)
	}
	w.namespace("shop", "denied")
	w.policy("bank", "p", "", ingress, false)
	w.DeletePolicy(clusterpolicy.Ref("platform"))
	if w.Commit(); len(w.Problems()) > 0 {
		t.Errorf("problems remain: %v", w.Problems())
	}
	if wrong := validation.IsQualifiedName(policy.LogAnnotation); len(wrong) > 0 {
		t.Errorf("the API server does not accept the annotation: %v", wrong)
	}
}

// netpol.Encode does not make the form of a large policy: the form is read from the encoded policy later.
// The log level of such a policy has effect at once. So has that of a policy from netpol.Read.
func TestLogOfLargePolicies(t *testing.T) {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: "p", Annotations: logged("denied")}}
	for i := range 1000 {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{{
			IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("192.0.%d.%d/32", i/256, i%256)},
		}}})
	}
	w := newLogBed(t)
	e := netpol.Encode(p)
	if e.Form != nil {
		t.Fatal("the policy is not large")
	}
	w.SetEncoded(e)
	if got, v := w.level(logWeb, logDB, filter.LogNone); got != filter.LogDenied || v.Action == filter.Allow {
		t.Errorf("level %s of a denial, want denied", got)
	}
	w.DeletePolicy(netpol.Ref("bank", "p"))
	w.SetPolicy(netpol.Read(p))
	if got, _ := w.level(logWeb, logDB, filter.LogNone); got != filter.LogDenied {
		t.Errorf("level %s of a policy that was read, want denied", got)
	}
}
