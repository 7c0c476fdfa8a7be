package policy

import (
	"crypto/sha256"
	"net/netip"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

// Ref names a policy of any kind.
type Ref struct{ Kind, Namespace, Name string }

// String is "namespace/name", as verdicts name policies.
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// Object is the policy in messages, as in "NetworkPolicy default/db".
func (r Ref) Object() string { return r.Kind + " " + r.String() }

// Policy is a policy of any kind, in the one form that the store compiles and that
// explain, lint and the others work on. A reader for each kind makes it from an object of
// the API (package netpol for NetworkPolicy). A Policy that a store or anything else has
// been given must not be changed.
type Policy struct {
	Ref     Ref
	Tier    Tier
	Subject Subject
	// Isolates reports, by direction, whether what no rule allows is denied. It is for the
	// tier NetworkPolicy only.
	Isolates [2]bool
	Rules    [2][]Rule // by direction, in the order of the object
	// Ignored is how many rules the object has in directions that it leaves out, where
	// they have no effect. They are not among Rules.
	Ignored  [2]int
	Problems []Problem
	// Digest identifies the version: equal digests are equal policies. The zero value
	// equals no other.
	Digest [sha256.Size]byte
	Source Source
}

// Source is what a policy was read from. The store keeps it in a tenth of the memory that
// the rules take, and reads them again when it needs them. Without a Read the store keeps
// the Policy instead.
type Source struct {
	Encoded []byte // as the API encodes it
	Read    func(Ref, []byte) (*Policy, error)
}

// Encoded is a policy that is on its way to a store. A large one takes a fifth of the
// memory before it is read.
type Encoded struct {
	Ref    Ref
	Digest [sha256.Size]byte
	Source Source
	Form   *Policy // nil if it has not been read
	Reach  Reach   // set if Form is nil
}

// Reach is the pods that a policy isolates, and in which directions.
type Reach struct {
	Subject  string // the text of its selector; empty selects all pods of the namespace
	Isolates [2]bool
}

// draft returns a draft of the policy.
func (e *Encoded) draft() *Draft {
	d := &Draft{ref: e.Ref, from: e.Source, sum: e.Digest, reach: e.Reach}
	if e.Form != nil {
		d.reach = Reach{e.Form.Subject.Pods.String(), e.Form.Isolates}
	}
	return d
}

// policy reads the policy. One that cannot be read allows nothing, and isolates every pod
// of its namespace.
func (e *Encoded) policy() *Policy {
	if e.Form != nil {
		return e.Form
	}
	p, err := e.Source.Read(e.Ref, e.Source.Encoded)
	if err != nil {
		return &Policy{
			Ref: e.Ref, Tier: NetworkPolicy, Digest: e.Digest, Source: e.Source, Isolates: [2]bool{true, true},
			Subject:  Subject{Namespace: e.Ref.Namespace, Pods: labels.Everything(), Malformed: true},
			Problems: []Problem{{Policy: e.Ref, Field: "spec", Detail: err.Error(), Hint: "write the policy again"}},
		}
	}
	return p
}

// Subject is the pods that a policy is for.
type Subject struct {
	Namespace string
	Pods      labels.Selector
	// Malformed reports that Pods cannot be understood. It selects every pod of the
	// namespace then, and the policy allows nothing, whatever its rules.
	Malformed bool
}

// Rule decides about flows to or from its peers at its ports. The zero value denies
// everything.
type Rule struct {
	Action Action
	Peers  []Peer      // none: every peer, also outside of the cluster
	Ports  []PortRange // none: every port and protocol
}

// Peer is pods, or a block of addresses.
type Peer struct {
	Namespaces labels.Selector // nil: the namespace of the policy
	Pods       labels.Selector // nil: every pod of these namespaces
	Block      *Block          // nil: pods
	// Malformed is where the peer cannot be understood, relative to its own field, such
	// as ".ipBlock.cidr", or "." for all of it. The peer matches nothing then.
	Malformed string
}

// Block is a range of addresses with its exceptions, as written: bits of the host may be
// set, and mean nothing.
type Block struct {
	CIDR   netip.Prefix
	Except []netip.Prefix
}

// PortRange is a range of ports, or a port by its name.
type PortRange struct {
	Protocol  filter.Protocol
	Low, High uint16 // 0 and 65535: all ports of the protocol
	Name      string // of a named port; Low and High mean nothing then
	// Malformed reports that it cannot be understood. It matches nothing then.
	Malformed bool
}

// All reports whether it names a protocol and no port.
func (p PortRange) All() bool { return p.Name == "" && p.Low == 0 && p.High == 65535 }

// source is what the store keeps of a policy beside its compiled form.
func (p *Policy) source() Source {
	if p.Source.Read != nil {
		return p.Source
	}
	return Source{Read: func(Ref, []byte) (*Policy, error) { return p, nil }}
}
