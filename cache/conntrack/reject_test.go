package conntrack_test

import (
	"testing"

	"sluice/cache/conntrack"
	"sluice/filter"
	"sluice/filter/policy/netpol"
)

// A revoked connection has both bits in its mark if its packets are rejected. A change from
// reject to drop, or back, changes the mark, but the connection does not count as revoked again.
func TestRevokedByRejecting(t *testing.T) {
	r := newFixture(t)
	ref := r.track(web, db, filter.TCP, 80, foreign|allowed)
	fine := r.track(web, db, filter.TCP, 81, allowed)
	closed := netpol.Read(guard("db", 81))
	for _, step := range []struct {
		denial  filter.Denial
		mark    uint32
		revoked int
	}{
		{filter.DenialReject, revoked | allowed, 1},
		{filter.DenialDrop, revoked, 0},
		{filter.DenialReject, revoked | allowed, 0},
	} {
		p := *closed
		p.Denial, p.Digest, p.Source.Read = step.denial, [32]byte{}, nil
		r.store.SetPolicy(&p)
		res := r.commit(conntrack.ScopeAll)
		r.want(ref, foreign|step.mark)
		r.want(fine, allowed)
		if res.Revoked != step.revoked || res.Restored != 0 {
			t.Errorf("%q: %+v, want %d revoked", step.denial, res, step.revoked)
		}
	}
	r.store.DeletePolicy(closed.Ref)
	if res := r.commit(conntrack.ScopeAll); res.Restored != 1 {
		t.Errorf("%+v, want one connection restored", res)
	}
	r.want(ref, foreign|allowed)
}
