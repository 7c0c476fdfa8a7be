package lint

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
)

// dns reports pods that may send packets somewhere, but cannot look up names. It does not
// report pods that may send nothing at all, because they are meant to be isolated. It
// considers all policies of a pod together: usually one policy denies everything, and
// another one allows DNS.
func (l *linter) dns(p *lintPolicy) {
	if p.ordered() || !p.Isolates[filter.Egress] || p.subject == nil || len(p.rules[filter.Egress]) == 0 {
		return
	}
	subjects := l.subjects(p)
	for _, proto := range []filter.Protocol{filter.UDP, filter.TCP} {
		closed := slices.IndexFunc(subjects, func(o *pod) bool { return !l.allowsDNS(o, proto) })
		if closed < 0 {
			continue
		}
		detail := "it isolates egress, but no policy allows these pods to use DNS, so they cannot look up names"
		if proto == filter.TCP {
			detail = "DNS is allowed only over UDP, but clients repeat a query over TCP if its answer is too long"
		}
		l.found(NoDNS, p, "spec.egress", "add an egress rule for UDP and TCP port 53", "%s", detail)
		return
	}
}

// subjects returns the pods that the policy selects. If there are none, it returns an
// invented pod with the labels that the policy selects.
func (l *linter) subjects(p *lintPolicy) []*pod {
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
	return slices.ContainsFunc(l.policies, func(p *lintPolicy) bool {
		return p.Tier != policy.Baseline && p.selects(o) && slices.ContainsFunc(p.rules[filter.Egress], func(r rule) bool {
			return r.action == policy.Accept && r.opensDNS(proto, p.namespace)
		})
	})
}

// opensDNS reports whether the rule may allow DNS. If the rule names a DNS port, any of its
// peers may be the DNS server. If it names no ports, it must have a peer outside of the
// policy's namespace, or the policy must be in kube-system.
func (r *rule) opensDNS(proto filter.Protocol, namespace string) bool {
	if r.anyPort {
		return r.anyone || namespace == metav1.NamespaceSystem || slices.ContainsFunc(r.peers, func(x peer) bool { return !x.own })
	}
	return (r.anyone || len(r.peers) > 0) && slices.ContainsFunc(r.ports, func(x port) bool {
		return x.Protocol == proto && (isDNS(x.Name) || x.Name == "" && x.Low <= 53 && 53 <= x.High)
	})
}

// isDNS reports whether name is a usual name of a DNS port.
func isDNS(name string) bool { return name == "dns" || name == "dns-tcp" || name == "domain" }
