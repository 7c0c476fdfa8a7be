package matrix

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
)

// shops returns a cluster of namespaces with the same workloads: a database, which only the web server
// of its own namespace may reach, at the declared port.
func shops(namespaces, replicas int) *inventory.Inventory {
	var o inventory.Objects
	for n := range namespaces {
		ns := fmt.Sprint("shop", n)
		for _, app := range []string{"db", "web"} {
			for r := range replicas {
				o.Pods = append(o.Pods, &policy.Pod{
					Namespace: ns, Name: fmt.Sprint(app, "-", r), Labels: labels.Set{"app": app}, Owner: policy.Ref{Kind: "StatefulSet", Namespace: ns, Name: app},
					Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(n), byte(r), byte(len(app))})}, Ports: []policy.NamedPort{{Protocol: filter.TCP, Number: 80}},
				})
			}
		}
		o.Policies = append(o.Policies, &policy.Policy{
			Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: ns, Name: "db"}, Tier: policy.NetworkPolicy, Isolates: [2]bool{filter.Ingress: true},
			Subject: policy.Subject{Namespace: ns, Pods: labels.SelectorFromSet(labels.Set{"app": "db"})},
			Rules: [2][]policy.Rule{filter.Ingress: {{
				Action: policy.Accept, Peers: []policy.Peer{{Pods: labels.SelectorFromSet(labels.Set{"app": "web"})}},
				Ports: []policy.PortRange{{Protocol: filter.TCP, Low: 80, High: 80}},
			}}},
		})
	}
	return inventory.New(o)
}

// The page has the same cells as the matrix, and is smaller than 1 MB for 1,000 pods.
func TestPageHasEveryCell(t *testing.T) {
	for _, by := range []By{ByNamespace, ByWorkload, ByPod} {
		m := New(shops(20, 25), Options{By: by})
		p := newPage(m)
		own := make(map[[2]int]int)
		for _, o := range p.Own {
			own[[2]int{o[0], o[1]}] = o[2]
		}
		rows := make([][]int, len(p.Rows))
		for i, runs := range p.Rows {
			for k := 0; k < len(runs); k += 2 {
				rows[i] = append(rows[i], slices.Repeat(runs[k:k+1], runs[k+1])...)
			}
		}
		for i, from := range m.From {
			for j, to := range m.To {
				kind, is := own[[2]int{i, j}]
				if !is {
					kind = rows[p.RowOf[i]][j]
				}
				got, want := p.Kinds[kind], m.at[[2]*Party{from, to}]
				if want == nil && kind != noKind || want != nil && (got.State != want.State || got.Text != want.text() || by != ByPod && !slices.Equal(p.whys(got, from, to), whysOf(want))) {
					t.Fatalf("by %s: %s to %s is %+v, want %+v", by, from.Name, to.Name, got, want)
				}
			}
		}
		var b strings.Builder
		if err := m.WriteHTML(&b); err != nil || b.Len() > 1e6 {
			t.Errorf("by %s: the page of %d rows has %d bytes; %v", by, len(m.From), b.Len(), err)
		}
	}
}

// whys returns the reasons of a kind for two parties, with the placeholders resolved as the page
// resolves them.
func (p *page) whys(k pageKind, from, to *Party) (whys []string) {
	for _, a := range k.Answers {
		why := strings.NewReplacer("\x01from\x01", strings.Join(from.Egress, ", "), "\x01to\x01", strings.Join(to.Ingress, ", ")).Replace(p.Texts[a.Why])
		for i, name := range to.Ingress {
			why = strings.ReplaceAll(why, fmt.Sprintf("\x01to.%d\x01", i), name)
		}
		whys = append(whys, why)
	}
	return whys
}

func whysOf(c *Cell) (whys []string) {
	for _, a := range c.Answers {
		whys = append(whys, a.Why)
	}
	return whys
}

// A page by namespace contains the cells by workload, into which its rows expand.
func TestPageByNamespace(t *testing.T) {
	m := New(shops(3, 2), Options{By: ByNamespace, To: []string{"shop1"}})
	below := m.below()
	if below.By != ByWorkload || len(below.To) != 2 || len(below.From) != 7 {
		t.Errorf("below are %d rows and %d columns by %s", len(below.From), len(below.To), below.By)
	}
	var b strings.Builder
	if err := m.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Only flows to shop1", `content="default-src &#39;none&#39;; style-src &#39;sha256-`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page has no %s", want)
		}
	}
}

// The number of kinds does not grow with the policies if these differ only in their names.
func TestPageNamesPoliciesOnce(t *testing.T) {
	few, many := newPage(New(shops(3, 1), Options{})), newPage(New(shops(20, 1), Options{}))
	if len(few.Kinds) != len(many.Kinds) {
		t.Errorf("3 namespaces have %d kinds of cells, and 20 have %d", len(few.Kinds), len(many.Kinds))
	}
}

// A cell between namespaces distinguishes ports that are open for all pairs from ports that are open
// for some.
func TestNamespaces(t *testing.T) {
	m := New(shops(2, 2), Options{By: ByNamespace})
	texts := make(map[string]string)
	for _, c := range m.Flows {
		texts[c.From+" "+c.To] = fmt.Sprint(c.State, " ", c.text(), " ", c.Pairs)
	}
	for pair, want := range map[string]string{
		// The pairs are database to itself, database to web server, web server to database, and web
		// server to itself.
		"shop0/* shop0/*": "part all~ map[closed:1 declared:1 open:2]",
		"shop0/* shop1/*": "part all~ map[closed:2 open:2]",
		"world shop0/*":   "part all~ map[closed:1 open:1]",
		"shop0/* world":   "open all map[open:2]",
	} {
		if texts[pair] != want {
			t.Errorf("%s: %s, want %s", pair, texts[pair], want)
		}
	}
	i := slices.IndexFunc(m.Flows, func(c *Cell) bool { return c.From == "shop0/*" && c.To == "shop0/*" })
	first := m.Flows[i].Answers[0]
	if first.Verdict != some || !strings.Contains(first.Why, "allow: shop0/db → shop0/web, shop0/web → shop0/web (2 of 4 pairs); deny: the others") {
		t.Errorf("the first answer is %+v", first)
	}
}

// In the text, adjacent ports that are open for all pairs and ports that are open for some become one
// range.
func TestTextJoinsWhatIsOpenForSome(t *testing.T) {
	c := Cell{State: Part, spans: []span{
		{filter.TCP, 1, 52, some, ""}, {filter.TCP, 53, 53, allowed, ""}, {filter.TCP, 54, 79, some, ""}, {filter.TCP, 80, 1<<16 - 1, denied, ""},
		{filter.UDP, 1, 1<<16 - 1, allowed, ""}, {filter.SCTP, 1, 1<<16 - 1, denied, ""}, {filter.ICMP, 0, 0, denied, ""},
	}}
	if got := c.text(); got != "1-79~,UDP" {
		t.Errorf("the text is %s", got)
	}
}
