package policy

import (
	"crypto/sha256"
	"fmt"

	"sluice/filter"
)

// A denied packet is dropped or rejected. The policy that denies it decides which. If that policy
// has no DenyWithAnnotation, the namespace of the pod that it selects decides, and without an
// annotation there, the node's default (see SetDenial). If several policies isolate a pod and so
// deny a packet together, the packet is dropped as soon as one of them says "drop".

// DenyWithAnnotation is the annotation of a policy or a namespace with the way in which packets
// are denied: drop or reject.
const DenyWithAnnotation = "sluice/deny-with"

// LintIgnoreAnnotation is an annotation of a policy, a workload or a namespace. Its value lists checks
// of lint, separated by commas; lint does not report findings of these checks about the object. It
// affects no decision.
const LintIgnoreAnnotation = "sluice/ignore"

// ReadDenial reads DenyWithAnnotation. Another value than drop and reject counts as unset, and
// known is false.
func ReadDenial(annotations map[string]string) (d filter.Denial, known bool) {
	text, has := annotations[DenyWithAnnotation]
	if !has {
		return filter.DenialUnset, true
	}
	return filter.ParseDenial(text)
}

// DenyWithField is the field of DenyWithAnnotation.
const DenyWithField = `metadata.annotations["` + DenyWithAnnotation + `"]`

// namespaceKind is the kind in a Problem of a namespace.
const namespaceKind = "Namespace"

// unknownDenial returns the problem of an unknown value of DenyWithAnnotation. It changes no
// decision, only the answer to denied packets.
func unknownDenial(of Ref, value string) Problem {
	return Problem{
		Policy: of, Field: DenyWithField, Minor: true,
		Detail: fmt.Sprintf("%q is not a way to deny packets, and has no effect", value), Hint: "write drop or reject",
	}
}

// NamespaceDenial reads DenyWithAnnotation of a namespace. If its value is not known, wrong is
// the problem.
func NamespaceDenial(name string, annotations map[string]string) (d filter.Denial, wrong *Problem) {
	d, known := ReadDenial(annotations)
	if !known {
		p := unknownDenial(Ref{Kind: namespaceKind, Name: name}, annotations[DenyWithAnnotation])
		wrong = &p
	}
	return d, wrong
}

// Annotate sets how the policy denies packets, from the annotations of its object. An unknown
// value is a problem.
func (p *Policy) Annotate(annotations map[string]string) {
	d, known := ReadDenial(annotations)
	p.Denial = d
	if !known {
		p.Problems = append(p.Problems, unknownDenial(p.Ref, annotations[DenyWithAnnotation]))
	}
}

// Annotate calls Policy.Annotate for Form, and makes Source.Read call it for each policy that it
// reads. The digest then depends on the annotation. Annotate also sets Log, and Log and LintIgnore of Form.
func (e *Encoded) Annotate(annotations map[string]string) {
	e.Log = ReadLog(e.Ref, annotations)
	if e.Form != nil {
		e.Form.Log = e.Log
		e.Form.LintIgnore = annotations[LintIgnoreAnnotation]
	}
	text, has := annotations[DenyWithAnnotation]
	if !has {
		return
	}
	kept := map[string]string{DenyWithAnnotation: text}
	if read := e.Source.Read; read != nil {
		digest := sha256.Sum256(append(e.Digest[:], text...))
		source := Source{Encoded: e.Source.Encoded}
		source.Read = func(ref Ref, encoded []byte) (*Policy, error) {
			p, err := read(ref, encoded)
			if err != nil {
				return nil, err
			}
			p.Annotate(kept)
			p.Digest, p.Source = digest, source
			return p, nil
		}
		e.Digest, e.Source = digest, source
	}
	if e.Form != nil {
		e.Form.Annotate(kept)
		e.Form.Digest, e.Form.Source = e.Digest, e.Source
	}
}

// SetDenial sets how packets are denied if neither the policy nor the namespace sets it. Call it
// before the first Commit.
func (w *Store) SetDenial(d filter.Denial) { w.denial = d }

// SetNamespaceDenial sets how packets are denied by policies in a known namespace that do not
// say it themselves. wrong is the problem of its annotation, or nil.
func (w *Store) SetNamespaceDenial(name string, d filter.Denial, wrong *Problem) {
	ns := w.namespaces[name]
	if ns == nil {
		return
	}
	if wrong == nil {
		delete(w.faultyNS, name)
	} else {
		w.faultyNS[name] = *wrong
	}
	if ns.denial == d {
		return
	}
	w.countDenial(ns.denial, -1)
	w.countDenial(d, 1)
	ns.denial = d
	w.countNamespace(ns)
	for k := range ns.identities.all.all() {
		for _, p := range k.pods {
			w.dirty(p)
		}
	}
}

// countDenial adds n to the number of policies and namespaces that reject, if d is DenialReject.
func (w *Store) countDenial(d filter.Denial, n int) {
	if d == filter.DenialReject {
		w.rejecting += n
	}
}

// rejects reports whether packets are rejected if a policy for a pod in the namespace denies
// them without specifying how.
func (w *Store) rejects(ns *namespace) bool { return ns.denial.Or(w.denial) == filter.DenialReject }

// Rejects reports whether some denials may be rejections.
func (s *Snapshot) Rejects() bool { return s.mayReject }

// denialOf returns the Denial of several policies that isolate a pod together.
func denialOf(policies []*policy) (d filter.Denial) {
	for _, p := range policies {
		switch p.denial {
		case filter.DenialDrop:
			return filter.DenialDrop
		case filter.DenialReject:
			d = filter.DenialReject
		}
	}
	return d
}

// uniformDenial returns the Denial of the ordered rules that deny. uniform is false if these have
// different ones.
func (r *ruleSet) uniformDenial() (d filter.Denial, uniform bool) {
	first := true
	for _, set := range append([]*ruleSet{r}, r.parts()...) {
		if set.extra == nil {
			continue
		}
		for i := range set.extra.ranks {
			switch r := &set.extra.ranks[i]; {
			case r.action == Accept || r.action == Pass:
			case first:
				d, first = r.rule.Denial, false
			case r.rule.Denial != d:
				return filter.DenialUnset, false
			}
		}
	}
	return d, true
}

// ClosedDenial reports whether the packets of an endpoint whose Effect is Closed are rejected.
// known is false if that depends on the packet.
func (e *Endpoint) ClosedDenial(d filter.Direction) (rejects, known bool) {
	l := e.chain(d)
	if l == nil || l.mixed {
		return false, false
	}
	return e.rejectsBy(l.denial), true
}

// rejectsBy reports whether a policy of the endpoint with the given Denial rejects packets.
func (e *Endpoint) rejectsBy(d filter.Denial) bool {
	if d == filter.DenialUnset {
		return e.class.rejects
	}
	return d == filter.DenialReject
}

// rejects reports whether packets that one side of the verdict denies are rejected. e is the end
// of that side.
func (e *Endpoint) rejects(side *filter.Side) bool {
	switch {
	case side.Rule != nil:
		return e.rejectsBy(side.Rule.Denial)
	case side.Isolation != nil:
		return e.rejectsBy(side.Isolation.Denial)
	}
	return e.class.rejects
}
