package diff

import (
	"bytes"
	"fmt"
	"math/rand/v2"
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

// pods returns n pods in each of three namespaces, with random labels.
func pods(r *rand.Rand, n int) (all []*policy.Pod) {
	for i := range 3 * n {
		all = append(all, &policy.Pod{
			Namespace: []string{"shop", "pci", "ops"}[i/n], Name: fmt.Sprint("p", i), Labels: labels.Set{"app": fmt.Sprint(r.IntN(3))},
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})},
		})
	}
	return all
}

// policies returns random policies.
func policies(r *rand.Rand) (all []*policy.Policy) {
	app := func() labels.Selector {
		if r.IntN(3) == 0 {
			return labels.Everything()
		}
		return labels.SelectorFromSet(labels.Set{"app": fmt.Sprint(r.IntN(3))})
	}
	for i := range r.IntN(5) {
		ns := []string{"shop", "pci", "ops"}[r.IntN(3)]
		p := &policy.Policy{
			Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: ns, Name: fmt.Sprint("n", i)}, Tier: policy.NetworkPolicy,
			Subject: policy.Subject{Namespace: ns, Pods: app()}, Isolates: [2]bool{r.IntN(2) == 0, true},
		}
		for range r.IntN(3) {
			rule := policy.Rule{Action: policy.Accept, Peers: []policy.Peer{{Namespaces: labels.Everything(), Pods: app()}}}
			if r.IntN(2) == 0 {
				rule.Peers = []policy.Peer{{Block: &policy.Block{CIDR: netip.MustParsePrefix([]string{"203.0.113.0/24", "10.0.0.0/29"}[r.IntN(2)])}}}
			}
			if r.IntN(2) == 0 {
				rule.Ports = []policy.PortRange{{Protocol: filter.TCP, Low: 80, High: uint16(80 + r.IntN(3))}}
			}
			p.Rules[filter.Ingress] = append(p.Rules[filter.Ingress], rule)
		}
		all = append(all, p)
	}
	return all
}

// If the lines are expanded into changes from each source to each destination, but not from a single
// pod to itself, the result has each change exactly once.
func TestLinesHaveEachChangeOnce(t *testing.T) {
	merged := 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 7))
		o := inventory.Objects{Pods: pods(r, 3), Policies: policies(r)}
		later := o
		later.Policies = policies(r)
		if r.IntN(3) == 0 {
			later.Pods = later.Pods[1:]
		}
		report := New(reach.Compare(inventory.New(o), inventory.New(later)), nil)
		left := make(map[string]int)
		for _, c := range report.changes {
			left[text(c.From, c.To, &c)]++
		}
		for _, l := range report.Lines {
			for _, from := range l.block.from {
				for _, to := range l.block.to {
					if key := text(from, to, &l.block.change); from != to || !from.Party().Single() {
						if left[key]--; left[key] < 0 {
							t.Fatalf("seed %d: %s is too much in %+v", seed, key, l)
						}
					}
				}
			}
		}
		for key, n := range left {
			if n != 0 {
				t.Fatalf("seed %d: %s is missing", seed, key)
			}
		}
		merged += len(report.changes) - len(report.Lines)
	}
	if merged == 0 {
		t.Error("no lines were merged")
	}
}

func text(from, to *reach.Match, c *reach.Change) string {
	return fmt.Sprint(from.Name, " ", to.Name, " ", c.OwnNode, *c.Effect)
}

// compare returns the text of a report on pods shop/a, shop/b, pci/a and pci/b whose policies change.
func compare(t *testing.T, before, after []*policy.Policy, namespaces ...string) string {
	t.Helper()
	var o inventory.Objects
	for i, name := range []string{"shop/a", "shop/b", "pci/a", "pci/b"} {
		ns, name, _ := strings.Cut(name, "/")
		o.Pods = append(o.Pods, &policy.Pod{Namespace: ns, Name: name, Labels: labels.Set{"app": name}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}})
	}
	o.Policies = before
	later := o
	later.Policies = after
	var out bytes.Buffer
	if err := New(reach.Compare(inventory.New(o), inventory.New(later)), namespaces).WriteText(&out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func deny(ns, app string) *policy.Policy {
	p := &policy.Policy{Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: ns, Name: "deny"}, Tier: policy.NetworkPolicy, Subject: policy.Subject{Namespace: ns, Pods: labels.Everything()}, Isolates: [2]bool{filter.Ingress: true}}
	if app != "" {
		p.Subject.Pods = labels.SelectorFromSet(labels.Set{"app": app})
	}
	return p
}

// Lines name many parties by a word, and leave out pairs that do not change.
func TestText(t *testing.T) {
	with := func(p *policy.Policy, rules ...policy.Rule) []*policy.Policy {
		p.Rules[filter.Ingress] = rules
		return []*policy.Policy{p}
	}
	same := policy.Peer{Pods: labels.Everything()}
	tcp := func(low, high uint16) []policy.PortRange {
		return []policy.PortRange{{Protocol: filter.TCP, Low: low, High: high}}
	}
	tests := map[string]struct {
		before, after []*policy.Policy
		namespaces    []string
		want          string
	}{
		"nothing": {want: "no change in who reaches whom\n"},
		"everything closes": {after: with(deny("pci", "a")), want: `
- everything → pci/a  all ports  by pci/deny (added)

4 pairs closed
policies added: pci/deny
`},
		"a namespace": {after: with(deny("pci", "")), want: `
- everything → pci/*  all ports  by pci/deny (added)

8 pairs closed
policies added: pci/deny
`},
		"all but a port": {after: with(deny("pci", ""), policy.Rule{Action: policy.Accept, Peers: []policy.Peer{same}, Ports: tcp(80, 80)}), want: `
- pci/* → pci/*          all ports but TCP 80  by pci/deny (added)
- shop/*, world → pci/*  all ports             by pci/deny (added)

8 pairs closed
policies added: pci/deny
`},
		"ports": {before: with(deny("pci", "")), after: with(deny("pci", ""), policy.Rule{Action: policy.Accept, Peers: []policy.Peer{same}, Ports: append(tcp(80, 80), tcp(90, 99)...)}), want: `
+ pci/* → pci/*  TCP 80,90-99  by pci/deny ingress rule 1 (changed)

2 pairs opened
policies changed: pci/deny
`},
		"in another namespace": {after: with(deny("pci", "")), namespaces: []string{"shop"}, want: `
- shop/* → pci/*  all ports  by pci/deny (added)

4 pairs closed
policies added: pci/deny
`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := compare(t, tt.before, tt.after, tt.namespaces...); got != strings.TrimPrefix(tt.want, "\n") {
				t.Errorf("%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// WriteMarkdown folds long tables, and escapes names.
func TestMarkdown(t *testing.T) {
	line := Line{Opens: true, From: []string{"shop/*"}, To: []string{"a_b/x"}, Ports: "TCP 80", By: "by x_y (added)"}
	for lines, folded := range map[int]bool{1: false, foldAfter: false, foldAfter + 1: true} {
		var out bytes.Buffer
		r := Report{Lines: slices.Repeat([]Line{line}, lines), Opened: lines}
		if err := r.WriteMarkdown(&out); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(out.String(), "<details>"); got != folded {
			t.Errorf("%d lines: folded: %t", lines, got)
		}
		if want := "| `shop/*` | `a_b/x` | TCP 80 | by x\\_y (added) |\n"; strings.Count(out.String(), want) != lines {
			t.Errorf("%d lines: %s", lines, out.String())
		}
	}
}
