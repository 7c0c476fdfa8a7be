package lint

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy/inventory"
)

// routes reports ways from outside the cluster that lead to nothing: to a Service that does not exist,
// or to pods whose policies deny everything that arrives. Denials are reported only if the senders are
// known.
func (l *linter) routes(v *inventory.Inventory) {
	seen := make(map[string]bool) // several paths may lead to the same backend
	for _, x := range v.Exposures() {
		key := x.By.Object() + x.Field + fmt.Sprint(x.Port)
		if seen[key] {
			continue
		}
		seen[key] = true
		switch {
		case x.Missing && hasServices(v, x.Service):
			l.route(NoBackend, x, "correct the route, or add what it names", "%s", x.Broken)
		case x.Broken == "":
			l.access(v, x)
		}
	}
}

// hasServices reports whether any Service is in the namespace of the named one. If there is none, the
// Services of the namespace are probably in other files.
func hasServices(v *inventory.Inventory, name string) bool {
	namespace, _, _ := strings.Cut(name, "/")
	for _, s := range v.Services {
		if s.Namespace == namespace {
			return true
		}
	}
	return false
}

func (l *linter) route(check string, x *inventory.Exposure, hint, detail string, args ...any) {
	l.findings = append(l.findings, Finding{Check: check, Object: x.By.Object(), Field: x.Field, Detail: fmt.Sprintf(detail, args...), Hint: hint})
}

// access reports a way on which policies deny everything, or deny the packets whose source a node
// replaces.
func (l *linter) access(v *inventory.Inventory, x *inventory.Exposure) {
	access, f := v.Access(x)
	to := fmt.Sprintf("%s, %s %d", f.To.Text(), f.Key.Protocol, f.Key.Port)
	switch {
	case access == inventory.Denied && x.IsRoute():
		l.route(RouteDenied, x, "let these policies allow it; sluice explain prints what to add",
			"policies deny what %s, its controller, sends to %s (%s)", x.Senders.Name(), to, denier(v.Decide(f)))
	case access == inventory.Denied:
		l.route(RouteDenied, x, "let these policies allow it, or make it a Service of type ClusterIP",
			"policies deny everything from outside the cluster to %s (%s)", to, denier(v.Decide(f)))
	case access == inventory.Reached && !x.IsRoute():
		l.replaced(v, x, to)
	}
}

// denier names the policies that deny a flow.
func denier(d filter.Verdict) string {
	side, direction := d.Ingress, filter.Ingress
	if d.Reason == filter.EgressDenied {
		side, direction = d.Egress, filter.Egress
	}
	switch {
	case side.Rule != nil:
		return fmt.Sprintf("%s: %s rule %d", direction, side.Rule.PolicyTitle(), side.Rule.Index+1)
	case side.Isolation != nil:
		return fmt.Sprintf("%s: %s", direction, strings.Join(side.Isolation.Policies, ", "))
	}
	return direction.String()
}

// replaced reports a Service whose policies allow clients outside the cluster, but no node. If a packet
// arrives at a node other than the pod's, that node replaces the source with its own address.
func (l *linter) replaced(v *inventory.Inventory, x *inventory.Exposure, to string) {
	nodes := slices.DeleteFunc(slices.Clone(x.Senders.Ends), func(e *inventory.End) bool { return !e.Node })
	if len(nodes) == 0 {
		return // the node keeps the client's address, or no node is known
	}
	one := *x
	one.Senders.Ends = nodes
	if access, _ := v.Access(&one); access == inventory.Denied {
		l.route(ClientAddress, x, "write externalTrafficPolicy: Local, or allow the addresses of the nodes",
			"policies let some clients outside the cluster reach %s, but no node, and with externalTrafficPolicy Cluster the source is a node unless the packet arrives at that of the pod", to)
	}
}
