package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"slices"
)

// Version is the version of a policy in a snapshot.
type Version struct {
	Ref  Ref
	Tier Tier
	// Resource is the resourceVersion of the object in the Kubernetes API. It is empty for an object
	// that is from a file.
	Resource string
	// Digest is the digest of the policy's meaning: see Policy.Digest. Versions of the object that differ
	// only in fields on which no decision depends have the same digest.
	Digest [sha256.Size]byte
}

// Digest identifies the policies and namespaces of a snapshot. All stores that hold the same policies and
// namespaces have the same Digest, in whatever order they were set. It does not depend on pods, nor on
// the node.
//
// It is the sum of the hashes of all objects, so that a change costs the hash of one object. It shows
// accidental differences. It is not safe against an author of policies who constructs two sets with
// equal sums.
type Digest [2]uint64

// String returns the digest in hexadecimal digits.
func (d Digest) String() string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], d[0])
	binary.BigEndian.PutUint64(b[8:], d[1])
	return hex.EncodeToString(b[:])
}

func (d *Digest) add(o Digest)      { d[0], d[1] = d[0]+o[0], d[1]+o[1] }
func (d *Digest) subtract(o Digest) { d[0], d[1] = d[0]-o[0], d[1]-o[1] }

// versions holds the digest of the store's objects, and which policies have changed.
type versions struct {
	digest  Digest
	changed map[Ref]struct{} // policies with another version than in the last snapshot
}

// Digest returns the digest of the snapshot's policies and namespaces.
func (s *Snapshot) Digest() Digest { return s.digest }

// Changed returns the versions of the policies that came into this snapshot since the previous one, in
// no particular order.
func (s *Snapshot) Changed() []Version { return s.changed }

// Removed returns the policies that were deleted after the previous snapshot was made, and that this
// snapshot does not have.
func (s *Snapshot) Removed() []Ref { return s.removed }

// stamp sets the digest and the resourceVersion of a policy that put has just put into the store.
func (w *Store) stamp(p *policy, sum [sha256.Size]byte, resource string) {
	p.sum = sum
	w.versions.digest.add(p.digest())
	w.setResource(p, resource)
}

// setResource sets the resourceVersion of a policy in the store, and marks the policy as changed.
func (w *Store) setResource(p *policy, resource string) {
	p.resource = resource
	if w.versions.changed == nil {
		w.versions.changed = make(map[Ref]struct{})
	}
	w.versions.changed[p.ref] = struct{}{}
}

// setNewest sets the resourceVersion of the newest version of a policy, which is either in force or a
// draft. The digest of that version stays the same.
func (w *Store) setNewest(ref Ref, resource string) {
	d := w.drafts.current
	switch waiting := w.drafts.waiting[ref]; {
	case waiting != nil:
		waiting.resource = resource
	case d != nil && d.ref == ref && !d.dropped:
		d.resource = resource
	default:
		if p := w.policies[ref]; p != nil && p.resource != resource {
			w.setResource(p, resource)
		}
	}
}

// takeChanged returns the versions of the policies that have changed since the last Commit, and forgets
// which these were.
func (w *Store) takeChanged() []Version {
	all := make([]Version, 0, len(w.versions.changed))
	for ref := range w.versions.changed {
		if p := w.policies[ref]; p != nil {
			all = append(all, Version{ref, p.tier, p.resource, p.sum})
		}
	}
	w.versions.changed = nil
	return all
}

// digest returns the policy's summand of the store's digest.
func (p *policy) digest() Digest {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q ", p.ref.Kind, p.ref.Namespace, p.ref.Name)
	h.Write(p.sum[:])
	return summand(h)
}

// countNamespace updates the store's digest after a change of a namespace.
func (w *Store) countNamespace(ns *namespace) {
	w.versions.digest.subtract(ns.counted)
	ns.counted = Digest{}
	if ns.declared {
		h := sha256.New()
		fmt.Fprintf(h, "%q %q", namespaceKind, ns.name)
		for _, key := range slices.Sorted(maps.Keys(ns.labels)) {
			fmt.Fprintf(h, " %q %q", key, ns.labels[key])
		}
		fmt.Fprintf(h, " %d", ns.denial)
		ns.counted = summand(h)
	}
	w.versions.digest.add(ns.counted)
}

func summand(h hash.Hash) Digest {
	sum := h.Sum(nil)
	return Digest{binary.BigEndian.Uint64(sum), binary.BigEndian.Uint64(sum[8:])}
}
