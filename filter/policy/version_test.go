package policy_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// encodedPolicy returns a policy for the pods with the label app=value. Its resourceVersion is resource.
func encodedPolicy(name, value, resource string) policy.Encoded {
	e := netpol.Encode(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": value}}},
	})
	e.Resource = resource
	return e
}

// commitVersions commits, and returns the resourceVersions of the changed policies by their names.
func commitVersions(w *policy.Store) (s *policy.Snapshot, changed map[string]string) {
	s, _ = w.Commit()
	changed = make(map[string]string)
	for _, v := range s.Changed() {
		changed[v.Ref.Name] = v.Resource
	}
	return s, changed
}

// A snapshot has the resourceVersions of the policies that were set since the previous one, even if only
// the resourceVersion of a policy has changed.
func TestSnapshotHasVersions(t *testing.T) {
	w := policy.NewStore()
	check := func(what string, want map[string]string) *policy.Snapshot {
		t.Helper()
		s, changed := commitVersions(w)
		if !maps.Equal(changed, want) {
			t.Errorf("%s: changed %v, want %v", what, changed, want)
		}
		return s
	}
	w.SetEncoded(encodedPolicy("a", "1", "10"))
	w.SetEncoded(encodedPolicy("b", "1", "11"))
	first := check("new policies", map[string]string{"a": "10", "b": "11"})
	check("nothing", map[string]string{})
	w.SetEncoded(encodedPolicy("a", "1", "12"))
	if s := check("another annotation", map[string]string{"a": "12"}); s.Digest() != first.Digest() {
		t.Error("the digest changes with the version of an equal policy")
	}
	w.SetEncoded(encodedPolicy("a", "1", "12"))
	check("the same version again", map[string]string{})
	w.SetEncoded(encodedPolicy("a", "2", "13"))
	if s := check("another spec", map[string]string{"a": "13"}); s.Digest() == first.Digest() {
		t.Error("the digest does not change with a policy")
	}
	w.DeletePolicy(encodedPolicy("a", "", "").Ref)
	if s := check("deleted", map[string]string{}); len(s.Removed()) != 1 || s.Removed()[0].Name != "a" {
		t.Errorf("removed %v", s.Removed())
	}
	w.DeletePolicy(encodedPolicy("b", "", "").Ref)
	w.SetEncoded(encodedPolicy("b", "1", "20"))
	if s := check("deleted and set again", map[string]string{"b": "20"}); len(s.Removed()) != 0 {
		t.Errorf("removed %v", s.Removed())
	}
}

// The version of a draft is in Changed of the snapshot with which the draft comes into force, and not
// earlier.
func TestDraftsHaveVersions(t *testing.T) {
	w := policy.NewStore()
	w.SetEncoded(encodedPolicy("a", "1", "10"))
	commitVersions(w)
	w.UseDrafts()
	w.SetLarge(0)
	w.SetEncoded(encodedPolicy("a", "2", "11"))
	w.SetEncoded(encodedPolicy("a", "2", "12")) // the same draft, with another annotation
	if _, changed := commitVersions(w); len(changed) > 0 {
		t.Errorf("changed %v before the draft is in force", changed)
	}
	d := w.NextDraft()
	w.SetEncoded(encodedPolicy("a", "2", "13")) // while it is prepared
	for ; d != nil; d = w.NextDraft() {
		d.Prepare()
		w.Prepared(d)
		for again := true; again; {
			again, _ = w.Work(func() bool { return true })
		}
	}
	if _, changed := commitVersions(w); !maps.Equal(changed, map[string]string{"a": "13"}) {
		t.Errorf("changed %v, want version 13 of a", changed)
	}
}

// Stores with the same policies and namespaces have the same digest, in whichever order these were set.
// Stores with other policies or namespaces have another digest.
func TestDigestDependsOnObjectsOnly(t *testing.T) {
	type change = func(*policy.Store)
	digest := func(changes ...change) policy.Digest {
		w := policy.NewStore()
		for i, c := range changes {
			c(w)
			if i%3 == 0 {
				w.Commit()
			}
		}
		s, _ := w.Commit()
		return s.Digest()
	}
	set := func(name, value string) change {
		return func(w *policy.Store) { w.SetEncoded(encodedPolicy(name, value, fmt.Sprint(rand.Int()))) }
	}
	remove := func(name string) change {
		return func(w *policy.Store) { w.DeletePolicy(encodedPolicy(name, "", "").Ref) }
	}
	namespace := func(name, tier string, d filter.Denial) change {
		return func(w *policy.Store) {
			w.SetNamespace(name, labels.Set{"tier": tier})
			w.SetNamespaceDenial(name, d, nil)
		}
	}
	want := []change{set("a", "1"), set("b", "1"), set("c", "1"), namespace("default", "web", filter.DenialDrop), namespace("other", "db", filter.DenialUnset)}
	is := digest(want...)
	for range 20 {
		rand.Shuffle(len(want), func(i, j int) { want[i], want[j] = want[j], want[i] })
		detours := slices.Concat([]change{set("a", "2"), set("d", "1"), remove("d"), namespace("gone", "x", filter.DenialReject), namespace("default", "old", filter.DenialReject)}, want,
			[]change{func(w *policy.Store) { w.DeleteNamespace("gone") }, func(w *policy.Store) {
				w.SetPod(&policy.Pod{Namespace: "default", Name: "pod", Node: "here"})
			}})
		if got := digest(detours...); got != is {
			t.Fatalf("digest %v, want %v", got, is)
		}
	}
	for name, other := range map[string]change{
		"policy": set("a", "2"), "more policies": set("d", "1"), "fewer policies": remove("a"), "labels": namespace("default", "x", filter.DenialDrop),
		"denial": namespace("default", "web", filter.DenialReject), "more namespaces": namespace("more", "x", 0), "fewer namespaces": func(w *policy.Store) { w.DeleteNamespace("other") },
	} {
		if digest(append(slices.Clone(want), other)...) == is {
			t.Errorf("%s: the digest is the same", name)
		}
	}
	if len(is.String()) != 32 {
		t.Errorf("%q", is)
	}
}
