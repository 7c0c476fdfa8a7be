package matrix

import (
	"cmp"
	"slices"
	"time"

	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/policy/reach"
	"sluice/filter/policy/seen"
)

// The reasons for which flows with known ends are not in a matrix.
const (
	leftScope     flow.Skip = "flows that the matrix is not about"
	leftOwnNode   flow.Skip = "flows between pods and the nodes that they run on"
	leftUndecided flow.Skip = "flows that policies do not decide about, as between nodes or of a pod to itself"
)

// Overview describes all flows that were laid over a matrix.
type Overview struct {
	Files int    `json:"files"`
	Flows uint64 `json:"flows"`
	// First and Last are the times of the first and the last flow; zero if none is known.
	First time.Time `json:"first,omitzero"`
	Last  time.Time `json:"last,omitzero"`
	// Missing is the number of flows that the files report as missing.
	Missing uint64 `json:"missing,omitempty"`
	// Gaps are the periods in which, as the files report, a node recorded nothing or no connections.
	Gaps  seen.Gaps `json:"unrecorded,omitzero"`
	Pairs Uses      `json:"pairs"`
	// LeftOut has the flows and lines that are not in the matrix, by reason.
	LeftOut []seen.LeftOut `json:"leftOut"`

	tried, changed []callout
}

// Uses counts pairs of parties. A pair of which only some ports are open can count twice: as used because
// of an open port, and as tried because of a closed one.
type Uses struct {
	Used      int `json:"openAndUsed"`
	NeverUsed int `json:"openAndNeverUsed"`
	Tried     int `json:"closedAndTried"`
	// Changed counts the pairs with a port at which the policies of the matrix have another verdict than
	// the last flow got. The flows may be from another version of the policies.
	Changed int `json:"changed"`
}

// callout is a port of a pair that is named below the matrix.
type callout struct {
	from, to *Party
	SeenPort
	why string
}

// Seen is what was seen of the flows from one party to another.
type Seen struct {
	Ports []SeenPort `json:"ports"`
	// NeverUsed are the open ports and ranges of which no port was used, as in Answer.Ports.
	NeverUsed []string `json:"neverUsed,omitempty"`
}

// SeenPort is what was seen at one port.
type SeenPort struct {
	Port    string `json:"port"`              // as in "TCP 80" or "ICMP"
	OwnNode bool   `json:"ownNode,omitempty"` // between a pod and its own node
	Verdict string `json:"verdict"`           // by the policies of the matrix, as in Answer
	// Allowed and Denied are the numbers of flows by the verdicts that they got.
	Allowed uint64    `json:"allowed"`
	Denied  uint64    `json:"denied"`
	First   time.Time `json:"first,omitzero"`
	Last    time.Time `json:"last,omitzero"`
	// Changed reports that the last flow got another verdict than the policies of the matrix have.
	Changed bool `json:"changed,omitempty"`

	proto  filter.Protocol
	number uint16
}

// open reports whether the policies of the matrix allow all or some flows at the port.
func (s *SeenPort) open() bool { return s.Verdict != denied }

// used reports whether the port is open and was used. Flows between a pod and its own node do not count,
// because policies do not decide about them.
func (s *SeenPort) used() bool { return s.open() && s.Allowed > 0 && !s.OwnNode }

// used reports whether an open port was used.
func (s *Seen) used() bool {
	return slices.ContainsFunc(s.Ports, func(p SeenPort) bool { return p.used() })
}

// tried reports whether a closed port was tried.
func (s *Seen) tried() bool {
	return slices.ContainsFunc(s.Ports, func(p SeenPort) bool { return !p.open() })
}

func (s *Seen) changed() bool {
	return slices.ContainsFunc(s.Ports, func(p SeenPort) bool { return p.Changed })
}

// Tally returns a tally for flows that Lay can lay over the matrix.
func (m *Matrix) Tally() *seen.Tally { return seen.New(m.reach, m.By == ByPod) }

// Lay lays the flows of a tally over the matrix: it sets Seen of the matrix and of its cells.
func (m *Matrix) Lay(t *seen.Tally) {
	m.tally = t
	l := &overlay{m: m, of: make(map[member]*Party), pairs: make(map[[2]*Party]*laid), left: make(map[flow.Skip]uint64)}
	for _, p := range m.all {
		for _, one := range p.members {
			l.of[one] = p
		}
	}
	m.Seen = &Overview{Files: t.Files, Flows: t.Flows(), Missing: t.Missing(), Gaps: t.Gaps(), LeftOut: t.LeftOut()}
	m.Seen.First, m.Seen.Last = t.Span()
	t.Each(l.add)
	for _, c := range m.Flows {
		if c.State.Open() {
			m.Seen.Pairs.NeverUsed++
			c.Seen = &Seen{Ports: []SeenPort{}, NeverUsed: neverUsed(c.spans, nil)}
		}
	}
	l.finish()
}

// overlay adds counts to pairs of parties.
type overlay struct {
	m     *Matrix
	of    map[member]*Party
	pairs map[[2]*Party]*laid
	order [][2]*Party
	left  map[flow.Skip]uint64
}

// laid is a pair of parties to which flows were added.
type laid struct {
	ports []*laidPort
	at    map[laidKey]*laidPort
}

type laidKey struct {
	proto     filter.Protocol
	port      uint16
	own, open bool
}

type laidPort struct {
	laidKey
	verdict string // the first one
	why     string
	changed bool
	seen.Count
}

// add adds a count of flows to the matrix, or to the flows that are left out.
func (l *overlay) add(at seen.At, c seen.Count) {
	from, to := l.of[member{at.From.Party, at.From.Pod}], l.of[member{at.To.Party, at.To.Pod}]
	if !l.m.concerns(from.Namespace, to.Namespace) || !l.m.asks(at) {
		l.left[leftScope] += c.Allowed + c.Denied
		return
	}
	if r := l.m.reach.Between(at.From.Party, at.To.Party); at.OwnNode && r != nil && len(r.OwnNode) == 0 {
		l.left[leftOwnNode] += c.Allowed + c.Denied // the manifests do not have the nodes of the pods
		return
	}
	p, decided := l.m.builder.pair(member{at.From.Party, at.From.Pod}, member{at.To.Party, at.To.Pod})
	spans, own := p.spans, at.OwnNode && len(p.ownNode) > 0
	if own {
		spans = p.ownNode
	}
	i := slices.IndexFunc(spans, func(s span) bool { return s.ports().Contains(at.Protocol, at.Port) })
	if !decided || i < 0 {
		l.left[leftUndecided] += c.Allowed + c.Denied
		return
	}
	l.count([2]*Party{from, to}, laidKey{at.Protocol, at.Port, own, spans[i].verdict != denied}, spans[i], c)
}

// asks reports whether the matrix is about a port.
func (m *Matrix) asks(at seen.At) bool {
	same := func(p Port) bool { return p.proto == at.Protocol && p.Number == at.Port }
	return len(m.options.Ports) == 0 || slices.ContainsFunc(m.options.Ports, same)
}

func (l *overlay) count(pair [2]*Party, k laidKey, s span, c seen.Count) {
	one := l.pairs[pair]
	if one == nil {
		one = &laid{at: make(map[laidKey]*laidPort)}
		l.pairs[pair] = one
		l.order = append(l.order, pair)
	}
	p := one.at[k]
	if p == nil {
		p = &laidPort{laidKey: k, verdict: s.verdict, why: s.why}
		one.at[k] = p
		one.ports = append(one.ports, p)
	}
	if p.verdict != s.verdict {
		p.verdict = some // it differs between the pairs of two namespaces
	}
	p.changed = p.changed || changed(s.verdict, c)
	p.Add(c)
}

// changed reports whether the last flow got another verdict than the policies have. It returns false if
// the verdict of the policies depends on the address family or on an address.
func changed(verdict string, c seen.Count) bool {
	switch verdict {
	case allowed:
		return c.Denied > 0 && (c.Allowed == 0 || c.LastDenied.After(c.LastAllowed))
	case denied:
		return c.Allowed > 0 && (c.Denied == 0 || c.LastAllowed.After(c.LastDenied))
	}
	return false
}

// finish sets Seen of the cells, and the sums.
func (l *overlay) finish() {
	o := l.m.Seen
	for _, pair := range l.order {
		ports := l.pairs[pair].ports
		slices.SortFunc(ports, func(a, b *laidPort) int {
			return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port), falseFirst(a.own, b.own), falseFirst(b.open, a.open))
		})
		s := &Seen{Ports: make([]SeenPort, len(ports))}
		for i, p := range ports {
			s.Ports[i] = SeenPort{
				Port: reach.Span{Protocol: p.proto, Low: p.port, High: p.port}.String(), OwnNode: p.own, Verdict: p.verdict,
				Allowed: p.Allowed, Denied: p.Denied, First: p.First, Last: p.Last, Changed: p.changed, proto: p.proto, number: p.port,
			}
			o.callOut(callout{pair[0], pair[1], s.Ports[i], p.why})
		}
		if c := l.m.at[pair]; c != nil { // with OnlyOpen, closed pairs have no cell
			s.NeverUsed = neverUsed(c.spans, s.Ports)
			c.Seen = s
		}
		o.Pairs.add(s)
	}
	for _, list := range [][]callout{o.tried, o.changed} {
		slices.SortStableFunc(list, func(a, b callout) int { return cmp.Compare(b.Allowed+b.Denied, a.Allowed+a.Denied) })
	}
	for why, n := range l.left {
		o.LeftOut = append(o.LeftOut, seen.LeftOut{Why: why, Flows: n})
	}
	slices.SortStableFunc(o.LeftOut, func(a, b seen.LeftOut) int { return cmp.Compare(b.Flows, a.Flows) })
}

// falseFirst orders false before true.
func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// add counts a pair. Before, each open pair was counted as never used.
func (u *Uses) add(s *Seen) {
	if s.used() {
		u.Used++
		u.NeverUsed--
	}
	if s.tried() {
		u.Tried++
	}
	if s.changed() {
		u.Changed++
	}
}

func (o *Overview) callOut(c callout) {
	switch {
	case c.Changed:
		o.changed = append(o.changed, c)
	case !c.open():
		o.tried = append(o.tried, c)
	}
}

// maxSingle bounds the length of the spans for which unused ports are listed although other ports were
// used.
const maxSingle = 16

// neverUsed returns the open spans of which no port was used. Of a short open span of which some ports
// were used, it returns the unused ports.
func neverUsed(spans []span, ports []SeenPort) (list []string) {
	for _, s := range joined(spans, func(s span) bool { return s.verdict != denied }) {
		used := func(o reach.Span) bool {
			return slices.ContainsFunc(ports, func(p SeenPort) bool { return p.used() && o.Contains(p.proto, p.number) })
		}
		switch {
		case !used(s):
			list = append(list, s.String())
		case s.High-s.Low < maxSingle:
			for _, o := range unusedIn(s, used) {
				list = append(list, o.String())
			}
		}
	}
	return list
}

// unusedIn returns the parts of a span that remain without the used ports.
func unusedIn(s reach.Span, used func(reach.Span) bool) (rest []reach.Span) {
	for port := int(s.Low); port <= int(s.High); port++ {
		one := reach.Span{Protocol: s.Protocol, Low: uint16(port), High: uint16(port)}
		n := len(rest)
		switch {
		case used(one):
		case n > 0 && int(rest[n-1].High)+1 == port:
			rest[n-1].High = one.High
		default:
			rest = append(rest, one)
		}
	}
	return rest
}
