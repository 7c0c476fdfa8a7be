package main

import (
	"embed"
	"fmt"
	"slices"
	"strings"
)

// stepFiles holds the policies of the steps, one file each.
//
//go:embed policies
var stepFiles embed.FS

// step is a set of policies, and the expected results.
type step struct {
	name, title string
	// meaning explains the policies. The text "see" tells the reader which cells of the table
	// to look at.
	meaning, see string
	policies     []string // files in the directory policies, without their extension
	// expectations state which probes succeed. They were written by hand: deriving them from
	// the policies would compare the engine with itself. See expectation for the syntax.
	expectations []string
}

var steps = []step{
	{
		name: "no-policy", title: "no policy",
		meaning: "Without a policy that selects a pod, everything is allowed.",
		see:     "Everyone reaches everyone.",
	},
	{
		name: "access-demo1", title: "access-demo1, a podSelector",
		meaning:  "Pods labelled role=db take connections from role=frontend pods of their own namespace, on TCP 6379, and nothing else.",
		policies: []string{"access-demo1"},
		expectations: []string{
			"no  * -> default/db:*",
			"yes default/web -> default/db:6379/TCP",
		},
		see: "Of all pods, only default/web reaches default/db, by TCP and on 6379 alone.",
	},
	{
		name: "access-demo2", title: "access-demo2, a namespaceSelector",
		meaning:  "Pods labelled role=db take connections from every pod of the namespaces labelled project=myproject, on TCP 6379, and nothing else. The policy names no namespace of its own, so it is in default.",
		policies: []string{"access-demo2"},
		expectations: []string{
			"no  * -> default/db:*",
			"yes shop/client -> default/db:6379/TCP",
		},
		see: "Now it is shop/client that reaches default/db, and default/web does not.",
	},
	{
		name: "both", title: "access-demo1 and access-demo2 together",
		meaning:  "Policies add up: what one of them allows is allowed.",
		policies: []string{"access-demo1", "access-demo2"},
		expectations: []string{
			"no  * -> default/db:*",
			"yes default/web -> default/db:6379/TCP",
			"yes shop/client -> default/db:6379/TCP",
		},
		see: "Both default/web and shop/client reach default/db.",
	},
	{
		name: "ipblock-ingress", title: "an ipBlock with except, as source",
		meaning:  "Pods labelled role=frontend take connections from these address ranges, but not from the parts in except; nor from pods, whose addresses are in neither.",
		policies: []string{"from-partner"},
		expectations: []string{
			"no  * -> default/web:*",
			"yes partner -> default/web:*",
		},
		see: "partner (192.0.2.10) reaches default/web; banned (192.0.2.200, in except) does not.",
	},
	{
		name: "ipblock-egress", title: "an ipBlock with except, as destination",
		meaning:  "Pods labelled role=backend may open connections to these address ranges, but not to the parts in except, and to no other address. Connections to them are not restricted.",
		policies: []string{"to-partner"},
		expectations: []string{
			"no  default/api -> *",
			"yes default/api -> partner:*",
		},
		see: "default/api reaches partner and not banned, and is still reached by everyone.",
	},
	{
		name: "named-port", title: "a named port",
		meaning:  "Pods labelled role=frontend or role=backend take connections on the port that they call http: 80 for default/web, 8080 for default/api.",
		policies: []string{"only-http"},
		expectations: []string{
			"no  * -> default/web:*",
			"no  * -> default/api:*",
			"yes * -> default/web:80/TCP",
			"yes * -> default/api:8080/TCP",
		},
		see: "One name, two numbers: default/api answers on 8080 and not on 80. UDP is closed, because http is a TCP port.",
	},
	{
		name: "deny-all", title: "deny all",
		meaning:  "Every pod of the namespace is selected, in both directions, and no rule allows anything.",
		policies: []string{"deny-all"},
		expectations: []string{
			"no  default/* -> *",
			"no  * -> default/*",
		},
		see: "Nothing enters or leaves the namespace default, nor goes from pod to pod in it. The node itself is let in, so that the kubelet's probes still work.",
	},
}

// always lists expectations that no policy can change. They follow the expectations of a step.
var always = []string{
	"yes * -> itself",
	"yes node-1 -> *",
}

// yaml returns the step's policies as one file of manifests.
func (s step) yaml() (string, error) {
	var documents []string
	for _, name := range s.policies {
		text, err := stepFiles.ReadFile("policies/" + name + ".yaml")
		if err != nil {
			return "", fmt.Errorf("read the policies of step %s: %w", s.name, err)
		}
		documents = append(documents, string(text))
	}
	return strings.Join(documents, "---\n"), nil
}

// selectSteps returns the step with a name, or all steps if the name is empty.
func selectSteps(name string) ([]step, error) {
	if name == "" {
		return steps, nil
	}
	i := slices.IndexFunc(steps, func(s step) bool { return s.name == name })
	if i < 0 {
		return nil, fmt.Errorf("--step %q: give one of %s", name, strings.Join(stepNames(), ", "))
	}
	return steps[i : i+1], nil
}

func stepNames() (names []string) {
	for _, s := range steps {
		names = append(names, s.name)
	}
	return names
}
