package lint

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy/near"
)

// matches reports selectors that match nothing.
func (l *linter) matches(p *lintPolicy) {
	l.nodesMatch(p)
	if len(l.pods) == 0 {
		return
	}
	if p.ordered() {
		l.orderedSubjectMatches(p)
	} else {
		l.subjectMatches(p)
	}
	for d := range p.rules {
		for i := range p.rules[d] {
			for j := range p.rules[d][i].peers {
				l.peerMatches(p, p.rules[d][i].direction, &p.rules[d][i].peers[j])
			}
		}
	}
}

func (l *linter) subjectMatches(p *lintPolicy) {
	if p.subject == nil || slices.ContainsFunc(l.pods, p.selects) {
		return
	}
	if l.namespaces[p.namespace] == nil {
		l.found(NoMatch, p, "metadata.namespace", "write the namespace of the pods that it is meant for"+l.knownNamespaces(),
			"there is no namespace %s, and no pod in it", p.namespace)
		return
	}
	if p.subject.Empty() {
		return // the policy is for all pods, even if there are none yet
	}
	onHost := func(o *pod) bool { return o.host && o.ns.name == p.namespace && p.subject.Matches(o.labels) }
	if slices.ContainsFunc(l.pods, onHost) {
		l.found(NoMatch, p, "spec.podSelector", "select pods that have an address of their own",
			"it matches only pods of the host network, which no policy isolates")
		return
	}
	l.found(NoMatch, p, "spec.podSelector", "write labels that the pods have"+l.nearLabels(p.subject, l.labelsIn(p.namespace)),
		"no pod of namespace %s matches %s", p.namespace, p.subject)
}

func (l *linter) peerMatches(p *lintPolicy, d filter.Direction, x *peer) {
	if !x.arePods() || slices.ContainsFunc(l.pods, x.includes) {
		return
	}
	var inside []string
	for _, ns := range l.namespaces {
		if x.namespace.Matches(ns.labels) {
			inside = append(inside, ns.name)
		}
	}
	switch {
	case x.isSystem() && !l.hasSystem():
		return // manifests seldom include the system's pods
	case len(inside) == 0 && x.own:
		return // subjectMatches reports that the policy's namespace does not exist
	case len(inside) == 0 && l.absent(p, x):
	case len(inside) == 0:
		l.found(NoMatch, p, x.field+x.nsField, "write labels that the namespace has"+l.nearLabels(x.namespace, l.namespaceLabels()),
			"no namespace matches %s", x.namespace)
	case l.onHost(x) != nil && !(x.pods.Empty() && (x.own || x.isSystem())):
		field, hint := x.podField, "allow the addresses of their nodes with an ipBlock"
		if x.pods.Empty() {
			field = x.nsField
		}
		switch {
		case p.ordered() && d == filter.Ingress:
			hint = "remove it: no ingress peer matches the address of a node"
		case p.ordered():
			hint = "name the addresses of their nodes with networks or nodes"
		}
		l.found(NoMatch, p, x.field+field, hint,
			"%s matches only pods of the host network (%s): they have their node's address, and no selector matches them", cmp.Or(x.pods.String(), "it"), l.onHost(x))
	case x.pods.Empty():
		return // the peer is all pods of the namespaces, even if there are none yet
	default:
		slices.Sort(inside)
		l.found(NoMatch, p, x.field+x.podField, "write labels that the pods have"+l.nearLabels(x.pods, l.labelsIn(inside...)),
			"no pod of namespace %s matches %s", strings.Join(inside, ", "), x.pods)
	}
}

// absent reports a peer that selects namespaces by name if none of the names exists: such a namespace
// is probably in manifests that were not read. It returns false if the peer also has other selectors,
// or if one of the names is similar to that of an existing namespace: the selector is probably wrong
// then.
func (l *linter) absent(p *lintPolicy, x *peer) bool {
	requirements, _ := x.namespace.Requirements()
	var names []string
	for _, r := range requirements {
		if r.Key() != corev1.LabelMetadataName || !has(r) {
			return false
		}
		names = append(names, r.ValuesUnsorted()...)
	}
	var all []string
	for name := range l.namespaces {
		all = append(all, name)
	}
	if len(names) == 0 || slices.ContainsFunc(names, func(n string) bool { _, similar := near.Name(n, all); return similar }) {
		return false
	}
	slices.Sort(names)
	l.found(NoNamespace, p, x.field+x.nsField, "add its manifests (-f), or write the name of a namespace"+l.knownNamespaces(),
		"there is no namespace %s, so nothing is known about its pods", near.List(names, 3, ", "))
	return true
}

// hostPods are pods of the host network.
type hostPods []*pod

func (list hostPods) String() string {
	text := list[0].ns.name + "/" + list[0].name
	if n := len(list) - 1; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// onHost returns the pods of the host network whose labels match the peer.
func (l *linter) onHost(x *peer) hostPods {
	var found hostPods
	for _, o := range l.pods {
		if o.host && x.namespace.Matches(o.ns.labels) && x.pods.Matches(o.labels) {
			found = append(found, o)
		}
	}
	return found
}

// isSystem reports whether the peer may be in kube-system.
func (x *peer) isSystem() bool {
	return !x.namespace.Empty() && x.namespace.Matches(labels.Set{corev1.LabelMetadataName: metav1.NamespaceSystem})
}

// hasSystem reports whether there are pods of kube-system.
func (l *linter) hasSystem() bool {
	return slices.ContainsFunc(l.pods, func(o *pod) bool { return o.ns.name == metav1.NamespaceSystem })
}

func (l *linter) labelsIn(namespaces ...string) []labels.Set {
	var found []labels.Set
	for _, o := range l.pods {
		if slices.Contains(namespaces, o.ns.name) {
			found = append(found, o.labels)
		}
	}
	return found
}

func (l *linter) namespaceLabels() []labels.Set {
	var found []labels.Set
	for _, ns := range l.namespaces {
		found = append(found, ns.labels)
	}
	return found
}

// nearLabels explains why a selector (sel) matches none of the label sets in have. It looks
// for the first requirement of the selector that none of the sets meets. If some sets have
// the key of this requirement, nearLabels returns a text with up to five values of the key.
// If no set has the key, it returns a text that says so. If there is no such requirement,
// it returns "".
func (l *linter) nearLabels(sel labels.Selector, have []labels.Set) string {
	requirements, _ := sel.Requirements()
	for _, r := range requirements {
		var seen []string
		for _, set := range have {
			if v, ok := set[r.Key()]; ok && !slices.Contains(seen, v) {
				seen = append(seen, v)
			}
		}
		slices.Sort(seen)
		if len(seen) > 5 {
			seen = append(seen[:5], "...")
		}
		single := labels.NewSelector().Add(r)
		if slices.ContainsFunc(have, func(s labels.Set) bool { return single.Matches(s) }) {
			continue // this requirement has a match
		}
		if len(seen) == 0 {
			return fmt.Sprintf(" (none has the label %s)", r.Key())
		}
		return fmt.Sprintf(" (%s is %s there)", r.Key(), strings.Join(seen, ", "))
	}
	return ""
}

// knownNamespaces lists the namespaces if they are few.
func (l *linter) knownNamespaces() string {
	var all []string
	for name := range l.namespaces {
		all = append(all, name)
	}
	if len(all) == 0 || len(all) > 8 {
		return ""
	}
	slices.Sort(all)
	return " (there are " + strings.Join(all, ", ") + ")"
}

// portNames reports each named port of a rule that no destination pod of the rule has. It
// skips a rule without a destination pod, because linter.matches already reports the selectors
// of such a rule. For an egress rule that allows only address blocks, it reports every named
// port, because only pods have port names.
func (l *linter) portNames(p *lintPolicy, r *rule) {
	var to []*pod
	for _, o := range l.pods {
		isPeer := !o.host && (r.anyone || slices.ContainsFunc(r.peers, func(x peer) bool { return x.includes(o) }))
		if r.direction == filter.Ingress && p.selects(o) || r.direction == filter.Egress && isPeer {
			to = append(to, o)
		}
	}
	outsideOnly := r.direction == filter.Egress && len(r.peers) > 0 && !slices.ContainsFunc(r.peers, func(x peer) bool { return x.arePods() })
	if len(to) == 0 && !(outsideOnly && len(l.pods) > 0) {
		return
	}
	reported := ""
	for _, x := range r.ports {
		if x.Name == "" || x.field == reported || r.declared(x, to) {
			continue
		}
		if r.direction == filter.Egress && isDNS(x.Name) && !l.hasSystem() {
			continue
		}
		number := "the number"
		if p.ordered() {
			number = "a protocol with the number"
		}
		hint := "write a name that the pods' containers declare, or " + number
		if outsideOnly {
			hint = "write " + number + ": only pods have port names"
		} else if others := portsOf(to); len(others) > 0 {
			hint += " (they declare " + strings.Join(others, ", ") + ")"
		}
		reported = x.field
		if p.ordered() {
			l.found(NoPort, p, x.field, hint, "no destination pod has a port named %q", x.Name)
		} else {
			l.found(NoPort, p, x.field, hint, "no destination pod has a port named %q for %s", x.Name, x.Protocol)
		}
	}
}

// declared reports whether one of the pods declares the named port x of the rule. In an ordered
// rule, r.ports has the port once for each protocol, with the same field, and one of these is
// enough.
func (r *rule) declared(x port, to []*pod) bool {
	return slices.ContainsFunc(to, func(o *pod) bool {
		return slices.ContainsFunc(r.ports, func(y port) bool { return y.field == x.field && o.ports[portName{y.Name, y.Protocol}] })
	})
}

// portsOf lists at most five ports that the pods declare.
func portsOf(pods []*pod) []string {
	var all []string
	for _, o := range pods {
		for name := range o.ports {
			if text := fmt.Sprintf("%s of %s", name.name, name.protocol); !slices.Contains(all, text) {
				all = append(all, text)
			}
		}
	}
	slices.Sort(all)
	if len(all) > 5 {
		all = append(all[:5], "...")
	}
	return all
}
