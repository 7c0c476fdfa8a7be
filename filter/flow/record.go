package flow

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sluice/filter"
	"sluice/filter/policy"
)

// Record is a record as "sluice observe -o json" writes it, one to a line. Fields are only ever
// added.
type Record struct {
	Time time.Time `json:"time"`
	// Node is the name of the node whose agent has made the record.
	Node string `json:"node,omitempty"`
	// Event is allowed, denied, ended, left-out or unrecorded.
	Event string `json:"event"`
	// Answer is reject if the sender of a denied packet got an answer.
	Answer string `json:"answer,omitempty"`
	Reason string `json:"reason,omitempty"`
	// By is kernel if the kernel has denied the packet without the agent, and agent for other denials.
	By string `json:"by,omitempty"`
	// Revoked is set if a connection is denied that had begun before, because the policies have changed: it
	// is not a new attempt to connect. It is set for TCP only if the connection was still open. Whether that
	// of another protocol was still in use is not known.
	Revoked bool `json:"revoked,omitempty"`

	Src      netip.Addr `json:"src,omitzero"`
	SrcPort  uint16     `json:"sport,omitempty"`
	Dst      netip.Addr `json:"dst,omitzero"`
	DstPort  uint16     `json:"dport,omitempty"`
	Protocol string     `json:"proto,omitempty"`
	// Transport is opaque if the ports could not be read.
	Transport string `json:"transport,omitempty"`
	// To is the address and the port to which the client has sent, if DNAT has replaced them. These are
	// the address and the port of a Service.
	To string `json:"to_service,omitempty"`

	From    *End  `json:"from,omitempty"`
	Into    *End  `json:"to,omitempty"`
	Egress  *Side `json:"egress,omitempty"`
	Ingress *Side `json:"ingress,omitempty"`

	// Missing is what was not recorded in the time of length Seconds before Time: all or connections.
	Missing string `json:"missing,omitempty"`

	// Seconds, Idle, Sent and Received describe a connection that has ended. Seconds is the time from its
	// first to its last packet, and Idle the time from then until Time, when its entry has left the kernel's
	// table: usually two minutes for TCP, and half a minute or two minutes for UDP. If the entry was removed
	// before its timeout, Seconds may be a second too long. Both are missing unless
	// net.netfilter.nf_conntrack_timestamp is set, and for other protocols than TCP, UDP and ICMP. Sent and
	// Received are missing unless net.netfilter.nf_conntrack_acct is set. In an unrecorded record, Seconds is
	// the length of the time without records.
	Seconds  float64  `json:"seconds,omitempty"`
	Idle     float64  `json:"idle_seconds,omitempty"`
	Sent     *Traffic `json:"sent,omitempty"`
	Received *Traffic `json:"received,omitempty"`

	// Count is the number of packets or connections that the record stands for; 0 means one. In a left-out
	// record, it is the number of missing records.
	Count uint64 `json:"count,omitempty"`
}

// End is an end of a flow.
type End struct {
	// Kind is pod, host (the node of the record), remote-node or world.
	Kind      string            `json:"kind"`
	Namespace string            `json:"namespace,omitempty"`
	Pod       string            `json:"pod,omitempty"`
	Workload  *Workload         `json:"workload,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	// Node is the name of the pod's node or, if the end is a node itself, the name of this node.
	Node string `json:"node,omitempty"`

	encoded []byte // the end in JSON, if a Describer has made the end; otherwise nil
}

// Workload is the object that has created a pod, such as a Deployment.
type Workload struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// The values of Missing.
const (
	everything      = "all"
	onlyConnections = "connections"
)

// The kinds of ends.
const (
	PodEnd        = "pod"
	HostEnd       = "host"
	RemoteNodeEnd = "remote-node"
	WorldEnd      = "world"
)

// Side is what policies say in one direction.
type Side struct {
	// Action is accept or deny.
	Action string `json:"action"`
	// Policies are the titles of the policies that decide: the policy of the rule or, without a rule, the
	// policies that isolate the pod. There are none if a rule of the Admin tier has passed the flow on and
	// no policy of a later tier concerns it.
	Policies []string `json:"policies,omitempty"`
	Tier     string   `json:"tier,omitempty"`
	Rule     string   `json:"rule,omitempty"` // the field of the rule, as in "ingress[0]"
	RuleName string   `json:"rule_name,omitempty"`
	// Passed is the rule of the Admin tier that has passed the flow on to the next tiers.
	Passed *Passed `json:"passed,omitempty"`

	encoded []byte // the side in JSON, as in End
}

// Passed names a rule.
type Passed struct {
	Policy   string `json:"policy"`
	Rule     string `json:"rule"`
	RuleName string `json:"rule_name,omitempty"`
}

// Describer makes records of entries. It keeps the ends and sides that it has described, and their text in
// JSON, because records often have the same ends and sides. It is for use by one goroutine.
type Describer struct {
	node      string
	snapshot  func() *policy.Snapshot
	described *policy.Snapshot // the snapshot in force at the last record
	world     *End
	nodes     map[netip.Addr]*End // the other nodes, by address
	ends      kept[*policy.Endpoint, *End]
	sides     kept[filter.Side, *Side]
}

// NewDescriber returns a describer for the entries of the node with the given name. snapshot returns the
// snapshot in force; nil before the first one.
func NewDescriber(node string, snapshot func() *policy.Snapshot) *Describer {
	return &Describer{node: node, snapshot: snapshot, world: (&End{Kind: WorldEnd}).encode()}
}

// Record returns the record of an entry. Its ends and sides must not be changed, because other records
// share them.
func (d *Describer) Record(e *Entry) *Record {
	r := new(Record)
	d.describe(r, e)
	return r
}

// describe sets r to the record of an entry. It is apart from Record, so that the compiler can inline
// Record. A record that the caller does not keep then needs no allocation.
func (d *Describer) describe(r *Record, e *Entry) {
	*r = Record{Time: e.Time, Node: d.node, Event: e.Kind.String(), Count: e.Count}
	switch e.Kind {
	case LeftOut:
		return
	case Unrecorded:
		r.Seconds, r.Missing = e.Duration.Seconds(), everything
		if e.OnlyConnections {
			r.Missing = onlyConnections
		}
		return
	}
	if e.Kind == Denied {
		r.By, r.Revoked = "agent", e.Revoked
		if e.Kernel {
			r.By = "kernel"
		}
	}
	r.describeKey(e)
	v := &e.Verdict
	if v.Reason != filter.NoReason {
		r.Reason = v.Reason.String()
	}
	if e.Kind == Denied && v.Reject {
		r.Answer = filter.Reject.String()
	}
	d.follow()
	r.From, r.Into = d.end(e.Src, r.Src), d.end(e.Dst, r.Dst)
	r.Egress, r.Ingress = d.sides.get(v.Egress, sideOf), d.sides.get(v.Ingress, sideOf)
	if e.Kind == Ended {
		r.Seconds, r.Idle = (e.Duration - e.Idle).Seconds(), e.Idle.Seconds()
		if e.Counted {
			r.Sent, r.Received = &e.Sent, &e.Received
		}
	}
}

// IsMissing reports whether the record is about flows that are missing, and not about a flow.
func (r *Record) IsMissing() bool {
	return r.Event == LeftOut.String() || r.Event == Unrecorded.String()
}

// Gap returns a record about a time in which no agent answered: from the time from to the time until.
func Gap(node string, from, until time.Time) *Record {
	return &Record{Time: until, Node: node, Event: Unrecorded.String(), Missing: everything, Seconds: until.Sub(from).Seconds()}
}

// describeKey sets the addresses, ports and protocol, as far as they are known.
func (r *Record) describeKey(e *Entry) {
	k := &e.Key
	if k.Src == [16]byte{} && k.Dst == [16]byte{} {
		return // the IP header could not be read
	}
	r.Src, r.Dst, r.Protocol = k.SrcAddr(), k.DstAddr(), k.Protocol.String()
	switch k.Transport {
	case filter.Ported:
		r.SrcPort, r.DstPort = e.SrcPort, k.Port
	case filter.Opaque:
		r.Transport = k.Transport.String()
	}
	if e.To.IsValid() && (e.To.Addr() != r.Dst || e.To.Port() != r.DstPort) {
		r.To = e.To.String()
		if e.To.Port() == 0 {
			r.To = e.To.Addr().String()
		}
	}
}

// end describes the owner of an address.
func (d *Describer) end(e *policy.Endpoint, addr netip.Addr) *End {
	switch {
	case !addr.IsValid():
		return nil
	case e != nil:
		return d.ends.get(e, d.endOf)
	}
	if node := d.nodes[addr]; node != nil {
		return node
	}
	return d.world
}

// endOf describes this node or a pod.
func (d *Describer) endOf(e *policy.Endpoint) *End {
	end := &End{Kind: HostEnd, Node: d.node}
	if !e.IsNode() {
		end = &End{Kind: PodEnd, Namespace: e.Namespace, Pod: e.Name, Labels: e.Labels(), Node: e.NodeName(), Workload: workloadOf(e)}
	}
	return end.encode()
}

// workloadOf returns the workload that has created a pod. It returns nil if the workload is not known. The
// owner of a Deployment's pod is a ReplicaSet, whose name is the name of the Deployment followed by a
// hash. For such a pod, workloadOf returns the Deployment.
func workloadOf(e *policy.Endpoint) *Workload {
	w := e.Workload()
	if w.Name == "" {
		return nil
	}
	if hash := e.Labels()["pod-template-hash"]; w.Kind == "ReplicaSet" && hash != "" {
		if name, is := strings.CutSuffix(w.Name, "-"+hash); is {
			return &Workload{Kind: "Deployment", Name: name}
		}
	}
	return &Workload{Kind: w.Kind, Name: w.Name}
}

// follow prepares the describer for the snapshot in force. If the snapshot has changed since the last
// record, follow forgets the ends and sides that were described, and describes the nodes of the new
// snapshot.
func (d *Describer) follow() {
	s := d.snapshot()
	if s == d.described && d.nodes != nil {
		return
	}
	d.described, d.nodes = s, make(map[netip.Addr]*End)
	d.ends.clear() // otherwise they would keep earlier snapshots in memory
	d.sides.clear()
	if s == nil {
		return
	}
	for _, n := range slices.SortedFunc(s.Nodes(), func(a, b *policy.Node) int { return cmp.Compare(b.Name, a.Name) }) {
		end := (&End{Kind: RemoteNodeEnd, Node: n.Name}).encode()
		for _, a := range n.Addrs {
			d.nodes[a] = end // in reverse order of the names, so that the first in the alphabet remains
		}
	}
}

// sideOf describes a side; it returns nil if no policy concerns the flow in this direction.
func sideOf(s filter.Side) *Side {
	var out Side
	switch r := s.Rule; {
	case r != nil:
		out = Side{Action: r.Action.String(), Policies: []string{r.PolicyTitle()}, Tier: r.Tier.String(), Rule: r.Field(), RuleName: r.Name}
	case s.Isolation != nil:
		out = Side{Action: filter.RuleDenies.String(), Policies: s.Isolation.Policies, Tier: filter.NetworkPolicyTier.String()}
	case s.Passed == nil:
		return nil
	default:
		out = Side{Action: filter.RuleAccepts.String()} // no later tier denies
	}
	if p := s.Passed; p != nil {
		out.Passed = &Passed{Policy: p.PolicyTitle(), Rule: p.Field(), RuleName: p.Name}
	}
	return out.encode()
}

// Policies returns the titles of all policies that a record names, sorted, each once.
func (r *Record) Policies() []string {
	all := make(map[string]bool)
	for _, s := range []*Side{r.Egress, r.Ingress} {
		if s == nil {
			continue
		}
		for _, p := range s.Policies {
			all[p] = true
		}
		if s.Passed != nil {
			all[s.Passed.Policy] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// DenialRecord is a Denial as "sluice denied -o json" writes it. Time is the time of the last packet, and
// Count the number of packets or, if Revoked is set, the number of connections.
type DenialRecord struct {
	Record
	First time.Time `json:"first"`
	// Many is set if the denials of many unowned addresses, such as those outside the cluster, are
	// counted here. Record has the address of the last packet.
	Many bool `json:"many,omitempty"`
}

// DenialTable is the answer of an agent that is asked for its last denials.
type DenialTable struct {
	Since time.Time `json:"since"` // when the agent began to keep denials
	// Displaced is the number of older denials that are not kept any more.
	Displaced uint64          `json:"displaced"`
	Denials   []*DenialRecord `json:"denials"` // the most recent first
}

// Denials returns the records of denials, in the order of the denials. If several records read alike, they
// become one, in the place of the first. This happens after a change of a policy: the changed policy is
// another object, so its denials have a Denial of their own, even if it denies as before.
func (d *Describer) Denials(all []Denial) []*DenialRecord {
	type text struct {
		src, dst               netip.Addr
		from, to, port, answer string
		reason, why            string
		revoked                bool
	}
	out, known := []*DenialRecord{}, make(map[text]*DenialRecord)
	for i := range all {
		r := d.denial(&all[i])
		from, to := r.Names()
		k := text{r.Src, r.Dst, from, to, r.Port(), r.Answer, r.Reason, r.Why(), r.Revoked}
		same := known[k]
		if same == nil || r.Many { // the text has only one of the many addresses, so other records may read alike
			known[k], out = r, append(out, r)
			continue
		}
		same.Count += r.Count
		if r.First.Before(same.First) {
			same.First = r.First
		}
		if r.Time.After(same.Time) {
			same.Time = r.Time
		}
	}
	return out
}

func (d *Describer) denial(o *Denial) *DenialRecord {
	r := &DenialRecord{Record: *d.Record(&o.Entry), First: o.First, Many: o.Many}
	r.Time, r.Count = o.Last, o.Packets
	return r
}
