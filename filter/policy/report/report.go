// Package report writes, for an auditor, who can get into some namespaces and out of them: every peer,
// its ports, and the rules that allow it; what is closed, and by which policies; and what the answers
// depend on. The answers are those of package reach. The report is text, Markdown, JSON or an HTML page.
package report

import (
	"cmp"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/reach"
)

// Options state the scope of a report, and its sources.
type Options struct {
	Namespaces []string // the scope of the report; empty means all namespaces
	// Place returns the file and line of a rule, as in "pci.yaml:12", or those of its policy if the
	// Index is -1. It returns "" if they are not known. Place may be nil.
	Place func(r filter.Rule) string

	Date    string   // of the report
	Inputs  string   // digest of the objects that were read
	Version string   // of the program
	Source  []string // where the objects were read from: files, directories, a cluster
	Read    []string // counts of the objects that were read, as in "3 Pods"
	// Missing describes the parts that were not read or not understood.
	Missing []string
}

// Report is the answer about all pods of the scope.
type Report struct {
	// Members are the workloads and pods of the scope.
	Members []*Member
	// Within are the open flows between members, with the rows of the destination's ingress.
	Within []*Link
	// Ways are the ways from outside the cluster to members.
	Ways []*Way

	options Options
	parties []*reach.Party // all parties of the cluster, addresses outside of it first
	rank    map[*reach.Party]int
	parts   map[policy.Ref][]*reach.Party // the parties of each workload
	clash   map[string]int                // number of workloads of all kinds with a name
	// workloads counts, by namespace, the workloads and the pods without a workload.
	workloads map[string]int
	leftOut   []reach.LeftOut
	ended     []string // pods of the scope that have ended
}

// Member is a party of pods in the scope.
type Member struct {
	*reach.Party
	In, Out *Side
}

// Side is what a member can exchange, in one direction, with parties that are not in the scope.
type Side struct {
	Direction filter.Direction
	// Isolating are the policies that isolate the pods. Ordered are those of the tiers
	// Admin and Baseline that may decide about them.
	Isolating, Ordered []string
	Open               []*Row
	Closed             []*Shut
	// ClosedWithin are members that are closed, only for the direction Ingress.
	ClosedWithin []*Shut
}

// Isolated reports whether some policy decides about the side.
func (s *Side) Isolated() bool { return len(s.Isolating)+len(s.Ordered) > 0 }

// Row is an opening between a member and some peers.
type Row struct {
	*opening
	Peers []*reach.Party
	// Others are the reasons on the side of the peers, each with its peers.
	Others []*Other
}

// Other is a reason for which the policies of some peers allow a row.
type Other struct {
	*reason
	Peers []*reach.Party
}

// Link is an opening from some members to others.
type Link struct {
	*Row                // Peers are the sources
	To   []*reach.Party // the destinations
}

// Shut are peers that cannot exchange anything with a member, for the same reason.
type Shut struct {
	Peers []*reach.Party
	// Why describes what denies the flows on the member's side. ByPeers reports that the member's side
	// allows a part of them, which only policies of the peers deny.
	Why     string
	ByPeers bool
}

// New returns the report about a cluster.
func New(m *reach.Map, o Options) *Report {
	r := &Report{options: o, rank: make(map[*reach.Party]int), parts: make(map[policy.Ref][]*reach.Party), clash: make(map[string]int), workloads: make(map[string]int)}
	r.parties = slices.Clone(m.Parties)
	slices.SortStableFunc(r.parties, func(a, b *reach.Party) int { return cmp.Compare(order(a.Kind), order(b.Kind)) })
	b := newBuilder(m, o.Place)
	for i, p := range r.parties {
		r.rank[p] = i
		r.index(p)
		if r.within(p) {
			r.Members = append(r.Members, &Member{Party: p})
		}
	}
	slices.SortStableFunc(r.Members, func(a, b *Member) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	for _, member := range r.Members {
		member.In, member.Out = b.side(r, member.Party, filter.Ingress), b.side(r, member.Party, filter.Egress)
	}
	r.Within, r.Ways = links(r, b), ways(r, m.Inventory())
	for _, l := range m.LeftOut {
		switch {
		case l.Pod.Ended == "":
			r.leftOut = append(r.leftOut, l)
		case r.inScope(l.Pod.Namespace):
			r.ended = append(r.ended, l.Pod.String())
		}
	}
	return r
}

// index counts a party and its workload.
func (r *Report) index(p *reach.Party) {
	if len(r.parts[p.Workload]) == 0 || p.Workload.Name == "" {
		r.workloads[p.Namespace]++
	}
	if p.Workload.Name == "" {
		return
	}
	if r.parts[p.Workload] == nil {
		r.clash[p.Namespace+"/"+p.Workload.Name]++
	}
	r.parts[p.Workload] = append(r.parts[p.Workload], p)
}

// order returns the position of a kind in lists of peers: the most dangerous peers come first.
func order(k reach.Kind) int {
	return [...]int{reach.Outside: 0, reach.Nodes: 1, reach.HostPods: 2, reach.Pods: 2}[k]
}

// within reports whether a party is in the scope.
func (r *Report) within(p *reach.Party) bool { return p.Namespace != "" && r.inScope(p.Namespace) }

func (r *Report) inScope(namespace string) bool {
	return len(r.options.Namespaces) == 0 || slices.Contains(r.options.Namespaces, namespace)
}

// side returns the side of a member in a direction, without ClosedWithin.
func (b *builder) side(r *Report, member *reach.Party, d filter.Direction) *Side {
	s := &Side{Direction: d}
	s.Isolating, s.Ordered = member.Policies(d)
	rows, closed := newRows(r), newShuts()
	for _, peer := range r.parties {
		if r.within(peer) {
			continue
		}
		pair := b.between(member, peer, d)
		if pair == nil {
			continue
		}
		if open := b.add(rows, member, peer, pair, d); !open && !onlyOwnNode(pair) {
			closed.add(b.shut(pair.Spans, d), peer)
		}
	}
	s.Open, s.Closed = rows.sorted(), closed.all
	return s
}

// add adds the openings of a pair to rows. It reports whether there are any, apart from those between
// pods and their own node.
func (b *builder) add(rows *rows, member, peer *reach.Party, pair *reach.Pair, d filter.Direction) (open bool) {
	how := how{direction: d, member: member.Kind == reach.Pods, peer: peer.Kind == reach.Pods}
	for _, e := range b.entries(pair.Spans, how) {
		rows.add(e, peer)
		open = true
	}
	how.ownNode = true
	for _, e := range b.entries(pair.OwnNode, how) {
		rows.add(e, peer)
	}
	return open
}

// onlyOwnNode reports whether all flows of a pair are between pods and their own node.
func onlyOwnNode(pair *reach.Pair) bool { return pair.Spans == nil && pair.OwnNode != nil }

// between returns the answer for flows from the peer to the member if d is Ingress, and from the member
// to the peer if d is Egress.
func (b *builder) between(member, peer *reach.Party, d filter.Direction) *reach.Pair {
	if d == filter.Ingress {
		return b.reach.Between(peer, member)
	}
	return b.reach.Between(member, peer)
}
