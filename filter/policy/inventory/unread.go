package inventory

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter/policy/near"
)

// Unread is a kind of which not all objects could be read, because the user lacks the right. An object
// that the inventory lacks may then exist.
type Unread struct {
	Kind string   // as in "Pod"
	Only []string // the namespaces in which the objects were read; nil if there are none
}

// hidden returns an error if an object of the kind may exist in the namespace although the inventory
// lacks it. The namespace "*" means all, and "" is for kinds that are in no namespace. what names the
// object in the error.
func (v *Inventory) hidden(kind, namespace, what string) error {
	i := slices.IndexFunc(v.Unread, func(u Unread) bool { return u.Kind == kind })
	if i < 0 || slices.Contains(v.Unread[i].Only, namespace) {
		return nil
	}
	return fmt.Errorf("%s could not be looked up: %w", what, v.Unread[i].Missing(namespace))
}

// Missing returns the error for a namespace that could not be read. It names the right that the user
// lacks. The namespace "*" means all, and "" is for kinds that are in no namespace.
func (u Unread) Missing(namespace string) error {
	resource := resourceOf(u.Kind)
	switch {
	case namespace == "":
		return fmt.Errorf("this user may not list %s: allow it by a ClusterRole", resource)
	case namespace == "*" && len(u.Only) > 0:
		return fmt.Errorf("this user may list %s only in %s: allow it in all namespaces by a ClusterRole", resource, near.List(u.Only, 8, ", "))
	case namespace == "*":
		return fmt.Errorf("this user may not list %s in all namespaces: allow it by a ClusterRole", resource)
	}
	return fmt.Errorf("this user may not list %s in namespace %s: allow it by a Role there, or by a ClusterRole", resource, namespace)
}

// resourceOf returns the name of a kind in rules of Roles, as in "networkpolicies".
func resourceOf(kind string) string {
	name := strings.ToLower(kind)
	switch {
	case strings.HasSuffix(name, "y") && !strings.HasSuffix(name, "ay"):
		return strings.TrimSuffix(name, "y") + "ies"
	case strings.HasSuffix(name, "ss"):
		return name + "es"
	}
	return name + "s"
}

// NamespaceIn returns the namespace that the name of an end states; see [Question] for the forms of
// names. It returns "" if the name states none.
func NamespaceIn(text string) string {
	if _, is := cutScheme(text); is || rangesOf(text) != nil {
		return ""
	}
	name, _, _ := strings.Cut(text, ":")
	parts := strings.Split(name, "/")
	kind := kinds[strings.ToLower(parts[0])]
	switch {
	case len(parts) == 2 && kind == "Namespace":
		return parts[1]
	case len(parts) > 1 && (kind == "" || len(parts) == 3) && !strings.ContainsAny(parts[0], ".=*, "):
		return parts[0]
	}
	labels := strings.Split(strings.TrimSuffix(parts[len(parts)-1], "."), ".")
	for i := 1; i < len(labels); i++ {
		if len(labels) == 2 || i+1 < len(labels) && labels[i+1] == "svc" {
			return labels[i]
		}
	}
	return ""
}
