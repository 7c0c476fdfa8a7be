package kube

import (
	"net/http"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// TestFailureSince checks that health shows the time at which a failure of requests for objects
// began, even if discovery of the kind fails and recovers meanwhile. An agent becomes unready
// when a failure has lasted for a while.
func TestFailureSince(t *testing.T) {
	h := newHealth("test", quietSlog)
	clock := time.Unix(1700000000, 0)
	h.now = func() time.Time { return clock }
	k := clusterNetworkPolicyKind
	check := func(what string, since time.Time, failing bool) {
		t.Helper()
		if got := h.of(k).view; !got.Since.Equal(since) || (got.Err != nil) != failing {
			t.Errorf("%s: since %v, %v; want since %v, failing %v", what, got.Since, got.Err, since, failing)
		}
		clock = clock.Add(time.Second)
	}
	refused, ill := &apierrors.StatusError{ErrStatus: *statusOf(http.StatusForbidden)}, &apierrors.StatusError{ErrStatus: *statusOf(http.StatusServiceUnavailable)}
	began := clock
	h.requestDone(k, "list", refused)
	check("refused", began, true)
	h.discovered(k, ill)
	check("and discovery fails", began, true)
	h.discovered(k, nil)
	check("discovery has recovered", began, true)
	h.discovered(k, ill)
	check("and fails again", began, true)
	next := clock
	h.requestDone(k, "watch", nil)
	check("only discovery fails", next, true)
	next = clock
	h.discovered(k, nil)
	check("nothing fails", next, false)
}
