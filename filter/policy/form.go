package policy

import (
	"crypto/sha256"
	"net/netip"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

// Ref names a policy of any kind.
type Ref struct{ Kind, Namespace, Name string }

// String returns "namespace/name", the form in which verdicts name policies, or only the
// name of a policy that is in no namespace.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Name
	}
	return r.Namespace + "/" + r.Name
}

// clusterWide reports whether the policy is in no namespace.
func (r Ref) clusterWide() bool { return r.Namespace == "" }

// Object returns the policy as messages name it, such as "NetworkPolicy default/db".
func (r Ref) Object() string { return r.Kind + " " + r.String() }

// Policy is a policy of any kind, in the common form that the store compiles and that
// packages such as explain and lint use. For each kind, a package converts objects of the
// API to this form (netpol for NetworkPolicy). Policies are shared, and must not be changed
// once they have been read.
type Policy struct {
	Ref  Ref
	Tier Tier
	// Priority orders the policies of a tier: lower ones decide first. NetworkPolicies have
	// none. Policies of equal priority are ordered by name.
	Priority int32
	Subject  Subject
	// Isolates reports, by direction, whether flows that no rule allows are denied. It is
	// for the tier NetworkPolicy only.
	Isolates [2]bool
	Rules    [2][]Rule // the rules of each direction, in the order of the object
	// Ignored counts, by direction, the rules of the object that have no effect because the
	// policy does not apply to their direction. They are not in Rules.
	Ignored [2]int
	// Denial is how the policy denies packets. If it is unset, namespace and node decide.
	Denial   filter.Denial
	Problems []Problem
	// Log is the setting of LogAnnotation. Its problem is not in Problems, and Digest does not depend
	// on it.
	Log LogSetting
	// LintIgnore is the value of LintIgnoreAnnotation. Digest does not depend on it.
	LintIgnore string
	// Digest identifies the version: policies with equal digests are equal. The zero value
	// means that the digest is not known.
	Digest [sha256.Size]byte
	Source Source
}

// Source is the encoded object that a policy was read from. The store keeps the Source
// instead of the Policy, because the Source takes a tenth of the memory. The store calls Read
// whenever it needs the rules. If Read is nil, the store keeps the Policy.
type Source struct {
	Encoded []byte // the object as the API encodes it
	Read    func(Ref, []byte) (*Policy, error)
}

// Encoded is a policy to set in a store. Either Form is the policy, or Form is nil and the
// store reads the policy from Source later. Without Form, a large policy takes a fifth of the
// memory.
type Encoded struct {
	Ref    Ref
	Digest [sha256.Size]byte
	Source Source
	Form   *Policy // nil if the policy has not been read
	Reach  Reach   // set if Form is nil
	// Resource is the resourceVersion of the object; empty if it is not from the API.
	Resource string
	Log      LogSetting // of the object
}

// Reach describes the pods that a policy isolates, and in which directions.
type Reach struct {
	Subject  string // the text of its selector; empty selects all pods of the namespace
	Isolates [2]bool
}

// draft returns a draft of the policy.
func (e *Encoded) draft() *Draft {
	d := &Draft{ref: e.Ref, from: e.Source, sum: e.Digest, resource: e.Resource, reach: e.Reach}
	if e.Form != nil {
		d.reach = Reach{e.Form.Subject.Pods.String(), e.Form.Isolates}
	}
	return d
}

// policy returns the policy, and reads it if necessary. A policy that cannot be read
// isolates every pod of its namespace and allows nothing.
func (e *Encoded) policy() *Policy {
	if e.Form != nil {
		return e.Form
	}
	p, err := e.Source.Read(e.Ref, e.Source.Encoded)
	if err != nil {
		return &Policy{
			Ref: e.Ref, Tier: NetworkPolicy, Digest: e.Digest, Source: e.Source, Isolates: [2]bool{true, true}, Subject: everySubject(e.Ref),
			Problems: []Problem{{Policy: e.Ref, Field: "spec", Detail: err.Error(), Hint: "write the policy again"}},
		}
	}
	return p
}

// Subject describes the pods that a policy selects.
type Subject struct {
	Namespace  string          // of the pods, unless Namespaces is set
	Namespaces labels.Selector // nil: only Namespace
	Pods       labels.Selector
	// Malformed reports that the selector cannot be understood. In this case Pods must
	// select every pod, and the policy allows nothing, whatever its rules are.
	Malformed bool
}

// Rule decides about flows to or from its peers at its ports. The zero value denies
// everything.
type Rule struct {
	Name   string // empty if it has none
	Action Action
	Peers  []Peer      // if empty, the rule is for every peer, also outside the cluster
	Ports  []PortRange // if empty, the rule is for every port and protocol
}

// Peer selects pods or a block of addresses.
type Peer struct {
	Namespaces labels.Selector // nil: the namespace of the policy
	Pods       labels.Selector // nil: every pod of these namespaces
	Block      *Block          // nil: not a block
	Networks   []netip.Prefix  // empty: not networks
	Nodes      labels.Selector // nil: not nodes; otherwise the addresses of matching nodes
	// Names are domain names. They are not supported, and count as malformed.
	Names []string
	// Malformed is the field of the peer that cannot be understood, such as
	// ".ipBlock.cidr", or "." for the whole peer. In a rule that accepts, such a peer matches
	// nothing; any other rule with it denies every peer.
	Malformed string
}

// Block is a range of addresses with exceptions, as they are written: host bits may be set,
// and have no meaning.
type Block struct {
	CIDR   netip.Prefix
	Except []netip.Prefix
}

// PortRange is a range of ports, or a port by its name.
type PortRange struct {
	Protocol  filter.Protocol
	Low, High uint16 // 0 and 65535 mean all ports of the protocol
	Name      string // name of a named port; if set, Low and High have no meaning
	// Malformed reports that the range cannot be understood. In a rule that accepts, it
	// matches nothing; any other rule with it denies every port.
	Malformed bool
}

// All reports whether the range is all ports of its protocol.
func (p PortRange) All() bool { return p.Name == "" && p.Low == 0 && p.High == 65535 }

// source returns the source that the store keeps. If p.Source has no Read, source returns
// one whose Read returns p.
func (p *Policy) source() Source {
	if p.Source.Read != nil {
		return p.Source
	}
	return Source{Read: func(Ref, []byte) (*Policy, error) { return p, nil }}
}
