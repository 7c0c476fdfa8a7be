package agent

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"sluice/cmd/sluice/agent/status"
	"sluice/cmd/sluice/agent/telemetry"
	"sluice/filter"
	"sluice/filter/policy"
)

// maxPending bounds the pending snapshots that are recorded separately. Further ones are merged into the
// last, and come into force together.
const maxPending = 16

// enforced records which versions of policies are in force. A snapshot is in force when all stages have
// applied it, and when the live connections have been judged by it. The zero value is ready for use.
type enforced struct {
	mu       sync.Mutex
	policies map[policy.Ref]inForce
	digest   policy.Digest
	since    time.Time // when the digest came into force; zero before the first snapshot

	pending        []pendingSnapshot // in the order of their numbers
	added          uint64            // number of the last snapshot that was recorded
	settled, judge uint64            // numbers of the last snapshots that the stages, and a sweep, have applied
}

// inForce is a version of a policy in force. With its key, it takes some 190 bytes.
type inForce struct {
	resource string
	digest   [16]byte // the first half of the digest: enough, because it only shows accidental differences
	tier     policy.Tier
	since    time.Time
}

// pendingSnapshot holds the changes of a snapshot that is not in force yet, or of several successive ones.
type pendingSnapshot struct {
	number uint64
	digest policy.Digest
	set    map[policy.Ref]policy.Version
	gone   map[policy.Ref]bool
}

// applied is watch.Options.Applied.
func (e *enforced) applied(s *policy.Snapshot, settled bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := s.Number(); n > e.added {
		e.added = n
		e.add(s)
	}
	if settled {
		e.settled = s.Number()
	}
	e.promote()
}

// swept is conntrack.Follower.OnSwept.
func (e *enforced) swept(number uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.judge = max(e.judge, number)
	e.promote()
}

// add records the changes of a snapshot as pending.
func (e *enforced) add(s *policy.Snapshot) {
	if len(e.pending) < maxPending {
		e.pending = append(e.pending, pendingSnapshot{set: make(map[policy.Ref]policy.Version), gone: make(map[policy.Ref]bool)})
	}
	p := &e.pending[len(e.pending)-1]
	p.number, p.digest = s.Number(), s.Digest()
	for _, ref := range s.Removed() {
		delete(p.set, ref)
		p.gone[ref] = true
	}
	for _, v := range s.Changed() {
		delete(p.gone, v.Ref)
		p.set[v.Ref] = v
	}
}

// promote records those pending snapshots as in force that the stages and a sweep have applied.
func (e *enforced) promote() {
	now := time.Now()
	for len(e.pending) > 0 && e.pending[0].number <= min(e.settled, e.judge) {
		p := &e.pending[0]
		if e.digest != p.digest || e.since.IsZero() {
			e.digest, e.since = p.digest, now
		}
		if e.policies == nil {
			e.policies = make(map[policy.Ref]inForce, len(p.set))
		}
		for ref := range p.gone {
			delete(e.policies, ref)
		}
		for ref, v := range p.set {
			is := inForce{v.Resource, [16]byte(v.Digest[:16]), v.Tier, now}
			if was, ok := e.policies[ref]; ok && was.digest == is.digest {
				is.since = was.since
			}
			e.policies[ref] = is
		}
		e.pending = slices.Delete(e.pending, 0, 1)
	}
}

// digestNow returns the digest in force and since when it is; both are empty before the first snapshot.
func (e *enforced) digestNow() (digest string, since time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.since.IsZero() {
		return "", e.since
	}
	return e.digest.String(), e.since
}

// list returns the policies in force, sorted by tier and name.
func (e *enforced) list() []status.PolicyInForce {
	e.mu.Lock()
	all := make([]status.PolicyInForce, 0, len(e.policies))
	for ref, is := range e.policies {
		all = append(all, is.of(ref))
	}
	e.mu.Unlock()
	slices.SortFunc(all, func(a, b status.PolicyInForce) int {
		return cmp.Or(strings.Compare(a.Tier, b.Tier), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return all
}

// of returns v, a version of the policy ref, in the form that the status shows.
func (v inForce) of(ref policy.Ref) status.PolicyInForce {
	p := status.PolicyInForce{
		Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name, Version: v.resource, Digest: hex.EncodeToString(v.digest[:]), Since: v.since,
	}
	if v.tier != policy.NetworkPolicy {
		p.Tier = v.tier.String()
	}
	return p
}

// versions returns which versions of the given policies are in force, without policies that are not in
// force. v.Enforcing is false before the first snapshot is in force.
func (e *enforced) versions(of []policy.Ref) (v status.Versions) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v.Enforcing = !e.since.IsZero()
	for _, ref := range of {
		if is, ok := e.policies[ref]; ok {
			v.Policies = append(v.Policies, is.of(ref))
		}
	}
	return v
}

// serveVersions answers which versions of the policies that the request names are in force.
func (a *agent) serveVersions(w http.ResponseWriter, r *http.Request) {
	of, err := status.ReadVersionsRequest(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	v := a.enforced.versions(of)
	v.Node = a.opts.NodeName
	s := telemetry.State{Failing: a.manager.Failures()}
	a.network.addSettings(&s, a.opts.SysctlProblems)
	v.Unready, v.Bypass = s.NotApplied()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails only if the client has hung up
}

// policies returns the policies in force, each with the pods of this node that it selects.
func (a *agent) policies() []status.PolicyInForce {
	all := a.enforced.list()
	selected := podsByPolicy(a.published.Snapshot(), a.opts.NodeName)
	for i := range all {
		all[i].Pods = selected[all[i].Title()]
	}
	return all
}

// podsByPolicy returns, for the title of each policy, the sorted names of the pods of a node that the
// policy selects.
func podsByPolicy(s *policy.Snapshot, node string) map[string][]string {
	selected := make(map[string][]string)
	if s == nil {
		return selected
	}
	for addr, e := range s.Endpoints() {
		if !onNode(s, addr, e, node) {
			continue
		}
		pod := e.String()
		for tier := policy.Admin; tier < filter.NumTiers; tier++ {
			for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
				for _, name := range e.Policies(d, tier) {
					title := filter.PolicyTitle(tier, name)
					selected[title] = append(selected[title], pod)
				}
			}
		}
	}
	for title, pods := range selected {
		slices.Sort(pods)
		selected[title] = slices.Compact(pods) // a pod is listed once for each of its addresses and directions
	}
	return selected
}

// onNode reports whether an endpoint is a pod of the node. Pods in manifests need not name their node.
// Such a pod counts as a pod of this node if its address is in this node's pod ranges or if the node has
// no pod ranges.
func onNode(s *policy.Snapshot, addr netip.Addr, e *policy.Endpoint, node string) bool {
	if e.IsNode() {
		return false
	}
	if on := e.NodeName(); on != "" {
		return on == node
	}
	ranges := s.LocalRanges()
	return len(ranges) == 0 || slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(addr) })
}
