package lint

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

// dns finds pods that may send something somewhere, but cannot look up where.
// Pods that may send nothing at all are meant to be closed. What counts is what
// all policies of a pod allow together: to deny everything in one and to allow
// DNS in another is the usual way.
func (l *linter) dns(p *pol) {
	if !p.Isolates[filter.Egress] || p.subject == nil || len(p.rules[filter.Egress]) == 0 {
		return
	}
	subjects := l.subjects(p)
	for _, proto := range []filter.Protocol{filter.UDP, filter.TCP} {
		closed := slices.IndexFunc(subjects, func(o *pod) bool { return !l.allowsDNS(o, proto) })
		if closed < 0 {
			continue
		}
		detail := "it isolates egress, and no policy of these pods allows DNS, so that they can look up no name"
		if proto == filter.TCP {
			detail = "DNS is allowed over UDP alone: answers that are too long for it are asked for again over TCP"
		}
		l.found(NoDNS, p, "spec.egress", "add an egress rule for port 53 of UDP and of TCP", "%s", detail)
		return
	}
}

// subjects are the pods that the policy is for, or if there are none, one such as
// it describes.
func (l *linter) subjects(p *pol) []*pod {
	var found []*pod
	for _, o := range l.pods {
		if p.selects(o) {
			found = append(found, o)
		}
	}
	if len(found) > 0 {
		return found
	}
	like := &pod{ns: newNamespace(p.namespace, nil), labels: make(labels.Set)}
	requirements, _ := p.subject.Requirements()
	for _, r := range requirements {
		if v := r.ValuesUnsorted(); len(v) > 0 && r.Matches(labels.Set{r.Key(): v[0]}) {
			like.labels[r.Key()] = v[0]
		}
	}
	return []*pod{like}
}

func (l *linter) allowsDNS(o *pod, proto filter.Protocol) bool {
	return slices.ContainsFunc(l.policies, func(p *pol) bool {
		return p.selects(o) && slices.ContainsFunc(p.rules[filter.Egress], func(r rule) bool {
			return r.opensDNS(proto, p.namespace)
		})
	})
}

// opensDNS says whether the rule may be meant to reach a DNS server, which may be
// anywhere. A rule that names no port and no peer outside of the policy's
// namespace is about something else.
func (r *rule) opensDNS(proto filter.Protocol, namespace string) bool {
	if r.anyPort {
		return r.anyone || namespace == metav1.NamespaceSystem || slices.ContainsFunc(r.peers, func(x peer) bool { return !x.own })
	}
	return (r.anyone || len(r.peers) > 0) && slices.ContainsFunc(r.ports, func(x port) bool {
		return x.Protocol == proto && (isDNS(x.Name) || x.Name == "" && x.Low <= 53 && 53 <= x.High)
	})
}

// isDNS says whether a port's name is one that DNS servers give to theirs.
func isDNS(name string) bool { return name == "dns" || name == "dns-tcp" || name == "domain" }
