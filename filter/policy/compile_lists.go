package policy

import (
	"cmp"
	"slices"
)

// ruleLists is several lists of rules that are stored in one slice. To fill them, call count()
// for each element, then allot() once, then put() for each element.
type ruleLists struct {
	// ends holds a number for each list. Before allot(), it is the length of the list. Between
	// allot() and the last put(), it is the index in rules at which the next put() writes.
	// After the last put(), it is the index in rules after the last element.
	ends  []int
	rules []uint32
}

func newRuleLists(n int) *ruleLists { return &ruleLists{ends: make([]int, n)} }

// count reserves room for one more rule in list i.
func (p *ruleLists) count(i int) { p.ends[i]++ }

// allot allocates the lists, after all calls of count.
func (p *ruleLists) allot() {
	sum := 0
	for i, n := range p.ends {
		p.ends[i] = sum
		sum += n
	}
	p.rules = make([]uint32, sum)
}

// put adds a rule to list i, for which count() must have reserved room.
func (p *ruleLists) put(i int, rule uint32) {
	p.rules[p.ends[i]] = rule
	p.ends[i]++
}

// at returns list i.
func (p *ruleLists) at(i int) []uint32 {
	begin := 0
	if i > 0 {
		begin = p.ends[i-1]
	}
	return p.rules[begin:p.ends[i]]
}

// weightOf returns the sum of the weights (compiler.weight) of the rules in p. It counts a
// rule once, even if several lists contain the rule.
func (c *compiler) weightOf(p *ruleLists) (sum int) {
	counted := make([]bool, len(c.rules))
	for _, r := range p.rules {
		if !counted[r] {
			counted[r] = true
			sum += c.weight[r]
		}
	}
	return sum
}

// setsAt returns a peer set for each list of rules. To keep the total number of entries
// below about limit, several sets may share the entries of a rule (see large).
func (c *compiler) setsAt(p *ruleLists, limit int) []*peerSet {
	large := c.large(p, limit)
	sets := make([]*peerSet, len(p.ends))
	for i := range sets {
		sets[i] = c.split(p.at(i), large)
	}
	return sets
}

// large selects the rules whose entries the sets share: instead of a copy of the entries, each
// set refers to the one peer set of such a rule. large returns nil if copies of all rules take at
// most limit entries. Otherwise, it selects rules that several lists contain, those whose copies
// take most entries first, until the remaining copies take at most limit entries.
func (c *compiler) large(p *ruleLists, limit int) []bool {
	seen, total := make(map[mark]bool), 0
	uses := make([]int, len(c.rules))
	for i := range p.ends {
		var m mark
		weight := 0
		for _, r := range p.at(i) {
			m = m.with(c.marks[r])
			weight += c.weight[r]
			uses[r]++
		}
		if !seen[m] {
			seen[m] = true
			total += weight
		}
	}
	if total <= limit {
		return nil
	}
	var order []int
	total = 0
	for r, n := range uses {
		total += n * c.weight[r]
		if n > 1 && c.weight[r] > 1 {
			order = append(order, r)
		}
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(uses[b]*c.weight[b], uses[a]*c.weight[a]) })
	large := make([]bool, len(c.rules))
	for _, r := range order {
		if total <= limit {
			break
		}
		large[r] = true
		total -= uses[r] * c.weight[r]
	}
	return large
}

// split returns the peer set of a list of rules. The set refers to the sets of those rules that
// are marked in the parameter "large", and has copies of the entries of all other rules.
func (c *compiler) split(rules []uint32, large []bool) *peerSet {
	if large == nil || len(rules) < 2 || !slices.ContainsFunc(rules, func(r uint32) bool { return large[r] }) {
		return c.set(rules)
	}
	m := c.markOf(rules)
	if s := c.sets[m]; s != nil {
		return s
	}
	s := &peerSet{everyone: noRule}
	var small []uint32
	var more []*peerSet
	for _, r := range rules {
		if large[r] {
			more = append(more, c.set([]uint32{r}))
		} else {
			small = append(small, r)
		}
	}
	if of := c.set(small); of != nil {
		*s = *of
	}
	s.more = &peerSets{slices.Clip(more)}
	c.sets[m] = s
	return s
}
