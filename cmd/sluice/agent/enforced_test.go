package agent

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"net/netip"

	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// versioned returns a policy that isolates the pods with the label app=value.
func versioned(name, value, resource string) policy.Encoded {
	e := netpol.Encode(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": value}}, PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"}},
	})
	e.Resource = resource
	return e
}

// versionsOf returns the policies in force, each as "name@version".
func versionsOf(e *enforced) (all []string) {
	for _, p := range e.list() {
		all = append(all, p.Name+"@"+p.Version)
	}
	return all
}

// A version is in force when the stages and the sweep of live connections have applied its snapshot,
// and not before.
func TestVersionsComeIntoForce(t *testing.T) {
	var e enforced
	w := policy.NewStore()
	commit := func() *policy.Snapshot { s, _ := w.Commit(); return s }
	check := func(what string, want ...string) {
		t.Helper()
		if got := versionsOf(&e); !slices.Equal(got, want) {
			t.Errorf("%s: in force %q, want %q", what, got, want)
		}
	}
	w.SetEncoded(versioned("a", "1", "1"))
	w.SetEncoded(versioned("b", "1", "2"))
	one := commit()
	e.applied(one, true)
	check("applied, not swept")
	if digest, _ := e.digestNow(); digest != "" {
		t.Errorf("digest %q before anything is in force", digest)
	}
	e.swept(one.Number())
	check("swept", "a@1", "b@2")
	if digest, since := e.digestNow(); digest != one.Digest().String() || since.IsZero() {
		t.Errorf("digest %q since %v, want %v", digest, since, one.Digest())
	}

	w.SetEncoded(versioned("a", "2", "3"))
	two := commit()
	e.swept(two.Number()) // the sweep may end before the last stage returns
	check("swept, not applied", "a@1", "b@2")
	e.applied(two, false)
	check("a worker is stuck", "a@1", "b@2")
	w.DeletePolicy(versioned("b", "", "").Ref)
	three := commit()
	e.applied(three, true)
	check("applied with the next snapshot, whose sweep runs", "a@3", "b@2")
	e.swept(three.Number())
	check("swept", "a@3")
	e.applied(three, true) // a repetition has no effect
	check("applied twice", "a@3")
}

// The number of pending snapshots is bounded, even if no sweep ends.
func TestPendingVersionsAreBounded(t *testing.T) {
	var e enforced
	w := policy.NewStore()
	var last *policy.Snapshot
	for i := range 10 * maxPending {
		w.SetEncoded(versioned("a", time.Duration(i).String(), time.Duration(i).String()))
		if i%2 == 0 {
			w.DeletePolicy(versioned("b", "", "").Ref)
		} else {
			w.SetEncoded(versioned("b", "1", "1"))
		}
		last, _ = w.Commit()
		e.applied(last, true)
	}
	if n := len(e.pending); n > maxPending {
		t.Errorf("%d snapshots are kept", n)
	}
	e.swept(last.Number())
	if digest, _ := e.digestNow(); digest != last.Digest().String() || len(e.pending) != 0 || len(e.policies) != 2 {
		t.Errorf("digest %v, want %v; %d pending; %v", digest, last.Digest(), len(e.pending), versionsOf(&e))
	}
}

// The time since when a policy is in force does not change with a version that has the same meaning.
func TestVersionsKeepTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var e enforced
		w := policy.NewStore()
		put := func(p policy.Encoded) time.Time {
			w.SetEncoded(p)
			s, _ := w.Commit()
			e.swept(s.Number())
			e.applied(s, true)
			time.Sleep(time.Second)
			return e.list()[0].Since
		}
		first := put(versioned("a", "1", "1"))
		if again := put(versioned("a", "1", "2")); again != first || !slices.Equal(versionsOf(&e), []string{"a@2"}) {
			t.Errorf("since %v, want %v; %v", again, first, versionsOf(&e))
		}
		if other := put(versioned("a", "2", "3")); other.Sub(first) != 2*time.Second {
			t.Errorf("since %v after another spec, first %v", other, first)
		}
	})
}

func TestPodsByPolicy(t *testing.T) {
	w := policy.NewStore()
	w.SetLocalNode("here")
	w.SetPodRanges([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")})
	for name, at := range map[string]struct{ node, addr string }{
		"one": {"here", "10.0.0.1"}, "two": {"there", "10.0.0.2"}, "three": {"", "10.0.0.3"}, "four": {"", "10.1.0.4"},
	} {
		w.SetPod(&policy.Pod{Namespace: "default", Name: name, Node: at.node, Labels: labels.Set{"app": "1"}, Addrs: []netip.Addr{netip.MustParseAddr(at.addr)}})
	}
	w.SetEncoded(versioned("a", "1", "1"))
	s, _ := w.Commit()
	if got := podsByPolicy(s, "here")["default/a"]; !slices.Equal(got, []string{"default/one", "default/three"}) {
		t.Errorf("selected here: %q", got)
	}
}
