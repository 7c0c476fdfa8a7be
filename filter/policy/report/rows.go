package report

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy/reach"
)

// rows collects rows: one for each opening.
type rows struct {
	report *Report
	all    []*Row
	of     map[*opening]*Row
}

func newRows(r *Report) *rows { return &rows{report: r, of: make(map[*opening]*Row)} }

func (s *rows) add(e entry, peer *reach.Party) {
	row := s.of[e.opening]
	if row == nil {
		row = &Row{opening: e.opening}
		s.of[e.opening] = row
		s.all = append(s.all, row)
	}
	row.Peers = append(row.Peers, peer)
	i := slices.IndexFunc(row.Others, func(o *Other) bool { return o.reason == e.other || o.Why == e.other.Why })
	if i < 0 {
		i = len(row.Others)
		row.Others = append(row.Others, &Other{reason: e.other})
	}
	row.Others[i].Peers = append(row.Others[i].Peers, peer)
}

// sorted returns the rows by the rank of their first peer, so that addresses outside the cluster come
// first. Rows between pods and their own node come last.
func (s *rows) sorted() []*Row {
	slices.SortStableFunc(s.all, func(a, b *Row) int {
		return cmp.Or(cmp.Compare(boolean(a.OwnNode), boolean(b.OwnNode)), cmp.Compare(s.report.rank[a.Peers[0]], s.report.rank[b.Peers[0]]))
	})
	return s.all
}

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}

// shutKey is the reason for which nothing is open between a member and a peer; see Shut.
type shutKey struct {
	why     string
	byPeers bool
}

// shuts collects peers with which nothing is open, by the reason.
type shuts struct {
	all []*Shut
	of  map[shutKey]*Shut
}

func newShuts() *shuts { return &shuts{of: make(map[shutKey]*Shut)} }

func (s *shuts) add(key shutKey, peer *reach.Party) {
	if s.of[key] == nil {
		s.of[key] = &Shut{Why: key.why, ByPeers: key.byPeers}
		s.all = append(s.all, s.of[key])
	}
	s.of[key].Peers = append(s.of[key].Peers, peer)
}

// shut returns the reason for which all spans are closed.
func (b *builder) shut(spans []reach.Span, d filter.Direction) shutKey {
	if len(spans) == 0 {
		return shutKey{why: "one end has only IPv4 addresses, and the other only IPv6"}
	}
	key := entriesKey{&spans[0], how{direction: d}}
	if known, has := b.shuts[key]; has {
		return known
	}
	var texts []string
	byPeers := false
	for _, s := range spans {
		for _, o := range s.Outcomes() {
			side := sideOf(&o.Verdict, d)
			if side.Allows() {
				byPeers = true
				continue
			}
			if text := b.denial(side); !slices.Contains(texts, text) {
				texts = append(texts, text)
			}
		}
	}
	known := shutKey{strings.Join(texts, "; "), byPeers}
	b.shuts[key] = known
	return known
}

// denial describes what denies a flow on a side.
func (b *builder) denial(s filter.Side) string {
	if s.Rule != nil {
		return "denied by " + b.title(*s.Rule)
	}
	return "no rule of " + strings.Join(s.Isolation.Policies, ", ") + " allows it"
}

// links returns the openings between members, and sets ClosedWithin of the members.
func links(r *Report, b *builder) (all []*Link) {
	byOpening := make(map[*opening][]*Link)
	var order []*opening
	for _, to := range r.Members {
		rows, closed := newRows(r), newShuts()
		for _, from := range r.Members {
			if from == to && from.Single() {
				continue // a pod always reaches itself
			}
			pair := b.reach.Between(from.Party, to.Party)
			if pair != nil && !b.add(rows, to.Party, from.Party, pair, filter.Ingress) && !onlyOwnNode(pair) {
				closed.add(b.shut(pair.Spans, filter.Ingress), from.Party)
			}
		}
		to.In.ClosedWithin = closed.all
		for _, row := range rows.sorted() {
			if byOpening[row.opening] == nil {
				order = append(order, row.opening)
			}
			byOpening[row.opening] = append(byOpening[row.opening], &Link{row, []*reach.Party{to.Party}})
		}
	}
	for _, o := range order {
		plain, itself := r.merged(byOpening[o], false), r.merged(byOpening[o], true)
		if len(itself) < len(plain) {
			plain = itself
		}
		all = append(all, plain...)
	}
	return all
}

// merged merges links with the same sources and the same reasons. If itself is set, each single pod
// counts as one of its own sources, so that more links are equal. This is correct, because a pod always
// reaches itself.
func (r *Report) merged(list []*Link, itself bool) (all []*Link) {
	known := make(map[string]*Link)
	for _, l := range list {
		if to := l.To[0]; itself && to.Single() {
			l = &Link{l.Row.and(r, to), l.To}
		}
		key := r.key(l.Row)
		if o := known[key]; o != nil {
			o.To = append(o.To, l.To[0])
			continue
		}
		l = &Link{l.Row, slices.Clone(l.To)}
		known[key] = l
		all = append(all, l)
	}
	return all
}

// and returns a copy of the row with another peer, inserted by rank.
func (row *Row) and(r *Report, p *reach.Party) *Row {
	out := *row
	out.Peers = append(slices.Clone(row.Peers), p)
	slices.SortFunc(out.Peers, func(a, b *reach.Party) int { return cmp.Compare(r.rank[a], r.rank[b]) })
	if len(row.Others) == 1 {
		out.Others = []*Other{{row.Others[0].reason, out.Peers}}
	}
	return &out
}

// key identifies the peers of a row with their reasons.
func (r *Report) key(row *Row) string {
	var key []byte
	for _, o := range row.Others {
		key = append(append(key, o.Why...), 0)
		for _, p := range o.Peers {
			key = binary.AppendUvarint(key, uint64(r.rank[p]))
		}
		key = append(key, 0)
	}
	for _, p := range row.Peers {
		key = binary.AppendUvarint(key, uint64(r.rank[p]))
	}
	return string(key)
}
