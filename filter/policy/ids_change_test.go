package policy_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
)

// TestIDChanges lists, for each event, the pods that get another ID. A pod must keep its ID if
// nothing about it changes that a policy in force before and after can see. Otherwise a new policy
// whose rules match many pods would make caches forget what they know of them.
func TestIDChanges(t *testing.T) {
	const (
		twins = `{kind: Pod, metadata: {namespace: default, name: web2, labels: {role: frontend, canary: "yes"}}, status: {podIP: 10.0.0.8}}`
		toDB  = `default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}, {namespaceSelector: {matchLabels: {project: myproject}}}]}]}` + "\n"
		toOdd = `bare/q: {podSelector: {}, ingress: [{from: [%s]}]}`
	)
	odd := func(peer string) string { return fmt.Sprintf(toOdd, peer) }
	for _, tt := range []struct {
		name          string
		before, event step
		want          []string
	}{
		{name: "a peer that is all pods", event: step{policies: odd(`{namespaceSelector: {}}`)}, want: []string{"odd"}},
		{name: "a peer that is some of the pods that were alike", event: step{policies: odd(`{namespaceSelector: {}, podSelector: {matchLabels: {canary: "yes"}}}`)}, want: []string{"new", "odd"}},
		{name: "that peer is gone", before: step{policies: odd(`{namespaceSelector: {}, podSelector: {matchLabels: {canary: "yes"}}}`)},
			event: step{remove: "NetworkPolicy bare/q"}, want: []string{"new", "odd"}},
		{name: "a block with all pods", event: step{policies: odd(`{ipBlock: {cidr: 10.0.0.0/24}}, {ipBlock: {cidr: "fd00::/64"}}`)}, want: []string{"odd"}},
		{name: "that block is gone", before: step{policies: odd(`{ipBlock: {cidr: 10.0.0.0/24}}`)}, event: step{remove: "NetworkPolicy bare/q"}, want: []string{"odd"}},
		{name: "a block with some of the pods that were alike", event: step{policies: odd(`{ipBlock: {cidr: 10.0.0.0/30}}`)}, want: []string{"odd", "web"}},
		{name: "an exception with such pods", before: step{policies: odd(`{ipBlock: {cidr: 10.0.0.0/24}}`)},
			event: step{policies: odd(`{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.8/32]}}`)}, want: []string{"new", "odd"}},
		{name: "a label of a namespace that is a peer", event: step{objects: `{kind: Namespace, metadata: {name: mine}}`}, want: []string{"job"}},
		{name: "a label of a namespace", event: step{objects: `{kind: Namespace, metadata: {name: mine, labels: {project: myproject, owner: me}}}`}},
		{name: "a pod of the same class takes over", event: step{
			objects: `{kind: Pod, metadata: {namespace: default, name: web3, creationTimestamp: "2026-01-02T00:00:00Z", labels: {role: frontend}}, status: {podIP: 10.0.0.8}}`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := semanticsRun{t: t, cluster: readCluster(t, smallCluster)}
			r.store = r.cluster.newStore()
			r.apply(step{policies: toDB, objects: twins})
			r.apply(tt.before)
			before, _ := r.store.Commit()
			r.apply(tt.event)
			now, changes := r.store.Commit()
			var got []string
			for name, addr := range ends {
				a := netip.MustParseAddr(addr)
				e, id := now.Identify(a)
				if _, was := before.Identify(a); e != nil && id != was {
					if got = append(got, name); !slices.Contains(changes, a) {
						t.Errorf("the ID of %s is another one, but the address is not among the changes", name)
					}
				}
			}
			if slices.Sort(got); !slices.Equal(got, tt.want) {
				t.Errorf("other IDs for %q, want %q", got, tt.want)
			}
		})
	}
}

// A prefix with nearly all addresses of a group takes over the group, and all of its IDs. The addresses
// outside of the prefix get new IDs.
func TestGroupPassesOn(t *testing.T) {
	const far = "192.168.0.8" // a pod that is like those in 10.0.0.0/9
	r := semanticsRun{t: t, cluster: readCluster(t, smallCluster)}
	r.store = r.cluster.newStore()
	r.store.SetFew(1)
	r.apply(step{objects: `{kind: Pod, metadata: {namespace: default, name: far, labels: {role: frontend}}, status: {podIP: ` + far + `}}`})
	s, _ := r.store.Commit()
	ids := func() map[string]policy.ID {
		all := make(map[string]policy.ID)
		for _, a := range append([]string{far}, slices.Collect(maps.Values(ends))...) {
			if e, id := s.Identify(netip.MustParseAddr(a)); e != nil && !e.IsNode() {
				all[a] = id
			}
		}
		return all
	}
	first := ids()
	for _, tt := range []struct {
		event step
		same  bool // all have the IDs that they had first
	}{
		{step{policies: `absent/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}`}, false},
		{step{policies: `absent/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/9]}}]}]}`}, false},
		{step{remove: "NetworkPolicy absent/p"}, true},
	} {
		r.apply(tt.event)
		s, _ = r.store.Commit()
		if err := r.store.CheckGroups(); err != nil {
			t.Error(err)
		}
		now := ids()
		for a, id := range first {
			if want := tt.same || a != far; (now[a] == id) != want {
				t.Errorf("%+v: %s has the ID %d, and had %d", tt.event, a, now[a], id)
			}
		}
	}
}

// If several rules allow what comes from an address, the same one does for all addresses with an ID,
// on whatever side of an exception of one of the rules they are.
func TestSameRuleForAnID(t *testing.T) {
	for _, policies := range []string{
		`default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.1.0/24]}}]}, {from: [{ipBlock: {cidr: 10.1.0.0/16}}]}]}`,
		`default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}]}, {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.1.0/24]}}]}]}`,
	} {
		r := semanticsRun{t: t, cluster: readCluster(t, smallCluster)}
		r.store = r.cluster.newStore()
		r.apply(step{policies: policies})
		s, _ := r.store.Commit()
		verdict := func(from string) (filter.Verdict, policy.ID) {
			a := netip.MustParseAddr(from)
			_, id := s.Identify(a)
			return s.Decide(filter.NewKey(a, netip.MustParseAddr("10.0.0.1"), filter.TCP, 80)), id
		}
		below, id := verdict("10.1.0.5")
		above, same := verdict("10.1.2.5")
		if id != same || below != above || below.Action != filter.Allow {
			t.Errorf("below the exception, ID %d: %s by %v; above it, ID %d: %s by %v", id, below.Action, below.Ingress.Rule, same, above.Action, above.Ingress.Rule)
		}
	}
}

// PrefixChanges compares any two snapshots, not only consecutive ones.
func TestPrefixChanges(t *testing.T) {
	r := semanticsRun{t: t, cluster: readCluster(t, smallCluster)}
	r.store = r.cluster.newStore()
	block := func(cidr string) step {
		return step{policies: fmt.Sprintf(`default/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: %s}}]}]}`, cidr)}
	}
	var all []*policy.Snapshot
	for _, s := range []step{{}, block("10.0.0.0/8"), block("192.0.2.0/24"), block("10.0.0.0/8"), {remove: "NetworkPolicy default/p"}, {}} {
		r.apply(s)
		now, _ := r.store.Commit()
		all = append(all, now)
	}
	for i, tt := range []struct{ set, removed string }{
		{"[10.0.0.0/8]", "[]"}, {"[192.0.2.0/24]", "[10.0.0.0/8]"}, {"[10.0.0.0/8]", "[192.0.2.0/24]"}, {"[]", "[10.0.0.0/8]"}, {"[]", "[]"},
	} {
		if set, removed := prefixChanges(all[i], all[i+1]); set != tt.set || removed != tt.removed {
			t.Errorf("snapshot %d: %s set, %s removed, want %s and %s", i+1, set, removed, tt.set, tt.removed)
		}
	}
	if set, removed := prefixChanges(all[1], all[3]); set != "[10.0.0.0/8]" || removed != "[]" {
		t.Errorf("a prefix that is gone and comes back: %s set, %s removed, want it set with its new ID", set, removed)
	}
	if set, removed := prefixChanges(all[2], all[4]); set != "[]" || removed != "[192.0.2.0/24]" {
		t.Errorf("a prefix of a snapshot in between: %s set, %s removed", set, removed)
	}
}

func prefixChanges(before, now *policy.Snapshot) (set, removed string) {
	changed, gone := now.PrefixChanges(before)
	list := []netip.Prefix{}
	for _, p := range changed {
		list = append(list, p.Prefix)
	}
	return fmt.Sprint(list), fmt.Sprint(gone)
}

func TestIdentifyAllocatesNothing(t *testing.T) {
	r := semanticsRun{t: t, cluster: readCluster(t, smallCluster)}
	r.store = r.cluster.newStore()
	r.apply(step{policies: `default/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: "2001:db8::/32"}}]}]}`})
	s, _ := r.store.Commit()
	for name, addr := range ends {
		a := netip.MustParseAddr(addr)
		if n := testing.AllocsPerRun(100, func() { s.Identify(a) }); n != 0 {
			t.Errorf("Identify of %s allocates %v times, want 0", name, n)
		}
	}
}
