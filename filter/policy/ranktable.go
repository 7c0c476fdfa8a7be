package policy

import (
	"math/bits"
	"slices"

	"sluice/filter"
)

// rankTable is the usual form of ordered rules. Two ranks matter to a decision: the lowest one
// among the rules for the flow's port, which decides, and the lowest one among the rules for
// any port, which tells whether all ports are decided alike. One search finds both.
//
// The ports of each protocol are cut into intervals, and a row has the ranks for an interval:
// two for each selector, and in the last column those of the rules for every peer. Intervals
// with the same rules share a row.
//
// The fields that most decisions read fill two cache lines; near fills another one.
type rankTable struct {
	some, whole columns // of selectors by the labels of pods, and of those for all pods of a namespace
	rows        []ranks
	width       uint32            // the number of columns
	named       bool              // a rule has a named port
	blocks      bool              // a rule has a block
	flat        [3][]rankInterval // for each protocol, indexed like ruleSet.ports
	rules       []rank
	near        nearBits
	of          *ruleSet
	rowBlocks   [][]blockRange // for each row
	ids         []uint32       // of the selectors, by column
}

// ranks are the lowest rank of some rules for the ports of a row, and the lowest one of those
// for any port. Each is noRank if there is no such rule.
type ranks struct{ atPort, anyPort codedRank }

func (a ranks) min(b ranks) ranks {
	return ranks{min(a.atPort, b.atPort), min(a.anyPort, b.anyPort)}
}

// codedRank is the rank of a rule, followed by one bit for portless and two for the action. So
// most decisions need not read the rule itself. The greatest value, noRank, means that there is
// no rule.
type codedRank uint32

const (
	noRank = codedRank(noRule)

	unknownAction = portlessBit - 1 // any action that is not known
	portlessBit   = 1 << 2
	rankShift     = 3
)

// codeOf returns the code of a rule, or noRank for noRule.
func codeOf(rules []rank, index uint32) codedRank {
	if index == noRule {
		return noRank
	}
	code := index<<rankShift | uint32(min(rules[index].action, unknownAction))
	if rules[index].portless {
		code |= portlessBit
	}
	return codedRank(code)
}

// rankInterval is the ports from start up to the start of the next interval, and the index of
// their row. The first interval begins at port 0.
type rankInterval struct {
	start uint16
	row   uint32
}

// portlessRow is the row for flows without ports.
const portlessRow = 0

// columns maps the ids of selectors to their columns.
type columns struct {
	words []columnWord // a bitmap of the ids; nil if it would be much larger than a list of them
	first uint32       // words[0] holds ids from first*64 on
	begin uint32       // the first column
}

// columnWord is a word of the bitmap, and the column of the first id in this word.
type columnWord struct {
	ids   uint64
	begin uint32
}

// first returns the rule of the lowest rank that matches the flow: see ruleSet.lowest.
func (t *rankTable) first(q *query) (m match, pair bool) {
	row := t.rowOf(q.key)
	all := t.rows[row*t.width:][:t.width]
	best := all[t.width-1]
	if q.peer != nil && q.peer.class != nil {
		best = t.lowest(&t.some, all, &q.peer.class.peers, best)
		best = t.lowest(&t.whole, all, &q.everyone[q.peer.class.namespace], best)
	}
	if t.blocks && t.near.has(q.addr) || t.named {
		best = t.lowestOfMore(q, row, best)
	}
	if best.atPort == noRank {
		return match{}, best.anyPort == noRank
	}
	// The rule decides about all flows between the two addresses if it is for every port and no
	// rule before it matches at another port.
	pair = best.atPort == best.anyPort && best.atPort&portlessBit != 0
	return match{t.rules[best.atPort>>rankShift].rule, Action(best.atPort & unknownAction)}, pair
}

// lowest returns the lowest ranks among best and those of the selectors that are in set.
//
// The loop has no branch that depends on the ids: a processor predicts such a branch wrong
// every other time, which takes longer than the whole loop.
func (t *rankTable) lowest(c *columns, row []ranks, set *idSet, best ranks) ranks {
	words := c.words
	if len(words) == 0 || set.dense != nil || len(set.list) > fewIDs {
		return t.search(c, row, set, best)
	}
	atPort, anyPort := best.atPort, best.anyPort
	for _, id := range set.list {
		at := id/64 - c.first
		is := uint64(int64(at)-int64(len(words))) >> 63 // 1 if at is an index of words, or 0
		w := &words[at&-uint32(is)]
		is &= w.ids >> (id % 64)
		found := row[w.begin+uint32(bits.OnesCount64(w.ids&(1<<(id%64)-1)))]
		unless := codedRank(is) - 1 // noRank if the id is not in the bitmap
		atPort, anyPort = min(atPort, found.atPort|unless), min(anyPort, found.anyPort|unless)
	}
	return ranks{atPort, anyPort}
}

// fewIDs is the length of the longest list of ids that lowest looks up in the bitmap. It calls
// search for a longer one.
const fewIDs = 64

// search computes the result of lowest without the bitmap, for a set or columns too large for it.
func (t *rankTable) search(c *columns, row []ranks, set *idSet, best ranks) ranks {
	ids := t.ids[:t.whole.begin]
	if c == &t.whole {
		ids = t.ids[t.whole.begin:]
	}
	if set.dense != nil || len(set.list) > len(ids) {
		for i, id := range ids {
			if set.has(id) {
				best = best.min(row[c.begin+uint32(i)])
			}
		}
		return best
	}
	for _, id := range set.list {
		if at, found := slices.BinarySearch(ids, id); found {
			best = best.min(row[c.begin+uint32(at)])
		}
	}
	return best
}

// rowOf returns the index of the row for a flow.
func (t *rankTable) rowOf(k *filter.Key) uint32 {
	if k.Transport != filter.Ported {
		return portlessRow
	}
	flat := t.flat[portTableOf(k.Protocol)]
	i := 0
	for n := len(flat); n > 1; {
		half := n / 2
		i += half &^ ((int(k.Port) - int(flat[i+half].start)) >> 63)
		n -= half
	}
	return flat[i].row
}

// lowestOfMore returns the lowest ranks among best and those of the rules that match the flow by
// a block or by the name of the port.
func (t *rankTable) lowestOfMore(q *query, row uint32, best ranks) ranks {
	p := remoteOf(q, t.of)
	if t.blocks && p.isNear() {
		atPort, anyPort := blockAt(t.rowBlocks[row], p.place), blockAt(t.of.peers.blocks, p.place)
		best = best.min(ranks{codeOf(t.rules, atPort), codeOf(t.rules, anyPort)})
	}
	best.atPort = min(best.atPort, codeOf(t.rules, t.of.lowestNamed(q, &p)))
	return best
}
