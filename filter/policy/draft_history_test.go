package policy_test

import (
	"crypto/sha256"
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
)

// recordVersion records a new version of a policy; o is nil if the policy was deleted.
func (h *history) recordVersion(namespace, name string, o *networkingv1.NetworkPolicy) {
	key := [2]string{namespace, name}
	h.versions[key] = append(h.versions[key], o)
}

// advanceDrafts does a number of random steps that bring drafts into force. Each step is as
// small as the Store permits.
func (h *history) advanceDrafts(steps int) {
	if !h.drafts {
		return
	}
	for range steps {
		switch {
		case h.preparing != nil && h.oneIn(2):
			h.logf("prepared")
			h.preparing.Prepare()
			h.store.Prepared(h.preparing)
			h.preparing = nil
		case h.preparing == nil && h.oneIn(2):
			h.preparing = h.store.NextDraft()
		default:
			h.logf("work")
			h.store.Work(func() bool { return false })
		}
	}
}

// finishDrafts brings all drafts into force.
func (h *history) finishDrafts() {
	for range 1000 {
		h.advanceDrafts(20)
		if !h.behind() {
			return
		}
	}
	h.fail(flow{}, "drafts are not in force after all steps")
}

// behind reports whether a draft is still to be prepared or to be brought into force. It takes
// the next draft, if there is one, and does a step of work.
func (h *history) behind() bool {
	if !h.drafts {
		return false
	}
	if h.preparing == nil {
		h.preparing = h.store.NextDraft()
	}
	again, _ := h.store.Work(func() bool { return false })
	return again || h.preparing != nil
}

// inForce returns the cluster with the versions of policies that are in force. It checks
// that each of these versions was set, and is not older than the one at the last commit.
func (h *history) inForce() *cluster {
	c := *h.cluster
	c.Policies = nil
	h.overdueIn = map[string]bool{}
	all := h.store.Versions()
	for key, versions := range h.versions {
		sum, ok := all[key]
		at := h.reached[key]
		for ; at < len(versions); at++ {
			if versions[at] == nil && !ok || versions[at] != nil && ok && sumOf(versions[at]) == sum {
				break
			}
		}
		switch {
		case at == len(versions) && !ok && h.reached[key] == 0:
			h.overdueIn[key[0]] = true
			continue // the policy exists only as a draft, so none of its versions is in force yet
		case at == len(versions):
			h.fail(flow{}, fmt.Sprintf("policy %v: none of its versions from index %d of %d is in force (in the store: %t)", key, h.reached[key], len(versions), ok))
			continue
		}
		if h.reached[key] = at; at < len(versions)-1 {
			h.overdue++
			h.overdueIn[key[0]] = true
		}
		if versions[at] != nil {
			c.Policies = append(c.Policies, versions[at])
		}
	}
	return &c
}

func sumOf(o *networkingv1.NetworkPolicy) [32]byte {
	spec, err := o.Spec.Marshal()
	if err != nil {
		panic(err) // cannot happen: the store encodes the spec too
	}
	return sha256.Sum256(spec)
}
