package policy

import (
	"crypto/sha256"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Encoded is a policy in the form in which a World takes it. A large one takes a fifth of
// the memory so.
type Encoded struct {
	key   objectKey
	whole bool // spec is all of it
	spec  []byte
	sum   [sha256.Size]byte
	o     *networkingv1.NetworkPolicy // nil if it is large: then spec is enough
	reach reach                       // empty if it is not large
}

// Encode encodes a policy, which takes some milliseconds for a large one: any goroutine
// may do it.
func Encode(o *networkingv1.NetworkPolicy) Encoded {
	e := Encoded{key: objectKey{o.Namespace, o.Name}, o: o}
	spec, err := o.Spec.Marshal() // sorts what maps hold
	if err != nil {
		return e // one that cannot be encoded is read again each time
	}
	e.whole, e.spec, e.sum = true, spec, sha256.Sum256(spec)
	if len(spec) > largeSize {
		e.o, e.reach = nil, reachOf(&o.Spec)
	}
	return e
}

// draft returns a draft of the policy.
func (e *Encoded) draft() *Draft {
	d := &Draft{key: e.key, spec: e.spec, sum: e.sum, reach: e.reach}
	if e.o != nil {
		d.reach = reachOf(&e.o.Spec)
	}
	return d
}

// object is the policy as the API has it. One that cannot be decoded, which cannot be, as
// it was encoded here, allows nothing to any pod of its namespace.
func (e *Encoded) object() *networkingv1.NetworkPolicy {
	if e.o != nil {
		return e.o
	}
	o := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: e.key.namespace, Name: e.key.name}}
	if err := o.Spec.Unmarshal(e.spec); err != nil {
		o.Spec = networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}}
	}
	return o
}
