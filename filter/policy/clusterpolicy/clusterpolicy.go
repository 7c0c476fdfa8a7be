// Package clusterpolicy converts ClusterNetworkPolicies of the API to policy.Policy. It reads the
// versions v1beta1 and v1alpha2, whose fields have the same meaning. Only watch/manifests reads
// the fields too, to check files.
//
// The API server drops fields that its CustomResourceDefinition does not have, and the
// decoder drops fields that this package does not know. So a peer whose only field is of a newer
// API arrives as a peer without fields. The API requires that implementations fail closed: a
// rule with a part that cannot be understood accepts nothing if its action is Accept, and denies
// everything otherwise.
package clusterpolicy

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter/policy"
)

const (
	// Kind is the kind of the objects.
	Kind = "ClusterNetworkPolicy"
	// Group is the group of the API.
	Group = v1beta1.GroupName
	// Version is the version of the API that Read takes.
	Version = "v1beta1"
	// OlderVersion has the same fields and meaning, so that its objects can be decoded as
	// objects of Version.
	OlderVersion = "v1alpha2"
)

// Ref returns the reference of a ClusterNetworkPolicy.
func Ref(name string) policy.Ref { return policy.Ref{Kind: Kind, Name: name} }

// Read converts a ClusterNetworkPolicy.
func Read(o *v1beta1.ClusterNetworkPolicy) *policy.Policy {
	e := Encode(o)
	return e.Form
}

// Encode encodes a ClusterNetworkPolicy for a Store, and converts it. It may be called from
// any goroutine.
func Encode(o *v1beta1.ClusterNetworkPolicy) policy.Encoded {
	e := policy.Encoded{Ref: Ref(o.Name), Form: readSpec(Ref(o.Name), &o.Spec)}
	// The spec is kept as JSON, because the API's types have no protobuf encoding. JSON sorts the
	// keys of maps, so equal specs have equal digests. It takes 40% of the memory of e.Form.
	if spec, err := json.Marshal(&o.Spec); err == nil { // without a digest, the policy counts as a new version each time
		e.Digest, e.Source = sha256.Sum256(spec), policy.Source{Encoded: spec, Read: decode}
		e.Form.Digest, e.Form.Source = e.Digest, e.Source
	}
	e.Annotate(o.Annotations)
	return e
}

// decode converts an encoded spec.
func decode(ref policy.Ref, encoded []byte) (*policy.Policy, error) {
	var spec v1beta1.ClusterNetworkPolicySpec
	if err := json.Unmarshal(encoded, &spec); err != nil {
		return nil, fmt.Errorf("decode %s: %w", ref.Object(), err)
	}
	p := readSpec(ref, &spec)
	p.Digest, p.Source = sha256.Sum256(encoded), policy.Source{Encoded: encoded, Read: decode}
	return p, nil
}
