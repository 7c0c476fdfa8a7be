package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/near"
)

// EffectsAnswer is the JSON form of Effects.
type EffectsAnswer struct {
	Opens    []OpeningAnswer `json:"opens"`              // never null
	Isolates []string        `json:"isolates,omitempty"` // names of pods
}

// OpeningAnswer is a set of flows from some ends to others that changes would allow.
type OpeningAnswer struct {
	From  []string `json:"from"` // names of workloads, pods, nodes or ranges
	To    []string `json:"to"`
	Ports []string `json:"ports"` // as in "TCP 8443", or "every port and protocol"
	// Family is set if the ends have both address families, and the flows have only this one.
	Family string `json:"family,omitempty"`
	// Depends reports that the flows are allowed only for some of the addresses that an end may have.
	Depends bool `json:"depends,omitempty"`
}

// opens is a set of openings with the same ports.
type opens struct {
	from, to []*End
	ports    string
	family   string // empty if the flows have every address family of the ends
	depends  bool
}

func (o opens) alike(a opens) bool {
	return a.ports == o.ports && a.family == o.family && a.depends == o.depends
}

// summary joins openings with the same destination, and then openings with the same sources. If the
// changes affect all pods of a workload alike, it names the workload instead of the pods, even if some
// of the flows are from a node to its own pod and pass anyway.
func (e *Effects) summary() (all []opens) {
	var byTo []opens
	for _, o := range e.byFamily() {
		if i := slices.IndexFunc(byTo, func(a opens) bool { return a.alike(o) && a.to[0] == o.to[0] }); i >= 0 {
			byTo[i].from = append(byTo[i].from, o.from...)
		} else {
			byTo = append(byTo, o)
		}
	}
	for _, o := range byTo {
		slices.SortFunc(o.from, func(a, b *End) int { return cmp.Or(strings.Compare(a.Name, b.Name), a.Addrs[0].Compare(b.Addrs[0])) })
		if i := slices.IndexFunc(all, func(a opens) bool { return a.alike(o) && slices.Equal(a.from, o.from) }); i >= 0 {
			all[i].to = append(all[i].to, o.to...)
		} else {
			all = append(all, o)
		}
	}
	return all
}

// byFamily joins the openings of both address families of the same ends.
func (e *Effects) byFamily() (all []opens) {
	last := make(map[[2]*End]int)
	for _, o := range slices.Concat(e.Opens, e.ownToo()) {
		out := opens{[]*End{o.From}, []*End{o.To}, strings.Join(portTexts(o.Ports), ", "), o.Family, o.Depends}
		if len(o.From.Addrs) == 1 || len(o.To.Addrs) == 1 {
			out.family = "" // the ends have only this family
		}
		key := [2]*End{o.From, o.To}
		if i, known := last[key]; known && all[i].ports == out.ports && all[i].depends == out.depends {
			all[i].family = ""
			continue
		}
		last[key] = len(all)
		all = append(all, out)
	}
	return all
}

// ownToo returns flows from nodes to their own pods, if the changes let the same node reach other pods
// of the same workload at the same ports.
func (e *Effects) ownToo() (all []Opening) {
	for _, own := range e.own {
		if own.To.Workload != (policy.Ref{}) && slices.ContainsFunc(e.Opens, func(o Opening) bool {
			return o.From == own.From && o.To.Workload == own.To.Workload && o.Family == own.Family && slices.Equal(o.Ports, own.Ports)
		}) {
			all = append(all, own)
		}
	}
	return all
}

func (e *Effects) answer() *EffectsAnswer {
	if e == nil {
		return nil
	}
	a := &EffectsAnswer{Opens: []OpeningAnswer{}}
	for _, o := range e.summary() {
		a.Opens = append(a.Opens, OpeningAnswer{e.names(o.from), e.names(o.to), strings.Split(o.ports, ", "), o.family, o.depends})
	}
	for _, p := range e.Isolates {
		a.Isolates = append(a.Isolates, p.String())
	}
	return a
}

// names returns the names of ends. If the ends include all pods of a workload, it names the workload
// instead.
func (e *Effects) names(ends []*End) (names []string) {
	var ranges []*End
	of := make(map[policy.Ref]int)
	for _, end := range ends {
		if end.Workload != (policy.Ref{}) {
			of[end.Workload]++
		}
	}
	for _, end := range ends {
		name := end.Name
		if n := e.sizes[end.Workload]; n > 0 && n == of[end.Workload] {
			name = end.Workload.Namespace + "/" + end.Workload.Name
			if n > 1 {
				name += fmt.Sprintf(" (%d pods)", n)
			}
		}
		if end.Range != nil {
			ranges = append(ranges, end)
		} else if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(ranges) > 0 {
		names = append(names, rangesText(ranges))
	}
	return names
}

// maxOpens bounds the lines of text about the flows that changes would allow.
const maxOpens = 20

// writeEffects writes the side effects of the changes.
func (e *Explanation) writeEffects(b *strings.Builder) {
	if e.Effects == nil {
		return
	}
	subject := "this"
	if len(e.changes()) > 1 {
		subject = "both together"
	}
	all := e.Effects.summary()
	verb := map[bool]string{true: "open", false: "opens"}[len(e.changes()) > 1]
	if len(all) == 0 {
		fmt.Fprintf(b, "%s %s nothing else\n", subject, verb)
	} else {
		fmt.Fprintf(b, "%s also %s:\n", subject, verb)
	}
	for i, o := range all {
		if i == maxOpens {
			fmt.Fprintf(b, "    and %s (all are in the JSON, -o json)\n", count(len(all)-i, "more line", "more lines"))
			break
		}
		fmt.Fprintf(b, "    %s to %s, %s", near.List(e.Effects.names(o.from), 8, ", "), near.List(e.Effects.names(o.to), 8, ", "), o.ports)
		if o.family != "" {
			fmt.Fprintf(b, " (%s)", o.family)
		}
		if o.depends {
			fmt.Fprint(b, ", if the addresses are in the ranges of the rules (not known)")
		}
		fmt.Fprintln(b)
	}
	if len(e.Effects.Isolates) > 0 {
		var names []string
		for _, p := range e.Effects.Isolates {
			names = append(names, p.String())
		}
		fmt.Fprintf(b, "%s also isolates %s, which no policy isolates now: what no rule allows them is then denied\n", subject, near.List(names, 8, ", "))
	}
}

// portTexts describes spans of ports, and joins adjacent ones.
func portTexts(spans []policy.PortRange) (texts []string) {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b policy.PortRange) int {
		if a.Protocol != b.Protocol {
			return protocolOrder(a.Protocol) - protocolOrder(b.Protocol)
		}
		return int(a.Low) - int(b.Low)
	})
	var joined []policy.PortRange
	for _, s := range spans {
		if n := len(joined); n > 0 && joined[n-1].Protocol == s.Protocol && s.Protocol.HasPorts() && int(joined[n-1].High)+1 == int(s.Low) {
			joined[n-1].High = s.High
			continue
		}
		joined = append(joined, s)
	}
	whole := 0
	for _, s := range joined {
		switch {
		case !s.Protocol.HasPorts():
			texts, whole = append(texts, "ICMP and other protocols without ports"), whole+1
		case s.Low <= 1 && s.High == 65535:
			texts, whole = append(texts, "every "+s.Protocol.String()+" port"), whole+1
		case s.Low == s.High:
			texts = append(texts, fmt.Sprintf("%s %d", s.Protocol, s.Low))
		default:
			texts = append(texts, fmt.Sprintf("%s %d-%d", s.Protocol, s.Low, s.High))
		}
	}
	if whole == 4 {
		return []string{"every port and protocol"}
	}
	return texts
}

func protocolOrder(p filter.Protocol) int {
	return slices.Index([]filter.Protocol{filter.TCP, filter.UDP, filter.SCTP, filter.ICMP}, p)
}
