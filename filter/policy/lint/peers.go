package lint

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/near"
)

// orNotAnd reports a peer for all pods of some namespaces next to a peer for some pods of the policy's
// own namespace: both selectors were probably meant to be in one peer. If the first peer includes the
// policy's own namespace, the second has no effect, which makes the mistake certain.
func (l *linter) orNotAnd(p *lintPolicy, r *rule) {
	if p.ordered() {
		return
	}
	for i := 0; i+1 < len(r.peers); i++ {
		a, b := &r.peers[i], &r.peers[i+1]
		if a.arePods() && b.arePods() && !a.own && a.pods.Empty() && b.own && !b.pods.Empty() {
			l.found(OrNotAnd, p, b.field, "write both selectors in one item, without a dash before podSelector; or move the second to a rule of its own",
				"it is a peer of its own, so the rule allows all pods of the namespaces of %s, and pods of this namespace that match %s", a.field, b.pods)
			return
		}
	}
}

// undeclared reports a port number of an ingress rule that no container of the selected pods declares.
// It reports nothing if one of these pods declares no port at all, because containers need not declare
// theirs.
func (l *linter) undeclared(p *lintPolicy, r *rule) {
	if p.ordered() || r.direction != filter.Ingress {
		return // the destinations of egress rules often belong to other teams, whose manifests are not here
	}
	var have []policy.NamedPort
	for _, o := range l.pods {
		if !p.selects(o) {
			continue
		}
		if len(o.all) == 0 {
			return
		}
		have = append(have, o.all...)
	}
	for _, x := range r.ports {
		within := func(n policy.NamedPort) bool {
			return n.Protocol == x.Protocol && x.Low <= n.Number && n.Number <= x.High
		}
		if len(have) == 0 || x.Name != "" || x.All() || slices.ContainsFunc(have, within) {
			continue
		}
		var declared []string
		for _, n := range have {
			declared = append(declared, fmt.Sprintf("%s %d", n.Protocol, n.Number))
		}
		slices.Sort(declared)
		l.found(Undeclared, p, x.field, "write a port of the containers, not one of a Service (they declare "+near.List(slices.Compact(declared), 5, ", ")+")",
			"no container of the selected pods declares %s", portText(x.PortRange))
	}
}

func portText(x policy.PortRange) string {
	if x.Low == x.High {
		return fmt.Sprintf("%s %d", x.Protocol, x.Low)
	}
	return fmt.Sprintf("%s %d-%d", x.Protocol, x.Low, x.High)
}

// metadata reports egress to a wide range of addresses that contains the metadata address, at which
// clouds give credentials to any pod that asks. It reports nothing if other rules, such as those of the
// tier Admin, deny this address to all pods that the policy selects.
func (l *linter) metadata(p *lintPolicy, r *rule, v *inventory.Inventory) {
	service := netip.AddrFrom4([4]byte{169, 254, 169, 254})
	const wide = 8 // prefixes longer than this are not meant as the Internet
	if r.direction != filter.Egress || r.action != policy.Accept || !r.opens(80) {
		return
	}
	for _, x := range r.peers {
		if x.block == nil || x.block.cidr.Bits() > wide || !x.block.contains(service) || !l.reaches(p, service, v) {
			continue
		}
		hint := "add except: [169.254.169.254/32], or 169.254.0.0/16"
		if p.ordered() {
			hint = "deny networks: [169.254.169.254/32] in a rule before it"
		}
		l.found(Metadata, p, x.cidrField(), hint, "%s has the address %s, at which clouds give a node's credentials", x.block.cidr, service)
	}
}

// reaches reports whether the policies allow any pod that p selects to reach addr, which is outside the
// cluster, at TCP port 80. If p selects no pod, it returns true.
func (l *linter) reaches(p *lintPolicy, addr netip.Addr, v *inventory.Inventory) bool {
	none := true
	for _, o := range l.pods {
		if !p.selects(o) {
			continue
		}
		end, err := v.EndOf(v.Pod(o.ns.name+"/"+o.name), false)
		if err != nil {
			continue // the pod has ended
		}
		none = false
		for _, a := range end.Addrs {
			f := inventory.Flow{From: end, To: &inventory.End{}, Key: filter.NewKey(a, addr, filter.TCP, 80)}
			if a.Is4() == addr.Is4() && v.Decide(f).Action == filter.Allow {
				return true
			}
		}
	}
	return none
}

// cidrField returns the field with the CIDR of a peer that is a block.
func (x *peer) cidrField() string {
	if x.block.written == nil {
		return x.field // an item of the field networks
	}
	return x.field + ".ipBlock.cidr"
}

// opens reports whether the ports of the rule include the TCP port number.
func (r *rule) opens(number uint16) bool {
	return r.anyPort || slices.ContainsFunc(r.ports, func(x port) bool {
		return x.Name == "" && x.Protocol == filter.TCP && x.Low <= number && number <= x.High
	})
}

// podAddresses reports ipBlocks within the ranges of pods, and ipBlocks for single addresses of pods or
// Services. The address of a pod changes when the pod is replaced, and the node replaces the address of
// a Service with that of an endpoint before policies decide.
func (l *linter) podAddresses(p *lintPolicy, v *inventory.Inventory) {
	for d := range p.rules {
		for _, r := range p.rules[d] {
			for _, x := range r.peers {
				if x.block == nil {
					continue
				}
				if what := l.ownerOf(x.block.cidr, v); what != "" {
					l.found(PodRange, p, x.cidrField(), "select the pods by labels", "%s is %s", x.block.cidr, what)
				}
			}
		}
	}
}

// ownerOf describes the pods or the Service that the range is about. It returns "" if the range is not
// about any.
func (l *linter) ownerOf(c netip.Prefix, v *inventory.Inventory) string {
	if !c.IsSingleIP() {
		for _, r := range v.KnownPodRanges() {
			if inside(c, r.Masked()) {
				return "in the range " + r.String() + " of pods, whose addresses change"
			}
		}
		return ""
	}
	for _, o := range l.pods {
		if !o.host && slices.Contains(o.addrs, c.Addr()) {
			return "the address of pod " + o.ns.name + "/" + o.name + ", and another one when the pod is replaced"
		}
	}
	for _, s := range v.Services {
		if slices.Contains(append(slices.Clone(s.Spec.ClusterIPs), s.Spec.ClusterIP), c.Addr().String()) {
			return "the address of Service " + s.Namespace + "/" + s.Name + ", which no packet has when policies decide"
		}
	}
	return ""
}

// notIsolated reports pods that no policy isolates in ingress, in namespaces with other pods that are
// isolated. A namespace without isolated pods is open on purpose, or has no policies yet. There is one
// finding per namespace: about the Namespace, or, if that object is missing, about the first of the
// workloads.
func (l *linter) notIsolated(v *inventory.Inventory) {
	meant := make(map[string]bool) // workloads whose annotation turns the check off
	for _, w := range v.Workloads {
		meant[w.Ref.Namespace+"/"+w.Ref.Name] = strings.Contains(w.LintIgnore, NotIsolated)
	}
	open := make(map[string][]string)
	first := make(map[string]string) // an object of each namespace
	isolated := make(map[string]bool)
	for _, o := range l.pods {
		if o.host || o.ended || meant[o.workload] {
			continue
		}
		by := func(p *lintPolicy) bool { return p.selects(o) && (p.ordered() || p.Isolates[filter.Ingress]) }
		if slices.ContainsFunc(l.policies, by) {
			isolated[o.ns.name] = true
		} else {
			open[o.ns.name] = append(open[o.ns.name], o.workload)
			first[o.ns.name] = cmp.Or(first[o.ns.name], o.object)
		}
	}
	for namespace, names := range open {
		if !isolated[namespace] {
			continue
		}
		slices.Sort(names)
		names = slices.Compact(names)
		object := first[namespace]
		if v.HasNamespace(namespace) {
			object = "Namespace " + namespace
		}
		them := map[bool]string{true: "it", false: "them"}[len(names) == 1]
		l.findings = append(l.findings, Finding{
			Check: NotIsolated, Object: object, Count: len(names),
			Detail: "no policy isolates " + near.List(names, 5, ", ") + " in ingress: every packet reaches " + them,
			Hint:   "add a policy that selects " + them + ", or all pods of the namespace (podSelector: {})",
		})
	}
}
