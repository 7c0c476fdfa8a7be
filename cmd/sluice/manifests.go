package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"sluice/filter/policy"
	"sluice/filter/policy/explain"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/near"
	"sluice/watch/manifests"
)

// compiled holds the objects that a command has read, and their inventory.
type compiled struct {
	loaded
	inventory     *inventory.Inventory
	misunderstood []policy.Problem // parts that the API server would accept, but that cannot be understood and allow nothing
	nodesMissing  bool             // policies have rules about nodes, but there are no Nodes
}

// readManifests reads and compiles manifests. node lists the addresses of the pods' own node, whose
// traffic always passes; it may be empty.
func readManifests(node []netip.Addr, paths ...string) (*compiled, error) {
	objects, problems, err := manifests.Read(paths...)
	if err != nil {
		return nil, err
	}
	return compile(node, loaded{Objects: objects, problems: problems}), nil
}

// readInput is like readManifests, but also reads a live cluster.
func readInput(ctx context.Context, e env, node []netip.Addr, in *input) (*compiled, error) {
	l, err := in.read(ctx, e.stdin)
	if err != nil {
		return nil, err
	}
	return compile(node, l), nil
}

func compile(node []netip.Addr, l loaded) *compiled {
	m := &compiled{loaded: l, inventory: inventory.New(inventory.Objects{
		Namespaces: l.Namespaces, Pods: l.Pods, Nodes: l.Nodes, Workloads: l.Workloads, Policies: l.Policies,
		Services: l.Services, EndpointSlices: l.EndpointSlices, Routing: l.Routing, NodeAddrs: node, PodRanges: l.podRanges,
		NamespacesUnread: l.namespacesUnread(), Unread: l.forbidden(),
	})}
	m.Notes = append(slices.Clip(m.Notes), leftOut(m.inventory)...)
	unread := slices.ContainsFunc(l.NotRead, func(n manifests.NotRead) bool { return n.Kind == manifests.Kind{Name: "Node"} })
	m.nodesMissing = m.inventory.NodesMissing() && !unread // other messages report that Nodes could not be read
	for _, p := range m.inventory.Problems {
		if !p.Minor && !manifests.CausedBy(p, l.problems) {
			m.misunderstood = append(m.misunderstood, p)
		}
	}
	return m
}

// leftOut returns notes about the ranges of policies whose address family no pod is taken to have.
func leftOut(v *inventory.Inventory) (notes []manifests.Problem) {
	for _, out := range v.LeftOut() {
		var names []string
		for _, p := range out.Policies {
			names = append(names, p.Object())
		}
		note := manifests.Problem{File: near.List(names, 3, ", "), Detail: out.Family + " ranges are left out, because no object has " + out.Family + " addresses", Hint: "if pods have them, give their ranges (--pod-cidr)"}
		if out.Known {
			note.Detail = out.Family + " ranges are for addresses that no pod here has; pods without an address are taken to have no " + out.Family + " address either"
		}
		notes = append(notes, note)
	}
	return notes
}

// cluster returns the cluster for explanations. A policy that could be read only in part has
// no rules there, and explanations show its problems as the reason.
func (m *compiled) cluster() *explain.Cluster {
	problems := slices.Clone(m.misunderstood)
	refs := make(map[string]policy.Ref, len(m.Policies))
	for _, p := range m.Policies {
		refs[p.Ref.Object()] = p.Ref
	}
	for _, p := range m.problems {
		if ref, is := refs[p.Object]; is {
			problems = append(problems, policy.Problem{Policy: ref, Field: p.Field, Detail: p.Detail, Effect: p.Effect, Hint: p.Hint})
		}
	}
	return explain.New(m.inventory, problems)
}

// report prints notes and the parts that could not be understood, and returns an error if
// there are such parts: the answer is not reliable without them, and they may be what denies.
// Call report after the answer is printed, so that users see it at the end. The parameter "what"
// names the answer in the error, such as "the matrix".
func (m *compiled) report(e env, what string) error {
	m.Notes = append(m.Notes, m.Outdated...)
	printNotes(e, m.Objects)
	if m.nodesMissing {
		e.say("note: policies have rules for nodes, and there are no Nodes, so that these rules match nothing: add Nodes, as from kubectl get nodes -o yaml")
	}
	if len(m.problems)+len(m.misunderstood) == 0 {
		return nil
	}
	for _, p := range m.problems {
		e.say("%v", p)
	}
	for _, p := range m.misunderstood {
		e.say("%v", m.located(p))
	}
	why := "cannot be understood"
	if slices.ContainsFunc(m.misunderstood, func(p policy.Problem) bool { return p.TooLarge }) {
		why += " or are too large"
	}
	return exitError{status: exitFailed, err: fmt.Errorf("parts of the manifests %s: in %s, they are missing, allow nothing or deny everything", why, what)}
}

// located returns a problem of a policy with the file that the policy is from.
func (m *compiled) located(p policy.Problem) error {
	origin, known := m.Origins[p.Policy.Object()]
	if !known {
		return p
	}
	return manifests.Problem{File: origin.File, Document: origin.Document, Object: p.Policy.Object(), Field: p.Field, Detail: p.Detail, Effect: p.Effect, Hint: p.Hint}
}

// printNotes prints what changes neither the answer nor the exit status: notes about the
// files, and the kinds of objects that are not read but may change what is allowed.
func printNotes(e env, o manifests.Objects) {
	for _, n := range manifests.Condense(o.Notes) {
		e.say("note: %s", n)
	}
	for _, line := range manifests.LinesOf(o.NotRead) {
		e.say("not read: %s", line)
	}
}

// parseAddrs parses the addresses of a flag.
func parseAddrs(flag string, texts []string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, text := range texts {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("%s %s: write an IP address, such as 192.0.2.1 or 2001:db8::1", flag, text)
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}
