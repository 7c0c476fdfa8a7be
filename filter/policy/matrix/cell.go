package matrix

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy/explain"
	"sluice/filter/policy/reach"
)

// State summarizes a cell.
type State string

// The states.
const (
	Open     State = "open"     // allowed at every port
	Declared State = "declared" // allowed only at ports that the containers of the destination declare
	Part     State = "part"     // allowed at some ports, for some pairs, for one address family, or at some addresses
	Closed   State = "closed"
	Self     State = "self" // a pod always reaches itself
)

// Open reports whether anything is allowed.
func (s State) Open() bool { return s == Open || s == Declared || s == Part }

// The verdicts about ports: those of package reach, and some, for a port at which some pairs of pods of
// two namespaces are allowed and others are denied.
var (
	allowed = reach.Allow.String()
	denied  = reach.Deny.String()
	mixed   = reach.Mixed.String()
	depends = reach.Depends.String()
)

const some = "some"

// Cell is the answer about the flows from one party to another.
type Cell struct {
	From  string `json:"from"`
	To    string `json:"to"`
	State State  `json:"state"`
	// Answers cover every port exactly once, or, if Options.Ports is set, each of these ports. Answers
	// that allow anything come first.
	Answers []Answer `json:"answers"`
	// OwnNode has the answers for pods and their own node, if they differ from Answers.
	OwnNode []Answer `json:"ownNode,omitempty"`
	// Pairs counts the pairs of members by state, for namespaces and for parties with several members;
	// otherwise it is nil.
	Pairs map[State]int `json:"pairs,omitempty"`
	// Seen is what was seen of these flows; nil if nothing is open and nothing was tried.
	Seen *Seen `json:"seen,omitempty"`

	spans []span
}

// Answer is the verdict about some ports that share one reason.
type Answer struct {
	Ports   []string `json:"ports"`   // as in "TCP 80", "UDP 8000-8100", "SCTP", "ICMP"
	Verdict string   `json:"verdict"` // "allow"; "mixed" (allowed for one address family); "depends" (on unknown addresses); "some" (allowed for some pairs); "deny"
	Why     string   `json:"why"`     // the policies and rules that decide
}

// span is a range of ports with the same verdict and reason.
type span struct {
	proto     filter.Protocol
	low, high uint16
	verdict   string
	why       string
}

// ports returns the span without its verdict and reason.
func (s span) ports() reach.Span { return reach.Span{Protocol: s.proto, Low: s.low, High: s.high} }

// builder computes cells. Equal lists of spans or answers are the same slice.
type builder struct {
	reach    *reach.Map
	asked    []Port
	spans    map[spansKey][]span
	whys     map[whyKey]string
	answers  map[*span][]Answer
	noFamily []span // the answer for two ends without a common address family
}

// spansKey identifies a list of spans of package reach by its first element: equal lists are the same
// slice.
type spansKey struct {
	first  *reach.Span
	toNode bool // the flows are from pods to their own node
}

// whyKey identifies the reasons of an answer of package reach.
type whyKey struct {
	answer *reach.Answer
	toNode bool
}

func newBuilder(r *reach.Map, asked []Port) *builder {
	return &builder{
		reach: r, asked: asked, spans: make(map[spansKey][]span), whys: make(map[whyKey]string), answers: make(map[*span][]Answer),
		noFamily: spansWith(denied, "one end has only IPv4 addresses, and the other only IPv6"),
	}
}

// pair is the answer about the flows from one member to another.
type pair struct {
	from, to       member
	state          State
	spans, ownNode []span
}

// cell returns the answer about the flows from one party to another, or nil if policies do not decide
// about them.
func (b *builder) cell(from, to *Party) *Cell {
	var pairs []pair
	for _, f := range from.members {
		for _, t := range to.members {
			if p, decided := b.pair(f, t); decided {
				pairs = append(pairs, p)
			}
		}
	}
	switch {
	case len(pairs) == 0:
		return nil
	case len(pairs) > 1 || from.Kind == "namespace" || to.Kind == "namespace":
		return b.combined(from, to, pairs)
	}
	p := pairs[0]
	if p.state == Self {
		return &Cell{From: from.Name, To: to.Name, State: Self, Answers: []Answer{}}
	}
	return &Cell{From: from.Name, To: to.Name, State: p.state, Answers: b.answersOf(p.spans), OwnNode: b.answersOf(p.ownNode), spans: p.spans}
}

// pair returns the answer about the flows from one member to another. decided is false if policies do
// not decide about them.
func (b *builder) pair(from, to member) (p pair, decided bool) {
	p = pair{from: from, to: to, state: Closed}
	if from.Party == to.Party && from.pod == to.pod && from.single() {
		p.state = Self
		return p, true
	}
	r := b.reach.Between(from.Party, to.Party)
	if r == nil {
		return p, false
	}
	apart, own := b.convert(r.Spans, false), b.convert(r.OwnNode, from.Kind == reach.Pods)
	switch {
	case len(own) > 0 && (len(apart) == 0 || onNode(from, to)):
		p.spans = own
	case notOnNode(from, to):
		p.spans = apart
	default:
		p.spans, p.ownNode = apart, own
	}
	if len(p.spans) == 0 {
		p.spans = b.noFamily
		return p, true
	}
	p.state = stateOf(p.spans)
	if p.state == Part && len(b.asked) == 0 && len(apart) > 0 && &p.spans[0] == &apart[0] && reach.OnlyDeclared(r.Spans, to.ports()) {
		p.state = Declared
	}
	return p, true
}

// onNode reports whether one member is a single pod, and the other a single pod in the host network of
// the same node.
func onNode(from, to member) bool {
	known, same := sameNode(from, to)
	return known && same
}

func notOnNode(from, to member) bool {
	known, same := sameNode(from, to)
	return known && !same
}

// sameNode reports whether two single pods run on the same node. It knows this only if exactly one of
// them is in the host network.
func sameNode(from, to member) (known, same bool) {
	if from.pod == nil || to.pod == nil || from.pod.HostNetwork == to.pod.HostNetwork {
		return false, false
	}
	pod, host := from.pod, to.pod
	if pod.HostNetwork {
		pod, host = host, pod
	}
	return true, slices.ContainsFunc(slices.Concat(host.Addrs, host.Hosts), func(a netip.Addr) bool { return slices.Contains(pod.Hosts, a) })
}

// stateOf summarizes spans. It never returns Declared, because it does not know which ports are
// declared.
func stateOf(spans []span) State {
	first := spans[0].verdict
	switch {
	case slices.ContainsFunc(spans, func(s span) bool { return s.verdict != first }):
		return Part
	case first == allowed:
		return Open
	case first == denied:
		return Closed
	}
	return Part
}

// convert returns spans of package reach as spans with reasons: all of them, or, if ports were asked
// for, one for each of these ports.
func (b *builder) convert(list []reach.Span, toNode bool) (spans []span) {
	if len(list) == 0 {
		return nil
	}
	key := spansKey{&list[0], toNode}
	if known, has := b.spans[key]; has {
		return known
	}
	if len(b.asked) == 0 {
		for _, s := range list {
			spans = append(spans, span{s.Protocol, s.Low, s.High, s.Verdict.String(), b.why(s.Answer, toNode)})
		}
	}
	for _, p := range b.asked {
		a := reach.At(list, p.proto, p.Number)
		spans = append(spans, span{p.proto, p.Number, p.Number, a.Verdict.String(), b.why(a, toNode)})
	}
	b.spans[key] = spans
	return spans
}

// why describes the policies and rules that decide.
func (b *builder) why(a *reach.Answer, toNode bool) string {
	key := whyKey{a, toNode}
	if known, has := b.whys[key]; has {
		return known
	}
	all := a.Outcomes()
	text := whyOf(all[0], toNode)
	if a.Verdict == reach.Mixed || len(all) > 1 && text != whyOf(all[1], toNode) {
		text = fmt.Sprintf("IPv4: %s (%s); IPv6: %s (%s)", all[0].Action, text, all[1].Action, whyOf(all[1], toNode))
	}
	b.whys[key] = text
	return text
}

func whyOf(o *reach.Outcome, toNode bool) string {
	text := explain.Why(o.Verdict, toNode)
	if o.Elsewhere == nil {
		return text
	}
	var at []string
	if from := o.Elsewhere.From; from != nil {
		at = append(at, "if the source "+from.Where())
	}
	if to := o.Elsewhere.To; to != nil {
		at = append(at, "if the destination "+to.Where())
	}
	return fmt.Sprintf("%s %s (%s); otherwise %s (%s)", o.Elsewhere.Action, strings.Join(at, " and "), explain.Why(o.Elsewhere.Verdict, toNode), o.Action, text)
}

// answersOf joins spans with the same verdict and reason. Answers that allow anything come first.
func (b *builder) answersOf(spans []span) (answers []Answer) {
	if len(spans) == 0 {
		return nil
	}
	if known, has := b.answers[&spans[0]]; has {
		return known
	}
	answers = []Answer{}
	type key struct{ verdict, why string }
	seen := make(map[key]bool)
	for _, s := range slices.Concat(with(spans, func(v string) bool { return v != denied }), with(spans, func(v string) bool { return v == denied })) {
		if seen[key{s.verdict, s.why}] {
			continue
		}
		seen[key{s.verdict, s.why}] = true
		a := Answer{Verdict: s.verdict, Why: s.why}
		for _, r := range joined(spans, func(o span) bool { return o.verdict == s.verdict && o.why == s.why }) {
			a.Ports = append(a.Ports, r.String())
		}
		answers = append(answers, a)
	}
	b.answers[&spans[0]] = answers
	return answers
}

func with(spans []span, f func(verdict string) bool) (some []span) {
	for _, s := range spans {
		if f(s.verdict) {
			some = append(some, s)
		}
	}
	return some
}

// joined returns the spans that f selects, and joins adjacent ones.
func joined(spans []span, f func(span) bool) (all []reach.Span) {
	for _, s := range spans {
		if !f(s) {
			continue
		}
		if n := len(all); n > 0 && all[n-1].Protocol == s.proto && all[n-1].High+1 == s.low {
			all[n-1].High = s.high
			continue
		}
		all = append(all, s.ports())
	}
	return all
}
