package clusterpolicy_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
)

// object returns a ClusterNetworkPolicy with this spec, in YAML. It decodes as a client
// does: unknown fields are dropped.
func object(t testing.TB, spec string) *v1beta1.ClusterNetworkPolicy {
	t.Helper()
	o := new(v1beta1.ClusterNetworkPolicy)
	o.Name = "p"
	if err := yaml.Unmarshal([]byte(spec), &o.Spec); err != nil {
		t.Fatalf("%v in %s", err, spec)
	}
	return o
}

// rulesHead begins a spec whose rules follow.
const rulesHead = "tier: Admin\npriority: 7\nsubject: {namespaces: {}}\n"

// text formats a rule in one line, as the table of TestRules expects it.
func text(r policy.Rule) string {
	var b strings.Builder
	fmt.Fprint(&b, r.Action)
	if r.Name != "" {
		fmt.Fprintf(&b, " %q", r.Name)
	}
	for _, p := range r.Peers {
		b.WriteString(" [")
		for _, part := range []struct {
			name string
			set  bool
			text any
		}{
			{"ns", p.Namespaces != nil, p.Namespaces}, {"pods", p.Pods != nil, p.Pods}, {"nodes", p.Nodes != nil, p.Nodes},
			{"nets", p.Networks != nil, p.Networks}, {"names", p.Names != nil, p.Names}, {"malformed", p.Malformed != "", p.Malformed},
		} {
			if part.set {
				fmt.Fprintf(&b, "%s=%v;", part.name, part.text)
			}
		}
		b.WriteString("]")
	}
	for _, p := range r.Ports {
		switch {
		case p.Malformed:
			b.WriteString(" malformed")
		case p.Name != "":
			fmt.Fprintf(&b, " %s/%s", p.Protocol, p.Name)
		default:
			fmt.Fprintf(&b, " %s/%d-%d", p.Protocol, p.Low, p.High)
		}
	}
	return b.String()
}

// Read converts rules as the API's text specifies. Parts that cannot be understood fail closed.
func TestRules(t *testing.T) {
	tests := map[string]struct {
		rule    string // begins with "in" or "out", the direction
		want    string
		problem string // field of the problem, relative to the rule; empty if there is none
	}{
		"all pods":           {"in {action: Accept, from: [{namespaces: {}}]}", "accept [ns=;]", ""},
		"pods":               {"in {name: x, action: Deny, from: [{pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchLabels: {c: d}}}}]}", `deny "x" [ns=a=b;pods=c=d;]`, ""},
		"pass":               {"in {action: Pass, from: [{namespaces: {matchExpressions: [{key: a, operator: Exists}]}}]}", "pass [ns=a;]", ""},
		"networks":           {"out {action: Deny, to: [{networks: [10.0.0.0/8, '2001:db8::/32', 0.0.0.0/0]}]}", "deny [nets=[10.0.0.0/8 2001:db8::/32 0.0.0.0/0];]", ""},
		"nodes":              {"out {action: Accept, to: [{nodes: {}}, {nodes: {matchLabels: {a: b}}}]}", "accept [nodes=;] [nodes=a=b;]", ""},
		"ports":              {"out {action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 65535}}}}, {sctp: {destinationPort: {number: 9}}}]}", "deny [ns=;] TCP/80-80 UDP/1-65535 SCTP/9-9", ""},
		"a named port":       {"in {action: Accept, from: [{namespaces: {}}], protocols: [{destinationNamedPort: web}]}", "accept [ns=;] TCP/web UDP/web SCTP/web", ""},
		"names, accepted":    {"out {action: Accept, to: [{namespaces: {}}, {domainNames: [a.example]}]}", "accept [ns=;] [names=[a.example];]", ".to[1].domainNames"},
		"names, denied":      {"out {action: Deny, to: [{namespaces: {}}, {domainNames: [a.example]}], protocols: [{destinationNamedPort: web}]}", "deny [names=[a.example];malformed=.domainNames;]", ".to[1].domainNames"},
		"names, passed":      {"out {action: Pass, to: [{domainNames: [a.example]}]}", "deny [names=[a.example];malformed=.domainNames;]", ".to[0].domainNames"},
		"names of ingress":   {"in {action: Accept, from: [{domainNames: [a.example]}]}", "accept [malformed=.;]", ".from[0]"},
		"unknown peer":       {"in {action: Accept, from: [{namespaces: {}}, {serviceAccounts: {}}]}", "accept [malformed=.;]", ".from[1]"},
		"unknown, denied":    {"in {action: Deny, from: [{namespaces: {}}, {serviceAccounts: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}", "deny [malformed=.;]", ".from[1]"},
		"unknown, passed":    {"out {action: Pass, to: [{services: {}}]}", "deny [malformed=.;]", ".to[0]"},
		"networks, ingress":  {"in {action: Pass, from: [{networks: [10.0.0.0/8]}]}", "deny [malformed=.;]", ".from[0]"},
		"two fields":         {"out {action: Accept, to: [{namespaces: {}, networks: [10.0.0.0/8]}]}", "accept [malformed=.;]", ".to[0]"},
		"no peers":           {"out {action: Accept}", "accept [malformed=.;]", ".to"},
		"no peers, passed":   {"in {action: Pass, from: []}", "deny [malformed=.;]", ".from"},
		"a bad selector":     {"in {action: Accept, from: [{namespaces: {matchExpressions: [{key: a, operator: in, values: [b]}]}}]}", "accept [malformed=.namespaces;]", ".from[0].namespaces"},
		"a bad pod selector": {"in {action: Deny, from: [{pods: {podSelector: {matchLabels: {a: 'b c'}}}}]}", "deny [ns=;malformed=.pods.podSelector;]", ".from[0].pods.podSelector"},
		"bad nodes":          {"out {action: Deny, to: [{nodes: {matchExpressions: [{key: a, operator: In}]}}]}", "deny [malformed=.nodes;]", ".to[0].nodes"},
		"not a CIDR":         {"out {action: Accept, to: [{networks: [10.0.0.0/8, 10.0.0.300/24]}]}", "accept [malformed=.networks[1];]", ".to[0].networks[1]"},
		"host bits":          {"out {action: Deny, to: [{networks: [10.0.0.1/8]}]}", "deny [malformed=.networks[0];]", ".to[0].networks[0]"},
		"mapped":             {"out {action: Deny, to: [{networks: ['::ffff:10.0.0.0/104']}]}", "deny [malformed=.networks[0];]", ".to[0].networks[0]"},
		"unknown protocol":   {"in {action: Accept, from: [{namespaces: {}}], protocols: [{icmp: {type: 8}}, {tcp: {destinationPort: {number: 80}}}]}", "accept [ns=;] malformed", ".protocols[0]"},
		"protocol, denied":   {"in {action: Deny, from: [{namespaces: {}}], protocols: [{icmp: {type: 8}}]}", "deny malformed", ".protocols[0]"},
		"protocol, passed":   {"in {action: Pass, from: [{namespaces: {}}], protocols: [{tcp: {}}]}", "deny malformed", ".protocols[0].tcp"},
		"two protocols":      {"in {action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}, destinationNamedPort: web}]}", "accept [ns=;] malformed", ".protocols[0]"},
		"unknown port":       {"in {action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {list: [80]}}}]}", "deny malformed", ".protocols[0].tcp.destinationPort"},
		"number and range":   {"in {action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80, range: {start: 1, end: 9}}}}]}", "accept [ns=;] malformed", ".protocols[0].tcp.destinationPort"},
		"a large number":     {"in {action: Accept, from: [{namespaces: {}}], protocols: [{sctp: {destinationPort: {number: 65536}}}]}", "accept [ns=;] malformed", ".protocols[0].sctp.destinationPort.number"},
		"a negative number":  {"in {action: Accept, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: -1}}}]}", "accept [ns=;] malformed", ".protocols[0].udp.destinationPort.number"},
		"a range of one":     {"in {action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 80, end: 80}}}}]}", "accept [ns=;] malformed", ".protocols[0].tcp.destinationPort.range"},
		"a range backwards":  {"in {action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 90, end: 80}}}}]}", "deny malformed", ".protocols[0].tcp.destinationPort.range"},
		"an open range":      {"in {action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 90}}}}]}", "deny malformed", ".protocols[0].tcp.destinationPort.range"},
		"not a port's name":  {"in {action: Deny, from: [{namespaces: {}}], protocols: [{destinationNamedPort: '80'}]}", "deny malformed", ".protocols[0].destinationNamedPort"},
		"unknown action":     {"in {name: x, action: Log, from: [{namespaces: {}}], protocols: [{destinationNamedPort: web}]}", `deny "x"`, ".action"},
		"no action":          {"out {to: [{networks: [10.0.0.0/8]}]}", "deny", ".action"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d, list, field := filter.Ingress, "ingress", "spec.ingress[1]"
			rule, out := strings.CutPrefix(tt.rule, "out ")
			if out {
				d, list, field = filter.Egress, "egress", "spec.egress[1]"
			}
			first := "{action: Deny, from: [{namespaces: {}}]}"
			if out {
				first = "{action: Deny, to: [{namespaces: {}}]}"
			}
			p := clusterpolicy.Read(object(t, rulesHead+list+":\n- "+first+"\n- "+strings.TrimPrefix(rule, "in ")))
			if got := text(p.Rules[d][1]); len(p.Rules[d]) != 2 || got != tt.want {
				t.Errorf("rule is %s\nwant    %s", got, tt.want)
			}
			checkProblem(t, p, field, tt.problem)
		})
	}
}

// checkProblem checks that a policy has exactly one problem, that its field is rule+want, and
// that its hint names the rule. If want is empty, it checks that the policy has no problem.
func checkProblem(t *testing.T, p *policy.Policy, rule, want string) {
	t.Helper()
	switch {
	case want == "" && len(p.Problems) > 0:
		t.Errorf("problems: %v", p.Problems)
	case want == "":
	case len(p.Problems) != 1 || p.Problems[0].Field != rule+want:
		t.Errorf("problems %v, want one at %s", p.Problems, rule+want)
	case !strings.Contains(p.Problems[0].Hint, "gress rule 2") || p.Problems[0].Effect == "" || p.Problems[0].Policy != p.Ref:
		t.Errorf("problem %+v does not name the rule and the effect", p.Problems[0])
	}
}

// The hint names the rule by its number and its name.
func TestHintNamesTheRule(t *testing.T) {
	p := clusterpolicy.Read(object(t, rulesHead+"egress: [{name: to-teams, action: deny, to: [{namespaces: {}}]}]"))
	const want = `ClusterNetworkPolicy p, spec.egress[0].action: "deny" is not an action; the rule denies everything: in egress rule 1 "to-teams", write Deny`
	if len(p.Problems) != 1 || !strings.HasPrefix(p.Problems[0].Error(), want) {
		t.Errorf("problems %v\nwant %s", p.Problems, want)
	}
}

// If the subject or the tier of a policy cannot be understood, its rules accept nothing, and
// those with another action than Accept deny everything.
func TestMalformedPolicies(t *testing.T) {
	const rules = "ingress: [{action: Accept, from: [{namespaces: {}}]}]\n" +
		"egress: [{action: Accept, to: [{namespaces: {}}]}, {action: Pass, to: [{networks: [10.0.0.0/8]}]}]\n"
	tests := map[string]struct {
		spec      string
		tier      policy.Tier
		subject   string // namespaces, and pods
		malformed bool
		in, out   string // rules
		problem   string
	}{
		"right":           {"tier: Baseline\nsubject: {namespaces: {matchLabels: {a: b}}}", policy.Baseline, "a=b, ", false, "accept [ns=;]", "accept [ns=;]; pass [nets=[10.0.0.0/8];]", ""},
		"pods":            {"tier: Admin\nsubject: {pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchLabels: {c: d}}}}", policy.Admin, "a=b, c=d", false, "accept [ns=;]", "accept [ns=;]; pass [nets=[10.0.0.0/8];]", ""},
		"unknown tier":    {"tier: Emergency\nsubject: {namespaces: {matchLabels: {a: b}}}", policy.Admin, "a=b, ", false, "accept [malformed=.;]", "accept [malformed=.;]; deny", "spec.tier"},
		"no tier":         {"subject: {namespaces: {matchLabels: {a: b}}}", policy.Admin, "a=b, ", false, "accept [malformed=.;]", "accept [malformed=.;]; deny", "spec.tier"},
		"no subject":      {"tier: Baseline", policy.Baseline, ", ", true, "", "accept [malformed=.;]; deny", "spec.subject"},
		"unknown subject": {"tier: Admin\nsubject: {nodes: {}}", policy.Admin, ", ", true, "", "accept [malformed=.;]; deny", "spec.subject"},
		"two subjects":    {"tier: Admin\nsubject: {namespaces: {}, pods: {podSelector: {}}}", policy.Admin, ", ", true, "", "accept [malformed=.;]; deny", "spec.subject"},
		"bad namespaces":  {"tier: Admin\nsubject: {namespaces: {matchLabels: {a: 'b c'}}}", policy.Admin, ", ", true, "", "accept [malformed=.;]; deny", "spec.subject.namespaces"},
		"bad pods":        {"tier: Admin\nsubject: {pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchExpressions: [{key: a, operator: like}]}}}", policy.Admin, "a=b, ", true, "", "accept [malformed=.;]; deny", "spec.subject.pods.podSelector"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := clusterpolicy.Read(object(t, tt.spec+"\n"+rules))
			var texts [2][]string
			for d := range p.Rules {
				for _, r := range p.Rules[d] {
					texts[d] = append(texts[d], text(r))
				}
			}
			subject := p.Subject.Namespaces.String() + ", " + p.Subject.Pods.String()
			if p.Tier != tt.tier || subject != tt.subject || p.Subject.Malformed != tt.malformed {
				t.Errorf("tier %v, subject %q, malformed %t; want %v, %q, %t", p.Tier, subject, p.Subject.Malformed, tt.tier, tt.subject, tt.malformed)
			}
			if in, out := strings.Join(texts[filter.Ingress], "; "), strings.Join(texts[filter.Egress], "; "); in != tt.in || out != tt.out {
				t.Errorf("rules are %q and %q, want %q and %q", in, out, tt.in, tt.out)
			}
			switch {
			case tt.problem == "" && len(p.Problems) > 0:
				t.Errorf("problems: %v", p.Problems)
			case tt.problem != "" && (len(p.Problems) != 1 || p.Problems[0].Field != tt.problem || p.Problems[0].Hint == ""):
				t.Errorf("problems %v, want one at %s", p.Problems, tt.problem)
			}
		})
	}
}

// A policy of many broken rules reports the first ones, and the number of the others.
func TestManyProblems(t *testing.T) {
	o := object(t, rulesHead)
	o.Spec.Ingress = make([]v1beta1.ClusterNetworkPolicyIngressRule, 25) // no action, no peers: two problems each
	p := clusterpolicy.Read(o)
	if last := p.Problems[len(p.Problems)-1]; len(p.Problems) != 21 || last.Detail != "it has 30 more problems" {
		t.Errorf("%d problems, the last one %v", len(p.Problems), last)
	}
}

// A hint for a network proposes what was probably meant.
func TestNetworkHints(t *testing.T) {
	for network, want := range map[string]string{
		"10.0.0.1/8":          "write 10.0.0.0/8 for the network or 10.0.0.1/32 for the address",
		"10.0.0.1":            "write 10.0.0.1/32",
		"2001:db8::1":         "write 2001:db8::1/128",
		"::ffff:10.0.0.0/104": "write the IPv4 network",
		"010.0.0.0/8":         "without leading zeros",
		"fe80::1%eth0":        "write an address and a prefix length",
	} {
		p := clusterpolicy.Read(object(t, rulesHead+"egress: [{action: Deny, to: [{networks: ['"+network+"']}]}]"))
		if len(p.Problems) != 1 || !strings.Contains(p.Problems[0].Hint, want) {
			t.Errorf("%s: problems %v, want the hint %q", network, p.Problems, want)
		}
	}
}

// The Source of an encoded policy reads the same policy again. The digest depends on the
// content, but not on the order of labels.
func TestEncode(t *testing.T) {
	const spec = rulesHead + `
ingress: [{name: x, action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {b: c, a: b}}}}], protocols: [{destinationNamedPort: web}, {}]}]
egress: [{action: Pass, to: [{networks: [10.0.0.0/8]}, {nodes: {}}]}, {action: Log, to: []}, {action: Accept, to: [{domainNames: [a.example]}]}]
`
	e := clusterpolicy.Encode(object(t, spec))
	if e.Ref != (policy.Ref{Kind: "ClusterNetworkPolicy", Name: "p"}) || e.Form == nil || e.Form.Digest != e.Digest || e.Digest == [32]byte{} {
		t.Fatalf("encoded as %+v", e)
	}
	again, err := e.Source.Read(e.Ref, e.Source.Encoded)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(withoutSource(again), withoutSource(e.Form)) || again.Source.Read == nil {
		t.Errorf("read again as %+v\nwant %+v", again, e.Form)
	}
	if same := clusterpolicy.Encode(object(t, strings.Replace(spec, "b: c, a: b", "a: b, b: c", 1))); same.Digest != e.Digest {
		t.Error("the digest depends on the order of labels")
	}
	if other := clusterpolicy.Encode(object(t, strings.Replace(spec, "priority: 7", "priority: 8", 1))); other.Digest == e.Digest {
		t.Error("the digest does not depend on the priority")
	}
	if p, err := e.Source.Read(e.Ref, []byte("{")); err == nil {
		t.Errorf("a broken source is read as %+v", p)
	}
}

func withoutSource(p *policy.Policy) policy.Policy {
	out := *p
	out.Source = policy.Source{}
	return out
}

// Read keeps priority, tier and reference.
func TestRead(t *testing.T) {
	p := clusterpolicy.Read(object(t, rulesHead+"egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}]}]"))
	if p.Ref.String() != "p" || p.Priority != 7 || p.Tier != policy.Admin || p.Isolates != [2]bool{} || p.Rules[filter.Egress][0].Peers[0].Networks[0] != netip.MustParsePrefix("10.0.0.0/8") {
		t.Errorf("read %+v", p)
	}
}

// A domain name in a rule that accepts counts as unsupported. In any other rule, it counts as a
// mistake.
func TestUnsupported(t *testing.T) {
	p := clusterpolicy.Read(object(t, rulesHead+"egress: [{action: Accept, to: [{domainNames: [a.example]}]}, {action: Deny, to: [{domainNames: [a.example]}]}]"))
	if len(p.Problems) != 2 || !p.Problems[0].Unsupported || p.Problems[1].Unsupported {
		t.Errorf("problems %+v", p.Problems)
	}
}
