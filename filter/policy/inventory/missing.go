package inventory

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"sluice/filter/policy/near"
)

// hasNamespace reports whether the cluster has the Namespace object, or a pod, Service or policy in
// the namespace.
func (v *Inventory) hasNamespace(name string) bool { return slices.Contains(v.namespaceNames(), name) }

func (v *Inventory) namespaceNames() []string {
	names := make(map[string]bool)
	for n := range v.namespaces {
		names[n] = true
	}
	for _, p := range v.pods {
		names[p.Namespace] = true
	}
	for _, s := range v.Services {
		names[s.Namespace] = true
	}
	for _, p := range v.Policies {
		if p.Ref.Namespace != "" {
			names[p.Ref.Namespace] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// has reports whether a namespace has a pod, a workload or a Service of a name.
func (v *Inventory) has(namespace, name string) bool {
	return v.pods[namespace+"/"+name] != nil || v.services[namespace+"/"+name] != nil || len(v.podsOf(namespace, name)) > 0
}

// namesIn returns the names of the objects in a namespace, sorted: workloads, Services, and pods
// without a workload.
func (v *Inventory) namesIn(namespace string) []string {
	names := make(map[string]bool)
	for ref := range v.workloads {
		if ref.Namespace == namespace {
			names[ref.Name] = true
		}
	}
	for _, p := range v.pods {
		if _, made := v.workloadOf[p]; p.Namespace == namespace && !made {
			names[p.Name] = true
		}
	}
	for _, s := range v.Services {
		if s.Namespace == namespace {
			names[s.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func (v *Inventory) noNamespace(name string) error {
	all := v.namespaceNames()
	best, ok := near.Name(name, all)
	if v.NamespacesUnread {
		hint := "allow it by a ClusterRole, or correct the name"
		if ok {
			hint = "did you mean " + best + "?"
		}
		return fmt.Errorf("nothing was found in namespace %s, which may not exist, as this user may not list namespaces: %s", name, hint)
	}
	if ok {
		return fmt.Errorf("there is no namespace %s: did you mean %s?", name, best)
	}
	return fmt.Errorf("there is no namespace %s: the namespaces here are %s", name, near.List(all, 8, ", "))
}

// notOfKind returns the error for an object that does not exist. It suggests objects of other kinds
// with the same name in the same namespace.
func (v *Inventory) notOfKind(kind, namespace, name string) error {
	if err := v.hidden(kind, namespace, fmt.Sprintf("%s %s/%s", kind, namespace, name)); err != nil {
		return err
	}
	var others []string
	for ref := range v.workloads {
		if ref.Namespace == namespace && ref.Name == name {
			others = append(others, ref.Kind)
		}
	}
	if p := v.pods[namespace+"/"+name]; p != nil && len(others) == 0 {
		others = append(others, "Pod")
	}
	if v.services[namespace+"/"+name] != nil && len(others) == 0 {
		others = append(others, "Service")
	}
	if len(others) == 0 {
		return v.notFound(namespace, name)
	}
	slices.Sort(others)
	for i, other := range others {
		others[i] = fmt.Sprintf("%s/%s/%s", namespace, strings.ToLower(other), name)
	}
	return fmt.Errorf("there is no %s %s/%s: did you mean %s?", kind, namespace, name, near.List(others, 5, " or "))
}

// notFound returns the error for a name that no object has. It suggests the same name in another
// namespace; without one, a similar name in the given namespace; without both, the names in it.
func (v *Inventory) notFound(namespace, name string) error {
	what := namespace + "/" + name
	if err := v.hidden("Pod", namespace, what); err != nil {
		return err
	}
	if len(v.pods) == 0 {
		return fmt.Errorf("there is no pod %s, nor any other: add Pods or workloads to the manifests, or write an IP address", what)
	}
	var elsewhere []string
	for _, ns := range v.namespaceNames() {
		if ns != namespace && v.has(ns, name) {
			elsewhere = append(elsewhere, ns+"/"+name)
		}
	}
	here := v.namesIn(namespace)
	if best, ok := near.Name(name, here); ok && len(elsewhere) == 0 {
		elsewhere = []string{namespace + "/" + best}
	}
	switch {
	case !v.hasNamespace(namespace) && len(elsewhere) == 0:
		return v.noNamespace(namespace)
	case len(elsewhere) > 0 && !v.hasNamespace(namespace) && !v.NamespacesUnread:
		return fmt.Errorf("there is no namespace %s: did you mean %s?", namespace, near.List(elsewhere, 5, " or "))
	case len(elsewhere) > 0:
		return fmt.Errorf("there is no pod or workload %s: did you mean %s?", what, near.List(elsewhere, 5, " or "))
	case len(here) == 0:
		return fmt.Errorf("there is no pod or workload %s, and nothing else in namespace %s: write another namespace, or an IP address", what, namespace)
	}
	return fmt.Errorf("there is no pod or workload %s: namespace %s has %s", what, namespace, near.List(here, 8, ", "))
}
