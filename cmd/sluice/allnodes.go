package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"sluice/cmd/sluice/agent/status"
	"sluice/watch/kube"
)

// maxLags bounds the lines of details in the text about each node.
const maxLags = 10

// nodeStatus is the status of a node, as status --all-nodes -o json writes it.
type nodeStatus struct {
	Node   string         `json:"node"`
	Pod    string         `json:"pod"`             // of the agent
	Error  string         `json:"error,omitempty"` // why the agent has not answered
	Status *status.Status `json:"status,omitempty"`
	// Lags describes in which policies the node differs from most others. It is empty if their digests are
	// equal. If no digest is the most frequent, Lags describes the differences from one node with another of
	// the most frequent digests.
	Lags []string `json:"lags,omitempty"`
}

// allStatus is the output of status --all-nodes -o json.
type allStatus struct {
	// Digest is the most frequent digest. It is empty if several digests are equally frequent.
	Digest string       `json:"digest"`
	Nodes  []nodeStatus `json:"nodes"`
	// Without are the nodes that have no agent.
	Without []string `json:"withoutAgent,omitempty"`
}

// statusOfAll asks the agents of all nodes, and compares what they enforce.
func statusOfAll(ctx context.Context, e env, f fleet, opts *statusOptions) error {
	pods, err := opts.pods(ctx, f)
	if err != nil {
		return err
	}
	all := askAll(ctx, f, opts, pods)
	if all.differ() {
		// A change that comes into force meanwhile reaches the nodes at different moments. So only nodes
		// that still differ when they are asked again count as different.
		all = askAll(ctx, f, opts, pods)
	}
	all.compare(ctx, f, opts, pods)
	nodes, err := f.Nodes(ctx)
	if err != nil {
		e.say("nodes without an agent cannot be listed: %v", err)
	}
	for _, node := range nodes {
		if !slices.ContainsFunc(pods, func(p kube.AgentPod) bool { return p.Node == node }) {
			all.Without = append(all.Without, node)
		}
	}
	return all.print(e, opts.output)
}

// askAll asks all nodes, at about the same time.
func askAll(ctx context.Context, f fleet, opts *statusOptions, pods []kube.AgentPod) (all allStatus) {
	all.Nodes = make([]nodeStatus, len(pods))
	onEach(pods, func(i int, pod kube.AgentPod) {
		n := nodeStatus{Node: pod.Node, Pod: pod.String()}
		s, err := askStatus(ctx, f, pod, opts.command("--brief"))
		if n.Status = s; err != nil {
			n.Error = err.Error()
		}
		all.Nodes[i] = n
	})
	if most := all.mostFrequent(); len(most) == 1 {
		all.Digest = most[0]
	}
	return all
}

// differ reports whether nodes enforce different policies or namespaces.
func (a *allStatus) differ() bool {
	return slices.ContainsFunc(a.Nodes, func(n nodeStatus) bool { return n.digest() != "" && n.digest() != a.Digest })
}

// askStatus returns the status of a node.
func askStatus(ctx context.Context, f fleet, pod kube.AgentPod, command []string) (s *status.Status, err error) {
	err = askNode(ctx, f, pod, command, func(in io.Reader) error {
		s = new(status.Status)
		return json.NewDecoder(in).Decode(s)
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// digest returns the digest of what the node enforces; empty if it is not known.
func (n *nodeStatus) digest() string {
	if n.Status == nil || n.Status.Enforcing == nil {
		return ""
	}
	return n.Status.Enforcing.Digest
}

// mostFrequent returns the digest that most nodes have, or several that are equally frequent, in the order
// of the nodes.
func (a *allStatus) mostFrequent() (digests []string) {
	count := make(map[string]int)
	for i := range a.Nodes {
		if d := a.Nodes[i].digest(); d != "" {
			count[d]++
		}
	}
	for i := range a.Nodes {
		d := a.Nodes[i].digest()
		if d == "" || slices.Contains(digests, d) {
			continue
		}
		if len(digests) > 0 && count[d] > count[digests[0]] {
			digests = nil
		}
		if len(digests) == 0 || count[d] == count[digests[0]] {
			digests = append(digests, d)
		}
	}
	return digests
}

// compare sets Lags of the nodes whose digest differs from the most frequent one or, if several are equally
// frequent, from another one of these. To do so, it asks one node of each digest for all its policies. It
// asks no node if all digests are equal.
func (a *allStatus) compare(ctx context.Context, f fleet, opts *statusOptions, pods []kube.AgentPod) {
	most := a.mostFrequent()
	policies := make(map[string][]status.PolicyInForce) // by digest
	failed := make(map[string]error)
	ask := func(digest string) ([]status.PolicyInForce, error) {
		if _, asked := policies[digest]; !asked && failed[digest] == nil {
			policies[digest], failed[digest] = a.policiesOf(ctx, f, opts, pods, digest)
		}
		return policies[digest], failed[digest]
	}
	for i := range a.Nodes {
		n := &a.Nodes[i]
		if n.digest() == "" || n.digest() == a.Digest {
			continue
		}
		other, where := a.Digest, "elsewhere"
		if other == "" {
			other = most[0]
			if other == n.digest() {
				other = most[1] // there are several
			}
			where = "on " + a.Nodes[a.first(other)].Node
		}
		want, err := ask(other)
		var is []status.PolicyInForce
		if err == nil {
			is, err = ask(n.digest())
		}
		if err != nil {
			n.Lags = []string{fmt.Sprintf("not known in what: %v", err)}
			continue
		}
		n.Lags = differences(is, want, where)
	}
}

// first returns the index of the first node with a digest.
func (a *allStatus) first(digest string) int {
	return slices.IndexFunc(a.Nodes, func(n nodeStatus) bool { return n.digest() == digest })
}

// policiesOf asks a node with the given digest for all its policies.
func (a *allStatus) policiesOf(ctx context.Context, f fleet, opts *statusOptions, pods []kube.AgentPod, digest string) ([]status.PolicyInForce, error) {
	i := a.first(digest)
	s, err := askStatus(ctx, f, pods[i], opts.command())
	if err != nil {
		return nil, err
	}
	if now := (&nodeStatus{Status: s}).digest(); now != digest {
		return nil, fmt.Errorf("what %s enforces has changed while the nodes were asked: ask again", a.Nodes[i].Node)
	}
	return s.Policies, nil
}

// differences describes in which policies a node differs from others. is has the policies of the node, and
// want the policies of the others. where names the others: "elsewhere", or "on" and a node.
func differences(is, want []status.PolicyInForce, where string) (lags []string) {
	have := make(map[string]*status.PolicyInForce, len(is))
	for i := range is {
		have[is[i].Title()] = &is[i]
	}
	for i := range want {
		w := &want[i]
		h := have[w.Title()]
		delete(have, w.Title())
		switch {
		case h == nil:
			lags = append(lags, fmt.Sprintf("%s is not in force; %s %s", w.Title(), where, w.VersionText()))
		case h.Digest != w.Digest:
			lags = append(lags, fmt.Sprintf("%s: %s; %s %s", w.Title(), h.VersionText(), where, w.VersionText()))
		}
	}
	for title, h := range have {
		lags = append(lags, fmt.Sprintf("%s (%s) is in force; %s it is not", title, h.VersionText(), where))
	}
	if len(lags) == 0 {
		return []string{"its policies are the same; it knows other namespaces or other labels of them"}
	}
	slices.Sort(lags)
	return lags
}

// good reports whether all nodes have an agent that is ready, has no problems and has the common digest.
func (a *allStatus) good() bool {
	return len(a.Without) == 0 && !slices.ContainsFunc(a.Nodes, func(n nodeStatus) bool {
		return n.Status == nil || !n.Status.Good() || n.digest() != a.Digest
	})
}

func (a *allStatus) print(e env, output statusOutput) error {
	var err error
	if output == statusJSON {
		encoder := json.NewEncoder(e.stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(a)
	} else {
		err = a.writeText(e.stdout, output == statusWide)
	}
	if err != nil {
		return fmt.Errorf("write the status: %w", err)
	}
	if !slices.ContainsFunc(a.Nodes, func(n nodeStatus) bool { return n.Status != nil }) {
		return exitError{status: exitFailed}
	}
	if !a.good() {
		return exitError{status: exitFindings}
	}
	return nil
}

// writeText writes a line for each node, and then differences and problems.
func (a *allStatus) writeText(out io.Writer, wide bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tVERSION\tREADY\tPOLICIES\tDIGEST\tFOR\tPROBLEMS")
	for i := range a.Nodes {
		fmt.Fprintln(w, a.Nodes[i].row())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s\n", a.comparison())
	if len(a.Without) > 0 {
		fmt.Fprintf(out, "Without an agent: %s.\n", listed(a.Without, 20))
	}
	for i := range a.Nodes {
		a.Nodes[i].writeDetails(out, wide)
	}
	return nil
}

// comparison returns a sentence about how many nodes enforce the same.
func (a *allStatus) comparison() string {
	most := a.mostFrequent()
	if len(most) == 0 {
		return "No node enforces policies, as far as is known."
	}
	same := 0
	for i := range a.Nodes {
		if a.Nodes[i].digest() == most[0] {
			same++
		}
	}
	switch {
	case len(most) > 1:
		return fmt.Sprintf("The nodes differ: %d different digests are on %s each, and no digest is on more.", len(most), nodesText(same))
	case len(a.Nodes) == 1:
		return "One node has an agent, so there is no other node to compare it with."
	case same == len(a.Nodes) && same == 2:
		return "Both nodes enforce the same policies and namespaces."
	case same == len(a.Nodes):
		return fmt.Sprintf("All %d nodes enforce the same policies and namespaces.", same)
	case same == 1:
		return fmt.Sprintf("1 of %d nodes enforces policies, as far as is known.", len(a.Nodes))
	}
	return fmt.Sprintf("%d of %d nodes enforce the same policies and namespaces.", same, len(a.Nodes))
}

// row returns the line of a node in the table.
func (n *nodeStatus) row() string {
	s := n.Status
	if s == nil {
		return n.Node + "\t\tno answer\t\t\t\t"
	}
	ready, policies, digest, since := "yes", "", "", ""
	if !s.Ready {
		ready = "no"
	}
	if e := s.Enforcing; e != nil {
		policies = fmt.Sprint(e.Policies)
		if digest = cmp.Or(status.ShortDigest(e.Digest), "not known"); !e.DigestSince.IsZero() {
			since = s.Ago(e.DigestSince)
		}
	}
	return strings.Join([]string{n.Node, s.Version, ready, policies, digest, since, fmt.Sprint(len(s.Problems))}, "\t")
}

// writeDetails writes what is wrong with a node: no answer, not ready, differences and problems. If wide is
// false, it writes at most maxLags of these lines.
func (n *nodeStatus) writeDetails(out io.Writer, wide bool) {
	var lines []string
	switch {
	case n.Status == nil:
		lines = append(lines, "does not answer: "+n.Error)
	case !n.Status.Ready:
		lines = append(lines, "is not ready: "+n.Status.Unready)
	}
	for _, lag := range n.Lags {
		lines = append(lines, "differs: "+lag)
	}
	if n.Status != nil {
		for _, p := range n.Status.Problems {
			lines = append(lines, "problem: "+p.String())
		}
	}
	if more := len(lines) - maxLags; more > 0 && !wide {
		lines = append(lines[:maxLags], fmt.Sprintf("and %d more lines: see them with -o wide", more))
	}
	for _, line := range lines {
		fmt.Fprintf(out, "  %s: %s\n", n.Node, line)
	}
}
