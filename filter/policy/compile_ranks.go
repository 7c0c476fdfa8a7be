package policy

import (
	"math/bits"
	"slices"
)

// rankMaker builds a rankTable.
type rankMaker struct {
	*compiler
	table   *rankTable
	columns [][]uint32 // for each rule, the columns of its selectors
	rows    map[mark]uint32
	all     *peerSet // of all rules
	room    int      // entries that may be added
	list    []uint32 // reused
}

// rankTable returns the table of ordered rules. It returns nil if the table would have more
// entries than the port tables may have.
func (c *compiler) rankTable(of *ruleSet, l *lists) *rankTable {
	if of.peers == nil || c.shape.noTables {
		return nil
	}
	t := newRankTable(of)
	m := rankMaker{compiler: c, table: t, all: of.peers, rows: make(map[mark]uint32), room: c.roomFor(l)}
	if m.room < 0 {
		return nil
	}
	m.findColumns()
	if _, is := m.rowOf(l.portless); !is {
		return nil
	}
	for i := range t.flat {
		if !m.intervals(i, l) {
			return nil
		}
	}
	t.rows, t.rowBlocks = fitted(t.rows), fitted(t.rowBlocks)
	return t
}

// newRankTable returns a table that has columns and no rows.
func newRankTable(of *ruleSet) *rankTable {
	all := of.peers
	t := &rankTable{
		rules: of.extra.ranks, near: of.extra.near, of: of,
		named: len(of.named) > 0, blocks: len(all.blocks) > 0,
		width: uint32(len(all.peers)) + 1, ids: make([]uint32, len(all.peers)),
	}
	for i := range all.peers {
		t.ids[i] = all.peers[i].selector
	}
	t.some, t.whole = newColumns(t.ids[:all.whole], 0), newColumns(t.ids[all.whole:], all.whole)
	return t
}

// roomFor returns the number of entries that a table may have.
func (c *compiler) roomFor(l *lists) int {
	size := 0
	for _, n := range c.weight {
		size += n
	}
	for i := range l.spans {
		size += len(l.spans[i])
	}
	return c.shape.floor + c.shape.flat*size
}

// newColumns returns the columns of the selectors with the given ids, which are sorted. begin is
// the first column.
func newColumns(ids []uint32, begin uint32) columns {
	c := columns{begin: begin}
	if len(ids) == 0 {
		return c
	}
	c.first = ids[0] / 64
	n := int(ids[len(ids)-1]/64-c.first) + 1
	if n > fewColumnWords+2*len(ids) {
		return c
	}
	c.words = make([]columnWord, n)
	for _, id := range ids {
		c.words[id/64-c.first].ids |= 1 << (id % 64)
	}
	for i := range c.words {
		c.words[i].begin = begin
		begin += uint32(bits.OnesCount64(c.words[i].ids))
	}
	return c
}

// fewColumnWords bounds the bitmap of columns: it may have two words for each selector, and this
// number of words in addition.
const fewColumnWords = 32

// findColumns finds the columns of the selectors of each rule. Selectors of rules that are never
// reached have none.
func (m *rankMaker) findColumns() {
	t := m.table
	n := 0
	for _, r := range m.rules {
		n += len(r.some) + len(r.whole)
	}
	all := make([]uint32, 0, n)
	m.columns = make([][]uint32, len(m.rules))
	for i, r := range m.rules {
		begin := len(all)
		all = columnsOf(all, r.some, t.ids[:t.whole.begin], 0)
		all = columnsOf(all, r.whole, t.ids[t.whole.begin:], t.whole.begin)
		m.columns[i] = all[begin:]
	}
}

// columnsOf appends the columns of selectors to list. ids are the sorted ids of the selectors that
// have columns, and first is the column of ids[0].
func columnsOf(list []uint32, selectors []*selector, ids []uint32, first uint32) []uint32 {
	for _, s := range selectors {
		if at, found := slices.BinarySearch(ids, s.id); found {
			list = append(list, first+uint32(at))
		}
	}
	return list
}

// intervals cuts the ports of a protocol into intervals, and reports whether there is room for
// their rows.
func (m *rankMaker) intervals(protocol int, l *lists) bool {
	if len(l.spans[protocol]) > 0 {
		return m.cut(protocol, l)
	}
	row, is := m.rowOf(append(slices.Clone(l.portless), l.all[protocol]...))
	m.table.flat[protocol] = []rankInterval{{0, row}}
	return is
}

// cut is the method "intervals" for a protocol with rules for some of its ports.
func (m *rankMaker) cut(protocol int, l *lists) bool {
	starts := l.starts[protocol]
	flat := make([]rankInterval, 0, 1+len(starts))
	if starts[0] > 0 {
		flat = append(flat, rankInterval{0, portlessRow}) // no rule is for these ports
	}
	ports := m.walk(l.spans[protocol], starts)
	is := ports.each(func(i int, id mark, weight int) bool {
		row, is := m.rowAt(&ports, id, weight)
		if n := len(flat); is && (n == 0 || flat[n-1].row != row) {
			flat = append(flat, rankInterval{uint16(starts[i]), row})
		}
		return is
	})
	m.table.flat[protocol] = fitted(flat)
	return is
}

// rowAt returns the index of the row for the current interval of ports, and reports whether there
// is room for it. id and weight are those of the interval's rules.
func (m *rankMaker) rowAt(ports *portWalk, id mark, weight int) (row uint32, is bool) {
	if row, is = m.rows[id]; is {
		return row, true
	}
	if m.room -= weight + int(m.table.width); m.room < 0 {
		return 0, false
	}
	m.list = ports.rules(m.list[:0])
	return m.addRow(id, m.list), true
}

// rowOf returns the index of the row for rules, and reports whether there is room for it.
func (m *rankMaker) rowOf(rules []uint32) (row uint32, is bool) {
	slices.Sort(rules)
	id := m.markOf(rules)
	if row, is = m.rows[id]; is {
		return row, true
	}
	m.room -= int(m.table.width)
	for _, r := range rules {
		m.room -= m.weight[r]
	}
	if m.room < 0 {
		return 0, false
	}
	return m.addRow(id, rules), true
}

// addRow adds a row for rules, which are sorted by rank, and returns its index.
func (m *rankMaker) addRow(id mark, rules []uint32) (row uint32) {
	t := m.table
	columns := m.newColumns()
	var blocks []blockRange
	for _, r := range rules {
		code := codeOf(t.rules, r)
		if m.rules[r].anyone { // later rules are never reached
			columns[t.width-1].atPort = code
			break
		}
		for _, at := range m.columns[r] {
			columns[at].atPort = min(columns[at].atPort, code)
		}
		blocks = append(blocks, m.blocks[r]...)
	}
	row = uint32(len(t.rowBlocks))
	t.rowBlocks = append(t.rowBlocks, byRank(blocks))
	m.rows[id] = row
	return row
}

// newColumns appends the columns of a row to the table. It sets only anyPort, which is the same
// in every row.
func (m *rankMaker) newColumns() []ranks {
	t := m.table
	begin := len(t.rows)
	for _, p := range m.all.peers {
		t.rows = append(t.rows, ranks{noRank, codeOf(t.rules, p.rule)})
	}
	t.rows = append(t.rows, ranks{noRank, codeOf(t.rules, m.all.everyone)})
	return t.rows[begin:]
}
