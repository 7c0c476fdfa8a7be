package seen

import (
	"cmp"
	"slices"
	"strings"

	"sluice/filter/flow"
)

// The reasons for which flows are left out, in addition to the reasons for which lines of files are
// skipped. The texts are parts of sentences, as in "flows with ends that are not here: 40".
const (
	LeftEnds     flow.Skip = "flows with ends that are not in these manifests"
	LeftService  flow.Skip = "flows to addresses of Services, before their translation"
	LeftPorts    flow.Skip = "flows whose ports could not be read"
	LeftProtocol flow.Skip = "flows of other protocols than TCP, UDP, SCTP and ICMP"
	LeftReason   flow.Skip = "denied for other reasons than policies"
	LeftTooMany  flow.Skip = "flows at more ports than are counted"
	LeftLines    flow.Skip = "lines that cannot be read"
)

// isFlow reports whether the reason is about flows. Other reasons are about lines.
func isFlow(why flow.Skip) bool {
	switch why {
	case LeftEnds, LeftService, LeftPorts, LeftProtocol, LeftReason, LeftTooMany:
		return true
	}
	return false
}

// maxExamples bounds the examples that are kept for a reason. If there are more, the first ones are kept.
// maxShown bounds the examples that LeftOut returns.
const (
	maxExamples = 1000
	maxShown    = 5
)

// LeftOut is what was left out for one reason.
type LeftOut struct {
	Why   flow.Skip `json:"why"`
	Flows uint64    `json:"flows"` // number of flows, or of lines
	// Examples are the most frequent examples.
	Examples []Example `json:"examples,omitempty"`
	// More is the number of other examples.
	More int `json:"more,omitempty"`
}

// Example is something that was left out: an end, a Service or a line.
type Example struct {
	What  string `json:"what"`
	Flows uint64 `json:"flows"`
}

// left counts what is left out, by reason.
type left map[flow.Skip]*leftOut

type leftOut struct {
	flows    uint64
	ended    uint64 // records of connections that have ended; the larger one of flows and ended counts
	examples map[string]uint64
}

// get returns the counts for a reason.
func (l left) get(why flow.Skip) *leftOut {
	o := l[why]
	if o == nil {
		o = &leftOut{examples: make(map[string]uint64)}
		l[why] = o
	}
	return o
}

func (o *leftOut) count() uint64 { return max(o.flows, o.ended) }

func (l left) add(why flow.Skip, example string, n uint64) {
	o := l.get(why)
	o.flows += n
	if _, known := o.examples[example]; example != "" && (known || len(o.examples) < maxExamples) {
		o.examples[strings.Clone(example)] += n
	}
}

// LeftOut returns what was left out, the most frequent first.
func (t *Tally) LeftOut() []LeftOut {
	all := []LeftOut{}
	for why, o := range t.left {
		l := LeftOut{Why: why, Flows: o.count()}
		for what, n := range o.examples {
			l.Examples = append(l.Examples, Example{what, n})
		}
		slices.SortFunc(l.Examples, func(a, b Example) int {
			return cmp.Or(cmp.Compare(b.Flows, a.Flows), strings.Compare(a.What, b.What))
		})
		l.More = max(0, len(l.Examples)-maxShown)
		l.Examples = l.Examples[:len(l.Examples)-l.More]
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b LeftOut) int {
		return cmp.Or(cmp.Compare(b.Flows, a.Flows), strings.Compare(string(a.Why), string(b.Why)))
	})
	return all
}
