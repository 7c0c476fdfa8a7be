//go:build linux

package main

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/cmd/sluice/agent/status"
	"sluice/filter/flow"
)

// enforce sets what an agent enforces.
func (a *testAgent) enforce(digest string, policies ...status.PolicyInForce) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	a.status.Version, a.status.Now, a.status.Policies = "v1", now, policies
	a.status.Enforcing = &status.Enforcing{Policies: len(policies), Digest: digest, DigestSince: now.Add(-time.Minute), Since: now}
}

func inForce(name, version string) status.PolicyInForce {
	return status.PolicyInForce{Kind: "NetworkPolicy", Namespace: "default", Name: name, Version: version, Digest: "d" + version}
}

func TestStatusOfAllNodes(t *testing.T) {
	f := newTestFleet(t, "n1", "n2", "n3")
	for _, node := range []string{"n1", "n2", "n3"} {
		f.agent(node).enforce("aaaaaaaaaaaaaaaa", inForce("web", "12"), inForce("db", "3"))
	}
	exit, stdout, stderr := f.command("status", "--all-nodes")
	want := `NODE  VERSION  READY  POLICIES  DIGEST        FOR   PROBLEMS
n1    v1       yes    2         aaaaaaaaaaaa  1m0s  0
n2    v1       yes    2         aaaaaaaaaaaa  1m0s  0
n3    v1       yes    2         aaaaaaaaaaaa  1m0s  0

All 3 nodes enforce the same policies and namespaces.
`
	if exit != 0 || stdout != want || stderr != "" {
		t.Errorf("exit %d, %s\nwant %s%s", exit, stdout, want, stderr)
	}
	if n := len(f.runs); n != 3 {
		t.Errorf("%d commands were run, want one for each node: %q", n, f.runs)
	}

	f.agent("n2").enforce("bbbbbbbbbbbbbbbb", inForce("web", "11"), inForce("old", "1"))
	f.breakAgent("n3", "sluice: no agent answers")
	f.addAgent("n4").enforce("aaaaaaaaaaaaaaaa", inForce("web", "12"), inForce("db", "3"))
	f.addAgent("n5").enforce("cccccccccccccccc", inForce("web", "12"), inForce("db", "3"))
	f.api.Set(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "bare"}})
	exit, stdout, stderr = f.command("status", "--all-nodes")
	for _, want := range []string{
		"n3             no answer",
		"\n2 of 5 nodes enforce the same policies and namespaces.\nWithout an agent: bare.\n",
		"  n2: differs: default/db is not in force; elsewhere version 3\n",
		"  n2: differs: default/old (version 1) is in force; elsewhere it is not\n",
		"  n2: differs: default/web: version 11; elsewhere version 12\n",
		"  n3: does not answer: no agent answers\n",
		"  n5: differs: its policies are the same; it knows other namespaces or other labels of them\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is missing in\n%s", want, stdout)
		}
	}
	if exit != exitFindings {
		t.Errorf("exit %d, %s", exit, stderr)
	}
	_, stdout, _ = f.command("status", "--all-nodes", "-o", "json")
	var all allStatus
	if err := json.Unmarshal([]byte(stdout), &all); err != nil || all.Digest != "aaaaaaaaaaaaaaaa" || len(all.Nodes) != 5 || len(all.Nodes[1].Lags) != 3 || all.Nodes[2].Error == "" || len(all.Without) != 1 {
		t.Errorf("%v, %+v", err, all)
	}

	for _, node := range []string{"n1", "n2", "n4", "n5"} {
		f.breakAgent(node, "broken")
	}
	if exit, _, _ := f.command("status", "--all-nodes"); exit != exitFailed {
		t.Errorf("exit %d although no agent answers", exit)
	}
}

// A node that is asked while a change comes into force does not count as different. If policies go on
// changing, status cannot tell in which policies nodes differ.
func TestStatusOfNodesThatChange(t *testing.T) {
	f := newTestFleet(t, "n1", "n2")
	old, late := f.agent("n1"), f.agent("n2")
	old.enforce("aaaaaaaaaaaaaaaa", inForce("web", "12"))
	late.enforce("bbbbbbbbbbbbbbbb", inForce("web", "11"))
	late.answered = func() {
		late.status.Enforcing, late.answered = &status.Enforcing{Policies: 1, Digest: "aaaaaaaaaaaaaaaa"}, nil
	}
	exit, stdout, stderr := f.command("status", "--all-nodes")
	if exit != 0 || !strings.Contains(stdout, "\nBoth nodes enforce the same policies and namespaces.\n") {
		t.Errorf("exit %d, %s%s", exit, stdout, stderr)
	}
	late.enforce("0000000000000000", inForce("web", "13"))
	digests := []string{"1111111111111111", "2222222222222222", "3333333333333333"}
	late.answered = func() {
		late.status.Enforcing = &status.Enforcing{Policies: 1, Digest: digests[0]}
		digests = append(digests[1:], digests[0])
	}
	exit, stdout, stderr = f.command("status", "--all-nodes")
	if want := "  n2: differs: not known in what: what n2 enforces has changed while the nodes were asked: ask again\n"; exit != exitFindings || !strings.Contains(stdout, want) {
		t.Errorf("exit %d, %s%s\nwant %s", exit, stdout, stderr, want)
	}
}

// If no digest is the most frequent, status names no side as the one that differs, but tells the
// differences of both.
func TestStatusOfNodesThatDifferEqually(t *testing.T) {
	f := newTestFleet(t, "n1", "n2", "n3")
	f.agent("n1").enforce("aaaaaaaaaaaaaaaa", inForce("web", "12"))
	f.agent("n2").enforce("bbbbbbbbbbbbbbbb", inForce("web", "11"))
	f.breakAgent("n3", "broken")
	exit, stdout, _ := f.command("status", "--all-nodes")
	for _, want := range []string{
		"\nThe nodes differ: 2 different digests are on 1 node each, and no digest is on more.\n",
		"  n1: differs: default/web: version 12; on n2 version 11\n",
		"  n2: differs: default/web: version 11; on n1 version 12\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is missing in\n%s", want, stdout)
		}
	}
	_, stdout, _ = f.command("status", "--all-nodes", "-o", "json")
	var all allStatus
	if err := json.Unmarshal([]byte(stdout), &all); err != nil || exit != exitFindings || all.Digest != "" || len(all.Nodes[0].Lags) != 1 || len(all.Nodes[1].Lags) != 1 {
		t.Errorf("exit %d, %v, %+v", exit, err, all)
	}
}

// The sentence about all nodes is correct English for any number of nodes.
func TestComparisonOfNodes(t *testing.T) {
	for digests, want := range map[string]string{
		"":      "No node enforces policies, as far as is known.",
		"- -":   "No node enforces policies, as far as is known.",
		"a":     "One node has an agent, so there is no other node to compare it with.",
		"a -":   "1 of 2 nodes enforces policies, as far as is known.",
		"a a":   "Both nodes enforce the same policies and namespaces.",
		"a a a": "All 3 nodes enforce the same policies and namespaces.",
		"a b b": "2 of 3 nodes enforce the same policies and namespaces.",
		"a b":   "The nodes differ: 2 different digests are on 1 node each, and no digest is on more.",
		"abb b": "The nodes differ: 2 different digests are on 1 node each, and no digest is on more.",
	} {
		var all allStatus
		for _, d := range strings.Fields(digests) {
			n := nodeStatus{Status: &status.Status{Enforcing: &status.Enforcing{Digest: d}}}
			if d == "-" {
				n.Status = nil
			}
			all.Nodes = append(all.Nodes, n)
		}
		if got := all.comparison(); got != want {
			t.Errorf("%q: %s, want %s", digests, got, want)
		}
	}
}

// A command in a pod that ends without an answer is reported in words.
func TestNodeWithoutOutput(t *testing.T) {
	f := newTestFleet(t, "n1")
	f.silent = exitFindings
	exit, stdout, _ := f.command("status", "--all-nodes")
	if exit != exitFailed || !strings.Contains(stdout, "n1: does not answer: the command in pod kube-system/sluice-n1 has ended without a complete answer: exit status 1\n") {
		t.Errorf("exit %d, %s", exit, stdout)
	}
	for _, flags := range [][]string{{"--all-nodes"}, {}} {
		exit, _, stderr := f.command(append([]string{"status", "--self"}, flags...)...)
		if exit != exitFailed || !strings.Contains(stderr, "--self asks the agent in this container, and --all-nodes") {
			t.Errorf("--self: exit %d, %s", exit, stderr)
		}
	}
}

// record returns a denial on a node, at the given number of seconds after a fixed time.
func record(node, pod string, second int) *flow.Record {
	return &flow.Record{
		Time: time.Date(2026, 1, 2, 3, 4, second, 0, time.UTC), Node: node, Event: "denied", Reason: "ingress-denied",
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), DstPort: 80, Protocol: "TCP",
		From: &flow.End{Kind: flow.PodEnd, Namespace: "default", Pod: pod}, Into: &flow.End{Kind: flow.PodEnd, Namespace: "default", Pod: "db"},
	}
}

// podsIn returns the names of the pods that are the sources of the records in a JSON stream.
func podsIn(t *testing.T, text string) (pods []string) {
	t.Helper()
	for d := json.NewDecoder(strings.NewReader(text)); d.More(); {
		var r flow.Record
		if err := d.Decode(&r); err != nil {
			t.Fatal(err)
		}
		pods = append(pods, r.From.Pod)
	}
	return pods
}

// observe --all-nodes merges the flows of all nodes in the order of their times.
func TestObserveAllNodes(t *testing.T) {
	f := newTestFleet(t, "n1", "node-2")
	fill := func() {
		for i, pod := range []string{"a", "b", "c", "d"} {
			node := []string{"n1", "node-2"}[i%2]
			f.agent(node).flows <- record(node, pod, i)
		}
	}
	fill()
	if exit, stdout, stderr := f.command("observe", "-o", "json"); exit != 0 || strings.Join(podsIn(t, stdout), "") != "abcd" {
		t.Errorf("exit %d, %s%s", exit, stdout, stderr)
	}
	fill()
	if exit, stdout, stderr := f.command("observe", "--last", "2", "-o", "json"); exit != 0 || strings.Join(podsIn(t, stdout), "") != "cd" {
		t.Errorf("exit %d, %s%s", exit, stdout, stderr)
	}
	// --last counts only flows that fulfill the conditions. Records about missing flows are shown, and do
	// not count.
	fill()
	for _, node := range []string{"n1", "node-2"} {
		f.agent(node).flows <- flow.Gap(node, time.Date(2026, 1, 2, 3, 4, 8, 0, time.UTC), time.Date(2026, 1, 2, 3, 4, 9, 0, time.UTC))
	}
	if exit, stdout, stderr := f.command("observe", "--last", "1", "--from", "default/a"); exit != 0 || !strings.Contains(stdout, "default/a") || strings.Count(stdout, "were not recorded") != 2 {
		t.Errorf("exit %d, %s%s", exit, stdout, stderr)
	}
	fill()
	f.breakAgent("node-2", "sluice: no agent answers")
	exit, stdout, stderr := f.command("observe", "--from", "default/a")
	if exit != exitFailed || !strings.Contains(stdout, "n1  deny    default/a → default/db:80/TCP") || strings.Contains(stdout, "default/c") || !strings.Contains(stderr, "node-2 does not answer: no agent answers") {
		t.Errorf("exit %d, %s%s", exit, stdout, stderr)
	}
	if run := f.runs[len(f.runs)-1]; !strings.Contains(run, "--from=default/a") {
		t.Errorf("the node does not select the flows: %s", run)
	}
}

// If a stream breaks off, observe names the node and reads on when the agent answers again, even in
// another pod. It does not ask for earlier records again. When observe ends, the commands in the pods
// end, too.
func TestObserveFollowsAllNodes(t *testing.T) {
	f := newTestFleet(t, "n1", "n2")
	o := startObserve(t, "-o", "json", "--last", "7", "--since", "1000000h", "--kubeconfig", f.kubeconfig)
	said := func(text string) func() bool {
		return func() bool { return strings.Contains(o.errs.String(), text) }
	}
	f.agent("n2").flows <- record("n2", "late", 9)
	f.agent("n1").flows <- record("n1", "early", 1)
	o.await("both shown", func() bool { return strings.Count(o.out.String(), "\n") == 2 })
	f.agent("n1").flows <- nil // the agent ends
	o.await("named", said("n1 has ended the flows, connecting again: the agent on "))
	o.await("the gap is told", said("n1 answers again: nothing was seen for "))
	f.agent("n1").flows <- record("n1", "again", 10)
	o.await("connected again", func() bool { return strings.Contains(o.out.String(), `"again"`) })
	if strings.Count(o.out.String(), `"node":"n1","event":"unrecorded","missing":"all","seconds":`) != 1 || strings.Contains(o.errs.String(), "n2") {
		t.Errorf("%s%s", o.out.String(), o.errs.String())
	}

	// The pod is deleted, and the DaemonSet makes another one.
	old := f.api.Get(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "sluice-n1"}})
	f.api.Delete(old)
	f.breakAgent("n1", "the pod is gone")
	f.agent("n1").flows <- nil
	o.await("named again", said("n1 has no agent any more"))
	f.addPod(f.agent("n1"), "sluice-n1-next", "n1")
	f.agent("n1").flows <- record("n1", "next", 11)
	o.await("the next pod is followed", func() bool { return strings.Contains(o.out.String(), `"next"`) })
	if n := strings.Count(o.errs.String(), "n1 answers again: nothing was seen for "); n != 2 {
		t.Errorf("the gap is told %d times:\n%s", n, o.errs.String())
	}
	o.stop()
	if exit := <-o.exit; exit != 0 {
		t.Errorf("exit %d after an interruption: %s", exit, o.errs.String())
	}
	o.await("ended in the pods", func() bool { return f.running.Load() == 0 })
	for i, run := range f.runs {
		if first := i < 2; strings.Contains(run, "--last=7") != first || strings.Contains(run, "--since=1000000h") != first {
			t.Errorf("command %d: %s", i, run)
		}
	}
}

// mergeByTime orders records by their times, even if those of one node arrive later than those of
// another.
func TestMergeByTime(t *testing.T) {
	in, out := make(chan *flow.Record), make(chan *flow.Record)
	go mergeByTime(in, out)
	go func() {
		for _, second := range []int{3, 1, 2, 5, 4, 4} {
			in <- record("n1", "x", second)
		}
		close(in)
	}()
	last := 0
	for n := 0; ; n++ {
		r, more := <-out
		if !more {
			if n != 6 {
				t.Errorf("%d records", n)
			}
			return
		}
		if r.Time.Second() < last {
			t.Errorf("second %d after %d", r.Time.Second(), last)
		}
		last = r.Time.Second()
	}
}

func TestDeniedOnAllNodes(t *testing.T) {
	f := newTestFleet(t, "n1", "node-2")
	f.agent("n1").denials = []*flow.DenialRecord{{Record: *record("n1", "a", 1)}, {Record: *record("n1", "b", 3)}}
	f.agent("node-2").denials = []*flow.DenialRecord{{Record: *record("node-2", "c", 2)}}
	exit, stdout, stderr := f.command("denied")
	var nodes []string
	for line := range strings.Lines(stdout) {
		nodes = append(nodes, strings.Fields(line)[0])
	}
	if exit != 0 || strings.Join(nodes, " ") != "NODE n1 node-2 n1" {
		t.Errorf("exit %d, %s%s", exit, stdout, stderr)
	}
	f.breakAgent("n1", "broken")
	exit, stdout, stderr = f.command("denied", "-o", "json", "--from", "default/c")
	var all []flow.DenialRecord
	if err := json.Unmarshal([]byte(stdout), &all); err != nil || exit != exitFailed || len(all) != 1 || !strings.Contains(stderr, "n1 does not answer: broken") {
		t.Errorf("exit %d, %v, %s%s", exit, err, stdout, stderr)
	}
}

// If a node has not answered, denied does not say that nothing was denied there.
func TestNothingDenied(t *testing.T) {
	f := newTestFleet(t, "n1", "n2")
	if exit, stdout, _ := f.command("denied"); exit != 0 || stdout != "nothing was denied since the agents began\n" {
		t.Errorf("exit %d, %s", exit, stdout)
	}
	f.breakAgent("n2", "broken")
	if exit, stdout, _ := f.command("denied"); exit != exitFailed || stdout != "nothing was denied on the nodes that have answered, since their agents began\n" {
		t.Errorf("one is silent: exit %d, %s", exit, stdout)
	}
	f.breakAgent("n1", "broken")
	if exit, stdout, _ := f.command("denied"); exit != exitFailed || stdout != "" {
		t.Errorf("all are silent: exit %d, %s", exit, stdout)
	}
}

// If the user may not list pods, the error names this right.
func TestAllNodesNeedsRights(t *testing.T) {
	kubeconfig := liveCluster(t, "examples/tiers", forbidding(func(path string) bool { return !strings.HasSuffix(path, "/pods") }))
	exit, _, stderr := sluice(t, "status", "--all-nodes", "--kubeconfig", kubeconfig)
	if exit != exitFailed || !strings.Contains(stderr, "list pods") || !strings.Contains(stderr, "see the rights in deploy/README.md") {
		t.Errorf("exit %d, %s", exit, stderr)
	}
}
