package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
)

// sentence is a part of a text. Warn marks it as a warning.
type sentence struct {
	Text string
	Warn bool
}

// scope names the namespaces of the report, or "the cluster" for all.
func (r *Report) scope() string {
	if len(r.options.Namespaces) == 0 {
		return "the cluster"
	}
	return both(r.options.Namespaces)
}

// summary returns the report in a few sentences.
func (r *Report) summary(w *words) (all []sentence) {
	pods := 0
	var members []*reach.Party
	for _, m := range r.Members {
		pods, members = pods+len(m.Pods), append(members, m.Party)
	}
	workloads := tallyOf(members).workloads
	if pods == 0 {
		return []sentence{{Text: fmt.Sprintf("There are no pods in %s: nothing is there that policies are about.", r.scope()), Warn: true}}
	}
	head := fmt.Sprintf("%s: %s", r.scope(), count(workloads, "workload", "workloads"))
	if pods != workloads {
		head += fmt.Sprintf(" (%s)", count(pods, "pod", "pods"))
	}
	in, out := r.sum(filter.Ingress), r.sum(filter.Egress)
	all = append(all, sentence{Text: fmt.Sprintf("%s; %s can get in%s; it can reach %s outside of it%s; %s%s.",
		head, in.peers(), in.at(), out.peers(), out.at(), in.internet(), r.exceptHost())})
	for _, s := range []sentence{in.sentence(w, "In"), out.sentence(w, "Out")} {
		if s.Text != "" {
			all = append(all, s)
		}
	}
	all = append(all, r.exposure(w)...)
	all = append(all, in.outside(w)...)
	all = append(all, out.outside(w)...)
	return append(all, r.warnings(w)...)
}

// exceptHost returns the exception for members of the host network, to which policies do not apply. It
// is empty if there are none.
func (r *Report) exceptHost() string {
	if slices.ContainsFunc(r.Members, func(m *Member) bool { return m.Kind == reach.HostPods }) {
		return ", apart from its pods of the host network, to which policies do not apply"
	}
	return ""
}

// sum is the union of what is open for all members in one direction.
type sum struct {
	report    *Report
	direction filter.Direction
	open      []*reach.Party // peers with which something is open
	maybe     []*reach.Party // peers with which something may be open, depending on assumed addresses
	ports     map[*reach.Party][]reach.Span
	world     []*reach.Party // members that exchange something with the world
}

func (r *Report) sum(d filter.Direction) *sum {
	s := &sum{report: r, direction: d, ports: make(map[*reach.Party][]reach.Span)}
	sure := make(map[*reach.Party]bool)
	for _, m := range r.Members {
		for _, row := range m.side(d).Open {
			if row.OwnNode {
				continue
			}
			for _, p := range row.Peers {
				s.ports[p] = append(s.ports[p], row.Ports...)
				sure[p] = sure[p] || row.Verdict != reach.Depends
				if isWorld(p) && !slices.Contains(s.world, m.Party) {
					s.world = append(s.world, m.Party)
				}
			}
		}
	}
	for _, p := range r.parties {
		if s.ports[p] = union(s.ports[p]); sure[p] {
			s.open = append(s.open, p)
		} else if len(s.ports[p]) > 0 {
			s.maybe = append(s.maybe, p)
		}
	}
	return s
}

func isWorld(p *reach.Party) bool { return p.Kind == reach.Outside && p.Name == inventory.World }

func (m *Member) side(d filter.Direction) *Side {
	if d == filter.Ingress {
		return m.In
	}
	return m.Out
}

// union joins spans that overlap or touch.
func union(spans []reach.Span) (all []reach.Span) {
	order := []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP, filter.ICMP}
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b reach.Span) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.Protocol), slices.Index(order, b.Protocol)), cmp.Compare(a.Low, b.Low))
	})
	for _, s := range spans {
		if n := len(all); n > 0 && all[n-1].Protocol == s.Protocol && int(s.Low) <= int(all[n-1].High)+1 {
			all[n-1].High = max(all[n-1].High, s.High)
			continue
		}
		all = append(all, s)
	}
	return all
}

// maxFew bounds the number of items that a sentence lists. If there are more, it counts them.
const maxFew = 4

// peers returns the number of peers, in words.
func (s *sum) peers() string {
	switch {
	case len(s.open)+len(s.maybe) == 0:
		return "nothing"
	case len(s.open) == 0:
		return "perhaps " + count(tallyOf(s.maybe).peers(), "peer", "peers")
	}
	text := count(tallyOf(s.open).peers(), "peer", "peers")
	if len(s.maybe) > 0 {
		text += fmt.Sprintf(" (and perhaps %d more)", tallyOf(s.maybe).peers())
	}
	return text
}

// at returns the number of ports that are open, in words: ", on 4 ports".
func (s *sum) at() string {
	all := slices.Concat(s.open, s.maybe)
	if len(all) == 0 {
		return ""
	}
	var spans []reach.Span
	var wide []*reach.Party
	for _, p := range all {
		spans = append(spans, s.ports[p]...)
		if len(reach.Others(s.ports[p])) == 0 {
			wide = append(wide, p)
		}
	}
	n := 0
	for _, p := range union(spans) {
		n += int(p.High) - int(p.Low) + 1
	}
	switch {
	case len(wide) == len(all):
		return ", at every port"
	case len(wide) > 0:
		return fmt.Sprintf(", %d of them at every port", tallyOf(wide).peers())
	case n > manyPorts:
		return ", at many ports"
	}
	return ", on " + count(n, "port", "ports")
}

// manyPorts is the largest number of ports that the summary states.
const manyPorts = 1000

// sentence lists the peers with their ports, or counts them by kind.
func (s *sum) sentence(w *words, head string) sentence {
	type same struct {
		ports string
		maybe bool
	}
	groups := make(map[same][]*reach.Party)
	var order []same
	for i, list := range [][]*reach.Party{s.open, s.maybe} {
		for _, p := range list {
			k := same{strings.Replace(reach.PortsText(s.ports[p], maxFew), "all ports", "every port", 1), i == 1}
			if groups[k] == nil {
				order = append(order, k)
			}
			groups[k] = append(groups[k], p)
		}
	}
	var texts []string
	for _, k := range order {
		text := s.few(w, groups[k]) + " at " + k.ports
		if k.maybe {
			text += " (depends on addresses that are not known)"
		}
		texts = append(texts, text)
	}
	switch {
	case len(order) == 0:
		return sentence{}
	case len(order) > maxFew:
		return sentence{Text: head + ": " + kinds(slices.Concat(s.open, s.maybe)) + "."}
	}
	return sentence{Text: head + ": " + strings.Join(texts, "; ") + "."}
}

func (s *sum) few(w *words, set []*reach.Party) string {
	if names := w.of(set); len(names) <= maxFew {
		return both(names)
	}
	return kinds(set)
}

// many names all members of a set, or counts them if there are too many names. The overview lists them.
func many(w *words, set []*reach.Party) string {
	if names := w.of(set); len(names) <= 2*maxFew {
		return both(names)
	}
	return kinds(set)
}

// outsiders returns the peers outside the cluster.
func (s *sum) outsiders() (all []*reach.Party) {
	for _, p := range slices.Concat(s.open, s.maybe) {
		if p.Kind == reach.Outside && !p.PodRange {
			all = append(all, p)
		}
	}
	return all
}

// internet returns the part of the first sentence that is about the Internet.
func (s *sum) internet() string {
	switch {
	case slices.ContainsFunc(s.open, isWorld) && len(s.isolated(true)) == 0:
		return "the Internet gets in, to workloads that no policy isolates"
	case slices.ContainsFunc(s.open, isWorld):
		return "policies let the Internet in"
	case slices.ContainsFunc(s.maybe, isWorld):
		return "whether policies let the Internet in depends on addresses that are not known"
	case len(s.outsiders()) > 0:
		return "outside the cluster, only some ranges of addresses reach it"
	}
	return "nothing on the Internet reaches it directly"
}

// isolated returns the members that exchange something with the world, and about which a policy decides
// (true) or none does (false).
func (s *sum) isolated(is bool) (set []*reach.Party) {
	for _, m := range s.report.Members {
		if slices.Contains(s.world, m.Party) && m.side(s.direction).Isolated() == is {
			set = append(set, m.Party)
		}
	}
	return set
}

// outside returns the sentences about addresses outside the cluster, or none.
func (s *sum) outside(w *words) []sentence {
	let, open, limit := "Policies let the Internet in, to ", "The Internet gets in: no policy isolates ", "Outside the cluster, only %s can get in."
	if s.direction == filter.Egress {
		let, open, limit = "Policies let out to the Internet: ", "The Internet can be reached: no policy isolates ", "Outside the cluster, it can reach only %s."
	}
	if len(s.world) > 0 {
		var all []sentence
		for _, isolated := range []bool{true, false} {
			set := s.isolated(isolated)
			if len(set) == 0 {
				continue
			}
			text := map[bool]string{true: let, false: open}[isolated] + s.few(w, set) + "."
			if !slices.ContainsFunc(s.open, isWorld) {
				text += " This depends on addresses that are not known."
			}
			all = append(all, sentence{Text: text, Warn: true})
		}
		return all
	}
	if ranges := s.outsiders(); len(ranges) > 0 {
		return []sentence{{Text: fmt.Sprintf(limit, s.few(w, ranges))}}
	}
	if s.direction == filter.Egress {
		return []sentence{{Text: "It can reach no address outside the cluster" + s.report.exceptHost() + "."}}
	}
	return nil
}

// warnings returns sentences about members that no policy isolates, and about those of the host network.
func (r *Report) warnings(w *words) (all []sentence) {
	for _, d := range []filter.Direction{filter.Ingress, filter.Egress} {
		var open []*reach.Party
		for _, m := range r.Members {
			if m.Kind == reach.Pods && !m.side(d).Isolated() {
				open = append(open, m.Party)
			}
		}
		if len(open) == 0 {
			continue
		}
		text := "Not isolated in " + d.String() + ": " + many(w, open) + ". No policy limits what %s, only those of the other ends."
		what := "can get in"
		if d == filter.Egress {
			what = "they can reach"
		}
		all = append(all, sentence{Text: fmt.Sprintf(text, what), Warn: true})
	}
	var host []*reach.Party
	for _, m := range r.Members {
		if m.Kind == reach.HostPods {
			host = append(host, m.Party)
		}
	}
	if len(host) > 0 {
		all = append(all, sentence{Text: "Policies do not apply to pods of the host network: " + many(w, host) + ". No policy limits what they exchange with nodes and with addresses outside the cluster.", Warn: true})
	}
	return all
}
