package policy_test

import (
	"crypto/sha256"
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
)

// version notes a version of a policy; nil if it is deleted.
func (h *history) version(namespace, name string, o *networkingv1.NetworkPolicy) {
	key := [2]string{namespace, name}
	h.versions[key] = append(h.versions[key], o)
}

// advanceDrafts does some steps that bring drafts into force, in pieces as small as they
// can be.
func (h *history) advanceDrafts(steps int) {
	if !h.drafts {
		return
	}
	for range steps {
		switch {
		case h.out != nil && h.oneIn(2):
			h.note("prepared")
			h.out.Prepare()
			h.world.Prepared(h.out)
			h.out = nil
		case h.out == nil && h.oneIn(2):
			h.out = h.world.NextDraft()
		default:
			h.note("work")
			h.world.Work(func() bool { return false })
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

// behind reports whether there is something left to do for drafts.
func (h *history) behind() bool {
	if !h.drafts {
		return false
	}
	if h.out == nil {
		h.out = h.world.NextDraft()
	}
	again, _ := h.world.Work(func() bool { return false })
	return again || h.out != nil
}

// inForce is the cluster with the versions of policies that are in force. It wants each
// to be one that the policy has had, and no earlier one than before.
func (h *history) inForce() *cluster {
	c := *h.cluster
	c.Policies = nil
	h.late = map[string]bool{}
	all := h.world.Versions()
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
			h.late[key[0]] = true
			continue // not yet
		case at == len(versions):
			h.fail(flow{}, fmt.Sprintf("policy %v: what is in force (%t) is no version since the %dth of %d", key, ok, h.reached[key], len(versions)))
			continue
		}
		if h.reached[key] = at; at < len(versions)-1 {
			h.overdue++
			h.late[key[0]] = true
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
		panic(err) // cannot be: the store encodes it too
	}
	return sha256.Sum256(spec)
}
