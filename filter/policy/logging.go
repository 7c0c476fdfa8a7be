package policy

import (
	"fmt"

	"sluice/filter"
	"sluice/filter/policy/near"
)

// LogAnnotation is the annotation of a policy or a namespace with the verdicts that the agents log:
// denied, all or none. It affects no decision, and the digests of policies and namespaces do not depend on
// it. So a change of it makes no epoch new, and no connection is judged again.
const LogAnnotation = "sluice/log"

// LogField is the field of LogAnnotation.
const LogField = `metadata.annotations["` + LogAnnotation + `"]`

// LogSetting is the LogAnnotation of an object. The zero value is for an object without the annotation.
type LogSetting struct {
	Level   filter.LogLevel
	Problem *Problem // about an unknown value, which leaves Level unset; nil if there is none
}

// ReadLog reads LogAnnotation of a policy.
func ReadLog(of Ref, annotations map[string]string) LogSetting {
	text, has := annotations[LogAnnotation]
	if !has {
		return LogSetting{}
	}
	l, known := filter.ParseLogLevel(text)
	if known {
		return LogSetting{Level: l}
	}
	hint := "write denied, all or none"
	switch meant, similar := near.Name(text, []string{"denied", "deny", "all", "none"}); {
	case meant == "deny": // the word of other agents
		hint = "write denied"
	case similar:
		hint = "write " + meant
	}
	return LogSetting{Problem: &Problem{
		Policy: of, Field: LogField, Minor: true, Hint: hint,
		Detail: fmt.Sprintf("%q does not name verdicts to log, and has no effect", text),
	}}
}

// ReadNamespaceLog reads LogAnnotation of a namespace.
func ReadNamespaceLog(name string, annotations map[string]string) LogSetting {
	return ReadLog(Ref{Kind: namespaceKind, Name: name}, annotations)
}

// SetNamespaceLog sets which verdicts are logged for the pods of a namespace. A namespace that is not
// known has no setting.
func (w *Store) SetNamespaceLog(name string, s LogSetting) {
	if w.namespaces[name] != nil {
		w.logs.put(Ref{Kind: namespaceKind, Name: name}, s)
	}
}

// logs holds the settings of LogAnnotation.
type logs struct {
	settings map[Ref]LogSetting // only those that are not zero
	stale    bool               // current is that of earlier settings
	current  *Logging           // shared with the snapshots
}

func (l *logs) put(of Ref, s LogSetting) {
	l.stale = l.stale || s.Level != l.settings[of].Level
	switch {
	case s == LogSetting{}:
		delete(l.settings, of)
	case l.settings == nil:
		l.settings = map[Ref]LogSetting{of: s}
	default:
		l.settings[of] = s
	}
}

// problems returns the problems of the annotations, in no particular order.
func (l *logs) problems() (all []Problem) {
	for _, s := range l.settings {
		if s.Problem != nil {
			all = append(all, *s.Problem)
		}
	}
	return all
}

// commit returns the Logging with the current settings.
func (l *logs) commit() *Logging {
	if !l.stale {
		return l.current
	}
	l.stale, l.current = false, nil
	for of, s := range l.settings {
		if s.Level == filter.LogUnset {
			continue
		}
		if l.current == nil {
			l.current = &Logging{namespaces: make(map[string]filter.LogLevel), policies: make(map[string]filter.LogLevel)}
		}
		l.current.most = max(l.current.most, s.Level)
		if of.Kind == namespaceKind {
			l.current.namespaces[of.Name] = s.Level
		} else {
			l.current.policies[of.String()] = s.Level
		}
	}
	return l.current
}

// Logging is what annotations say about the verdicts that are logged. It never changes. In a cluster
// without such annotations, it is nil.
type Logging struct {
	namespaces map[string]filter.LogLevel // by name
	policies   map[string]filter.LogLevel // by the names that verdicts use
	most       filter.LogLevel
}

// Logging returns what annotations say about the verdicts that are logged. It is the same pointer in
// successive snapshots until an annotation changes.
func (s *Snapshot) Logging() *Logging { return s.logging }

// Most returns the highest level that an annotation sets. If none does, it returns LogUnset.
func (l *Logging) Most() filter.LogLevel {
	if l == nil {
		return filter.LogUnset
	}
	return l.most
}

// Annotated returns the numbers of namespaces and policies whose annotation sets a level.
func (l *Logging) Annotated() (namespaces, policies int) {
	if l == nil {
		return 0, 0
	}
	return len(l.namespaces), len(l.policies)
}

// Level returns the level for a verdict about a flow from src to dst. An end that is nil is an address
// outside the cluster. node is the level of pods that have none by annotations.
//
// Each end that is a pod has a level. It is the highest level of the policies that decide for the pod. If
// they have none, it is the level of the pod's namespace. If that has none, it is node. If policies deny
// the flow, Level returns the highest level of the ends whose policies deny it. Otherwise, it returns the
// highest level of both ends.
func (l *Logging) Level(v *filter.Verdict, src, dst *Endpoint, node filter.LogLevel) filter.LogLevel {
	if l == nil {
		return node
	}
	if v.Reason == filter.MidStream {
		src, dst = dst, src // the verdict is about the opposite direction
	}
	byPolicy := v.Action != filter.Allow && !(v.Egress.Allows() && v.Ingress.Allows())
	level := filter.LogUnset
	if src.isPod() && !(byPolicy && v.Egress.Allows()) {
		level = l.ofEnd(src, &v.Egress).Or(node)
	}
	if dst.isPod() && !(byPolicy && v.Ingress.Allows()) {
		level = max(level, l.ofEnd(dst, &v.Ingress).Or(node))
	}
	return level.Or(node)
}

func (e *Endpoint) isPod() bool { return e != nil && e.class != nil }

// ofEnd returns the level of an end. If neither its policies nor its namespace set one, it returns
// LogUnset.
func (l *Logging) ofEnd(e *Endpoint, by *filter.Side) (level filter.LogLevel) {
	switch {
	case by.Rule != nil:
		level = l.policies[by.Rule.Policy]
	case by.Isolation != nil:
		for _, p := range by.Isolation.Policies {
			level = max(level, l.policies[p])
		}
	}
	return level.Or(l.namespaces[e.Namespace])
}
