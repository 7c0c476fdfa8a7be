package inventory

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter/policy"
)

// familyNames are the names of the address families, by index.
var familyNames = [...]string{"IPv4", "IPv6"}

// familyOf returns the index of an address's family: 0 for IPv4, 1 for IPv6.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// setFamilies sets the address families that the cluster uses: those of the addresses of pods, Nodes,
// pod ranges and Services, or IPv4 if there are no addresses. As long as no pod has an address, the
// families that policies and Services mention are added: what a policy lets in must not be missing in
// an answer because manifests have no addresses. In a comparison, both inventories use the same ones.
func (v *Inventory) setFamilies() {
	v.families, v.podsAddressed = v.addressed(), v.hasPodAddresses()
	mentioned := v.mentioned()
	if o := v.beside; o != nil {
		v.families, mentioned = either(v.families, o.addressed()), either(mentioned, o.mentioned())
		v.podsAddressed = v.podsAddressed || o.hasPodAddresses()
	}
	if v.families == [2]bool{} {
		v.families[0] = true
	}
	if !v.podsAddressed {
		v.families = either(v.families, mentioned)
	}
}

func either(a, b [2]bool) [2]bool { return [2]bool{a[0] || b[0], a[1] || b[1]} }

// uses reports whether the cluster uses IPv4 if v4 is true, or IPv6 otherwise.
func (v *Inventory) uses(v4 bool) bool {
	if v4 {
		return v.families[0]
	}
	return v.families[1]
}

// mayUse is like uses, but also true while no pod has an address: a question may then be about a
// family that nothing else mentions.
func (v *Inventory) mayUse(v4 bool) bool { return v.uses(v4) || !v.podsAddressed }

// hasPodAddresses reports whether a running pod has an address of its own.
func (v *Inventory) hasPodAddresses() bool {
	return slices.ContainsFunc(v.Objects.Pods, func(p *policy.Pod) bool { return len(p.Addrs) > 0 && !p.HostNetwork && alive(p) })
}

// addressed returns the families of the addresses of all objects.
func (v *Inventory) addressed() (families [2]bool) {
	see := func(a netip.Addr) { families[familyOf(a)] = true }
	for _, p := range v.Objects.Pods {
		for _, a := range p.Addrs {
			see(a)
		}
	}
	for _, n := range v.Nodes {
		for _, a := range n.Addrs {
			see(a)
		}
	}
	for _, r := range v.KnownPodRanges() {
		see(r.Addr())
	}
	for a := range v.byAddress {
		see(a)
	}
	return families
}

// mentioned returns the families of the ranges in policies, and those that Services ask for. A range such
// as fd00:ec2::254, the instance metadata, is in policies of clusters without IPv6 as well, and does not
// count; LeftOut returns its policies.
func (v *Inventory) mentioned() (families [2]bool) {
	for _, p := range v.marks.prefixes {
		if canBe(Range{Prefix: p}, true) {
			families[familyOf(p.Addr())] = true
		}
	}
	for _, s := range v.Services {
		for _, f := range s.Spec.IPFamilies {
			families[0] = families[0] || f == corev1.IPv4Protocol
			families[1] = families[1] || f == corev1.IPv6Protocol
		}
	}
	return families
}

// inFamilyOf returns e with an assumed address of a family of the other end, if they have none in
// common and e may have one. Otherwise it returns e unchanged.
func (v *Inventory) inFamilyOf(e, other *End, to bool) *End {
	if !e.Assumed || v.podsAddressed {
		return e
	}
	for _, a := range other.Addrs {
		if slices.ContainsFunc(e.Addrs, func(own netip.Addr) bool { return own.Is4() == a.Is4() }) {
			return e
		}
	}
	out := *e
	out.Addrs = nil
	for _, a := range other.Addrs {
		if own := v.assumeIn(familyOf(a), to, e.Node); own.IsValid() {
			out.Addrs = append(out.Addrs, own)
		}
	}
	if len(out.Addrs) == 0 {
		return e
	}
	return &out
}

// LeftOut are policies with ranges of an address family that no pod has.
type LeftOut struct {
	Family   string // IPv4 or IPv6
	Policies []policy.Ref
	Known    bool // reports that some pods have addresses, all of the other family
}

// LeftOut returns the policies with ranges of a family that the inventory does not assume for pods
// without an address. It returns none if all pods have addresses.
func (v *Inventory) LeftOut() (all []LeftOut) {
	if !slices.ContainsFunc(v.AllPods(), addressless) {
		return nil
	}
	for family, used := range v.families {
		if used {
			continue
		}
		out := LeftOut{Family: familyNames[family], Known: v.podsAddressed}
		for _, p := range v.Policies {
			of := func(r netip.Prefix) bool { return familyOf(r.Addr()) == family }
			if slices.ContainsFunc(marksOf([]*policy.Policy{p}).prefixes, of) {
				out.Policies = append(out.Policies, p.Ref)
			}
		}
		if len(out.Policies) > 0 {
			all = append(all, out)
		}
	}
	return all
}
