package policy_test

// The numbered cases in this file test the meaning of NetworkPolicy. Most have one policy, p, in
// the namespace default, which selects role=db.

// directionCases test which pods a policy isolates, and in which direction.
var directionCases = []semanticsCase{
	one("01 without a policy everything is allowed", ``, `
		out > db TCP 6379 = allow not-isolated
		db > out6 ICMP    = allow not-isolated
		web > job TCP opaque = allow not-isolated`),
	one("01 both ends must allow", `
		default/in: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {}}]}]}
		default/out: {podSelector: {matchLabels: {role: frontend}}, policyTypes: [Egress], egress: [{ports: [{port: 6379}]}]}`, `
		web > db TCP 6379 = allow rule egress=default/out:default/out[0] ingress=default/in:default/in[0]
		web > db TCP 80   = deny egress-denied egress=default/out:none ingress=default/in:default/in[0]
		job > db TCP 6379 = deny ingress-denied ingress=default/in:none
		web > job TCP 80  = deny egress-denied egress=default/out:none
		web > out TCP 6379 = allow rule egress=default/out:default/out[0]`),
	one("02 without policyTypes a policy isolates only ingress", `default/p: {podSelector: {matchLabels: {role: db}}}`, `
		web > db TCP 6379 = deny ingress-denied
		db > web TCP 80   = allow not-isolated`),
	one("02 without policyTypes an egress rule isolates egress too", `default/p: {podSelector: {matchLabels: {role: db}}, egress: [{ports: [{port: 80}]}]}`, `
		web > db TCP 6379 = deny ingress-denied
		db > web TCP 80   = allow rule
		db > web TCP 81   = deny egress-denied`),
	one("02 an empty list of egress rules isolates nothing by itself", `default/p: {podSelector: {matchLabels: {role: db}}, egress: []}`, `
		db > web TCP 80   = allow not-isolated
		web > db TCP 6379 = deny ingress-denied`),
	one("02 rules of a direction that policyTypes leaves out mean nothing", `default/p: {podSelector: {matchLabels: {role: db}}, policyTypes: [Egress], ingress: [{ports: [{port: 1}]}], egress: [{}]}`, `
		web > db TCP 6379 = allow not-isolated
		db > web TCP 80   = allow rule`),
	one("03 an empty list of ingress rules allows nothing", `default/p: {podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress], ingress: []}`, `
		web > db TCP 6379 = deny ingress-denied
		out > db ICMP     = deny ingress-denied`),
	one("03 absent ingress rules allow nothing", `default/p: {podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress]}`, `web > db TCP 6379 = deny ingress-denied`),
	one("03 one empty ingress rule allows everything", toDB(`{}`), `
		out > db TCP 6379   = allow rule ingress=default/p:default/p[0]
		web > db TCP opaque = allow rule
		web6 > db6 ICMPv6   = allow rule`),
	one("03 no egress rules allow nothing", `default/p: {podSelector: {matchLabels: {role: db}}, policyTypes: [Egress], egress: []}`, `
		db > web TCP 80 = deny egress-denied
		web > db TCP 80 = allow not-isolated`),
	one("03 one empty egress rule allows everything", fromDB(`{}`), `
		db > out UDP 53 = allow rule egress=default/p:default/p[0]
		db > out ICMP   = allow rule`),
	one("04 an empty podSelector selects every pod of its namespace and no other", `default/p: {podSelector: {}}`, `
		out > db TCP 1  = deny ingress-denied
		out > web TCP 1 = deny ingress-denied
		out > job TCP 1 = allow not-isolated
		out > odd TCP 1 = allow not-isolated`),
	one("04 a policy does not act on pods with the same labels in another namespace", `default/p: {podSelector: {matchLabels: {role: frontend}}}`, `
		out > web TCP 1 = deny ingress-denied
		out > job TCP 1 = allow not-isolated`),
	{"05 policies add up, and either of two equal policies suffices", []step{
		{policies: `
			default/a: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: 6379}]}]}
			default/b: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}
			default/c: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}`,
			flows: `
			web > db TCP 6379 = allow rule ingress=default/a,default/b,default/c:default/a[0]
			web > db TCP 80   = allow rule ingress=default/a,default/b,default/c:default/b[0]
			web > db TCP 81   = deny ingress-denied ingress=default/a,default/b,default/c:none`},
		{remove: "NetworkPolicy default/b", flows: `
			web > db TCP 80   = allow rule ingress=default/a,default/c:default/c[0]
			web > db TCP 81   = deny ingress-denied`},
		{remove: "NetworkPolicy default/c", flows: `web > db TCP 80 = deny ingress-denied ingress=default/a:none`},
	}},
	one("06 a pod of the host network is neither isolated nor a peer by its labels", `
		default/p: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}]}]}`, `
		agent > db TCP 6379 = deny ingress-denied
		web > db TCP 6379   = deny egress-denied
		out > agent TCP 80  = allow not-isolated
		agent > out TCP 80  = allow not-isolated`),
	one("06 a pod of the host network is a peer by its node's address", toDB(`{from: [{ipBlock: {cidr: 10.9.0.3/32}}]}`), `agent > db TCP 6379 = allow rule`),
	one("07 a finished pod is neither a peer nor isolated", `
		default/p: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}]}]}`, `
		done > db TCP 6379 = deny ingress-denied
		out > done TCP 80  = allow not-isolated`),
	{"07 a live pod has the address, whatever the order of events", []step{
		{policies: toDB(`{from: [{podSelector: {matchLabels: {role: frontend}}}]}`),
			objects: `{kind: Pod, metadata: {namespace: default, name: heir, creationTimestamp: "2026-01-02T00:00:00Z"}, status: {podIP: 10.0.0.2}}`,
			flows:   `10.0.0.2 > db TCP 6379 = deny ingress-denied`},
		{objects: `{kind: Pod, metadata: {namespace: default, name: heir, creationTimestamp: "2026-01-02T00:00:00Z"}, status: {phase: Failed, podIP: 10.0.0.2}}`,
			flows: `10.0.0.2 > db TCP 6379 = allow rule`},
		{objects: `{kind: Pod, metadata: {namespace: default, name: done, labels: {role: frontend}, creationTimestamp: "2026-01-03T00:00:00Z"}, status: {phase: Succeeded, podIP: 10.0.0.3}}`,
			flows: `job > db TCP 6379 = deny ingress-denied`},
	}},
	{"07 a pod that terminates counts until it is gone", []step{
		{policies: toDB(`{from: [{podSelector: {matchLabels: {role: frontend}}}]}`),
			objects: `{kind: Pod, metadata: {namespace: default, name: web, labels: {role: frontend}, deletionTimestamp: "2026-01-01T00:00:00Z"}, status: {phase: Running, podIP: 10.0.0.2}}`,
			flows:   `web > db TCP 6379 = allow rule`},
		{remove: "Pod default/web", flows: `web > db TCP 6379 = deny ingress-denied`},
	}},
	{"07 a pending pod without an address disturbs nothing", []step{
		{policies: toDB(`{from: [{podSelector: {matchLabels: {role: frontend}}}]}`),
			objects: `{kind: Pod, metadata: {namespace: default, name: later, labels: {role: frontend}}, status: {phase: Pending}}`,
			flows: `web > db TCP 6379 = allow rule
				new > db TCP 6379 = deny ingress-denied`},
		{objects: `{kind: Pod, metadata: {namespace: default, name: later, labels: {role: frontend}}, status: {phase: Pending, podIP: 10.0.0.8}}`,
			flows: `new > db TCP 6379 = allow rule`},
	}},
}

// peerCases test which peers a rule matches.
var peerCases = []semanticsCase{
	one("08 from absent is every peer, outside ones included", toDB(`{ports: [{port: 6379}]}`), `
		out > db TCP 6379 = allow rule
		odd > db TCP 6379 = allow rule`),
	one("08 from empty is every peer, outside ones included", toDB(`{from: [], ports: [{port: 6379}]}`), `out > db TCP 6379 = allow rule`),
	one("08 an empty podSelector is every pod of the policy's namespace", toDB(`{from: [{podSelector: {}}]}`), `
		web > db TCP 6379 = allow rule
		job > db TCP 6379 = deny ingress-denied
		out > db TCP 6379 = deny ingress-denied`),
	one("08 an empty namespaceSelector is every pod of every namespace", toDB(`{from: [{namespaceSelector: {}}]}`), `
		web > db TCP 6379   = allow rule
		job > db TCP 6379   = allow rule
		odd > db TCP 6379   = allow rule
		out > db TCP 6379   = deny ingress-denied
		agent > db TCP 6379 = deny ingress-denied`),
	one("08 an egress peer by label matches no address outside", fromDB(`{to: [{namespaceSelector: {}}]}`), `
		db > job TCP 80 = allow rule
		db > out TCP 80 = deny egress-denied`),
	one("09 selectors of pods and namespaces in one item must both match",
		toDB(`{from: [{namespaceSelector: {matchLabels: {project: myproject}}, podSelector: {matchLabels: {role: frontend}}}]}`), `
		job > db TCP 6379 = allow rule
		web > db TCP 6379 = deny ingress-denied
		odd > db TCP 6379 = deny ingress-denied`),
	one("09 selectors of pods and namespaces in two items may match either",
		toDB(`{from: [{namespaceSelector: {matchLabels: {project: myproject}}}, {podSelector: {matchLabels: {role: frontend}}}]}`), `
		job > db TCP 6379 = allow rule
		web > db TCP 6379 = allow rule
		odd > db TCP 6379 = deny ingress-denied`),
	one("10 In", toDB(`{from: [{podSelector: {matchExpressions: [{key: role, operator: In, values: [frontend, x]}]}}]}`), `
		web > db TCP 6379 = allow rule
		job > db TCP 6379 = deny ingress-denied`),
	one("10 NotIn matches a pod without the key", toDB(`{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: role, operator: NotIn, values: [frontend]}]}}]}`), `
		web > db TCP 6379 = deny ingress-denied
		odd > db TCP 6379 = allow rule`),
	one("10 Exists", toDB(`{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: role, operator: Exists}]}}]}`), `
		web > db TCP 6379 = allow rule
		odd > db TCP 6379 = deny ingress-denied`),
	one("10 DoesNotExist", toDB(`{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: role, operator: DoesNotExist}]}}]}`), `
		web > db TCP 6379 = deny ingress-denied
		odd > db TCP 6379 = allow rule`),
	one("10 all of several requirements must match", toDB(`{from: [{namespaceSelector: {matchLabels: {project: myproject}, matchExpressions: [{key: project, operator: NotIn, values: [myproject]}]}}]}`), `
		job > db TCP 6379 = deny ingress-denied`),
	one("10 a podSelector of a policy takes expressions too", `default/p: {podSelector: {matchExpressions: [{key: role, operator: NotIn, values: [frontend]}]}}`, `
		out > db TCP 6379 = deny ingress-denied
		out > web TCP 80  = allow not-isolated`),
	one("11 the name is a label of every namespace, also without an object",
		toDB(`{from: [{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [bare, mine]}]}}]}`), `
		odd > db TCP 6379 = allow rule
		job > db TCP 6379 = allow rule
		web > db TCP 6379 = deny ingress-denied`),
	{"12 verdicts follow the labels of pods", []step{
		{policies: accessDemo1, flows: `web > db TCP 6379 = allow rule`},
		{objects: `{kind: Pod, metadata: {namespace: default, name: web, labels: {role: backend}}, status: {podIP: 10.0.0.2}}`,
			flows: `web > db TCP 6379 = deny ingress-denied`},
		{objects: `{kind: Pod, metadata: {namespace: default, name: db, labels: {role: cache}}, status: {podIP: 10.0.0.1}}`,
			flows: `web > db TCP 6379 = allow not-isolated`},
	}},
	{"12 verdicts follow the labels of namespaces", []step{
		{policies: accessDemo2, flows: `job > db TCP 6379 = allow rule`},
		{objects: `{kind: Namespace, metadata: {name: mine}}`, flows: `job > db TCP 6379 = deny ingress-denied`},
		{objects: `{kind: Namespace, metadata: {name: bare, labels: {project: myproject}}}`, flows: `odd > db TCP 6379 = allow rule`},
		{remove: "Namespace bare", flows: `odd > db TCP 6379 = deny ingress-denied`},
	}},
	one("13 an ipBlock is its cidr without any of except", toDB(`{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.0/29, 192.0.2.64/26]}}]}`), `
		192.0.2.8 > db TCP 1   = allow rule
		192.0.2.63 > db TCP 1  = allow rule
		192.0.2.255 > db TCP 1 = allow rule
		192.0.2.7 > db TCP 1   = deny ingress-denied
		192.0.2.64 > db TCP 1  = deny ingress-denied
		192.0.3.0 > db TCP 1   = deny ingress-denied`),
	one("13 an ipBlock matches pods by their address too", toDB(`{from: [{ipBlock: {cidr: 10.0.0.0/30}}]}`), `
		job > db TCP 1 = allow rule
		odd > db TCP 1 = deny ingress-denied`),
	one("13 an ipBlock of one family allows nothing of the other", toDB(`{from: [{ipBlock: {cidr: "::/0", except: ["fd00::/16"]}}]}`), `
		out6 > db6 TCP 1 = allow rule
		web6 > db6 TCP 1 = deny ingress-denied
		out > db TCP 1   = deny ingress-denied`),
	one("13 an ipBlock may be a destination", fromDB(`{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}]}`), `
		db > out TCP 443 = allow rule
		db > web TCP 443 = deny egress-denied`),
	one("13 what one rule excepts another may allow", toDB(`{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.7/32]}}]}, {from: [{ipBlock: {cidr: 192.0.2.6/31}}]}`), `
		out > db TCP 1       = allow rule ingress=default/p:default/p[1]
		192.0.2.9 > db TCP 1 = allow rule ingress=default/p:default/p[0]`),
	one("14 the address in the key decides, and a Service's address belongs to no pod", toDB(`{from: [{podSelector: {}}]}`), `
		web > 10.96.0.10 TCP 6379 = allow not-isolated`),
	one("15 a malformed cidr allows nothing, and its rule's other peers still do", toDB(`{from: [{ipBlock: {cidr: 010.0.0.0/8}}, {podSelector: {}}]}`), `
		web > db TCP 1 = allow rule
		job > db TCP 1 = deny ingress-denied`),
	one("15 a block with a malformed except matches nothing", toDB(`{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [010.0.0.2/32]}}]}`), `
		web > db TCP 1 = deny ingress-denied
		job > db TCP 1 = deny ingress-denied`),
	one("15 a malformed peer selector matches nothing, not everything", toDB(`{from: [{podSelector: {matchExpressions: [{key: role, operator: In}]}}]}`), `
		web > db TCP 1 = deny ingress-denied`),
	one("15 a peer with a malformed namespaceSelector does not match the policy's own namespace",
		toDB(`{from: [{podSelector: {}, namespaceSelector: {matchExpressions: [{key: role, operator: In}]}}]}`), `
		web > db TCP 1 = deny ingress-denied`),
	one("15 a malformed podSelector isolates every pod it could mean", `default/p: {podSelector: {matchExpressions: [{key: role, operator: Is}]}, ingress: [{}]}`, `
		out > web TCP 1 = deny ingress-denied
		out > db TCP 1  = deny ingress-denied
		out > job TCP 1 = allow not-isolated`),
	one("15 an unknown policy type isolates both directions", `default/p: {podSelector: {matchLabels: {role: db}}, policyTypes: [Sideways]}`, `
		web > db TCP 1 = deny ingress-denied
		db > web TCP 1 = deny egress-denied`),
	one("15 an empty peer matches nothing", toDB(`{from: [{}]}`), `web > db TCP 1 = deny ingress-denied`),
	one("15 an ipBlock beside a selector matches nothing", toDB(`{from: [{podSelector: {}, ipBlock: {cidr: 0.0.0.0/0}}]}`), `web > db TCP 1 = deny ingress-denied`),
}

// portCases test which ports a rule matches.
var portCases = []semanticsCase{
	one("16 ports absent is every port and every protocol", toDB(`{from: [{podSelector: {}}]}`), `
		web > db TCP 1      = allow rule
		web > db SCTP 65535 = allow rule
		web > db ICMP       = allow rule`),
	one("16 ports empty is every port and every protocol", toDB(`{from: [{podSelector: {}}], ports: []}`), `web > db UDP 1 = allow rule`),
	one("16 an item without protocol is TCP", toDB(`{ports: [{port: 6379}]}`), `
		web > db TCP 6379 = allow rule
		web > db UDP 6379 = deny ingress-denied`),
	one("16 an item without port is every port of its protocol", toDB(`{ports: [{protocol: UDP}]}`), `
		web > db UDP 0     = allow rule
		web > db UDP 65535 = allow rule
		web > db TCP 53    = deny ingress-denied`),
	one("17 endPort is included", toDB(`{ports: [{port: 100, endPort: 200}, {port: 65535, endPort: 65535}]}`), `
		web > db TCP 99    = deny ingress-denied
		web > db TCP 100   = allow rule
		web > db TCP 200   = allow rule
		web > db TCP 201   = deny ingress-denied
		web > db TCP 65534 = deny ingress-denied
		web > db TCP 65535 = allow rule
		web > db TCP 0     = deny ingress-denied`),
	one("17 overlapping ranges of several rules each allow their own peers",
		toDB(`{from: [{podSelector: {}}], ports: [{port: 100, endPort: 200}]}, {from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 150, endPort: 250}]}`), `
		web > db TCP 160 = allow rule ingress=default/p:default/p[0]
		out > db TCP 160 = allow rule ingress=default/p:default/p[1]
		out > db TCP 140 = deny ingress-denied
		web > db TCP 240 = deny ingress-denied`),
	one("17 a range that ends before it starts allows nothing", toDB(`{ports: [{port: 200, endPort: 100}]}`), `
		web > db TCP 150 = deny ingress-denied
		web > db TCP 200 = deny ingress-denied`),
	one("17 a range from a name allows nothing", toDB(`{ports: [{port: redis, endPort: 7000}]}`), `
		web > db TCP 6379 = deny ingress-denied
		web > db TCP 7000 = deny ingress-denied`),
	one("18 a named port is the destination's, for ingress", `default/p: {podSelector: {}, ingress: [{ports: [{port: redis}]}]}`, `
		job > db TCP 6379  = allow rule
		job > web TCP 6379 = deny ingress-denied`),
	one("18 a named port is the destination's, for egress", `default/p: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: redis}]}]}`, `
		web > db TCP 6379  = allow rule
		db > web TCP 6379  = deny egress-denied
		web > out TCP 6379 = deny egress-denied`),
	one("18 a named port has a protocol", toDB(`{ports: [{port: dns}, {port: redis, protocol: UDP}]}`), `
		web > db UDP 53   = deny ingress-denied
		web > db TCP 53   = deny ingress-denied
		web > db UDP 6379 = deny ingress-denied`),
	one("18 a named port with its own protocol", toDB(`{ports: [{port: dns, protocol: UDP}]}`), `web > db UDP 53 = allow rule`),
	{"18 two pods may give one name different numbers", []step{{
		policies: `default/p: {podSelector: {}, ingress: [{ports: [{port: redis}]}]}`,
		objects:  `{kind: Pod, metadata: {namespace: default, name: web}, spec: {containers: [{name: a, ports: [{name: redis, containerPort: 7000}]}]}, status: {podIP: 10.0.0.2}}`,
		flows: `
			job > db TCP 6379  = allow rule
			job > db TCP 7000  = deny ingress-denied
			job > web TCP 7000 = allow rule
			job > web TCP 6379 = deny ingress-denied`,
	}}},
	one("18 a sidecar's ports count, those of other init containers do not", toDB(`{ports: [{port: mesh}, {port: setup}]}`), `
		web > db TCP 15000 = allow rule
		web > db TCP 1     = deny ingress-denied`),
	one("19 a rule for one protocol opens no other, and isolates for all", toDB(`{ports: [{port: 6379, protocol: SCTP}]}`), `
		web > db SCTP 6379 = allow rule
		web > db TCP 6379  = deny ingress-denied
		web > db UDP 6379  = deny ingress-denied
		web > db ICMP      = deny ingress-denied`),
	one("19 an unknown protocol allows nothing", toDB(`{ports: [{port: 6379, protocol: ""}, {port: 6379, protocol: tcp}]}`), `
		web > db TCP 6379 = deny ingress-denied`),
	one("20 the pod's port counts, declared or not", toDB(`{ports: [{port: 4444}]}`), `
		web > db TCP 4444 = allow rule
		web > db TCP 6379 = deny ingress-denied`),
}

// trafficCases test the traffic that the API treats specially: to and from a pod's own node,
// from a pod to itself, and without ports.
var trafficCases = []semanticsCase{
	one("22 traffic from the pod's own node passes, from another node it does not", toDB(``), `
		nodeOfDB > db TCP 6379 = allow own-node
		node > db TCP 6379     = allow own-node
		agent > db TCP 6379    = deny ingress-denied`),
	one("22 traffic to the pod's own node passes", fromDB(``), `
		db > nodeOfDB TCP 10250 = allow own-node
		db > agent TCP 10250    = deny egress-denied`),
	one("23 a pod reaches its own address", `default/p: {podSelector: {}, policyTypes: [Ingress, Egress]}`, `
		db > db TCP 1   = allow same-address
		db6 > db6 ICMPv6 = allow same-address
		web > db TCP 1  = deny egress-denied`),
	one("24 protocols without ports match only rules without ports", toDB(`{from: [{podSelector: {}}], ports: [{port: 1, endPort: 65535}, {protocol: UDP}, {protocol: SCTP}]}`), `
		web > db TCP 1 = allow rule
		web > db ICMP  = deny ingress-denied`),
	one("24 ICMP by a rule without ports", toDB(`{from: [{podSelector: {}}]}`), `
		web > db ICMP     = allow rule
		web6 > db6 ICMPv6 = allow rule
		out > db ICMP     = deny ingress-denied`),
	one("25 a packet without a readable header is not port 0", toDB(`{from: [{podSelector: {}}], ports: [{protocol: TCP}]}`), `
		web > db TCP 0      = allow rule
		web > db TCP opaque = deny ingress-denied`),
	one("25 a packet without a readable header passes a rule without ports", toDB(`{from: [{podSelector: {}}]}`), `
		web > db TCP opaque = allow rule
		out > db TCP opaque = deny ingress-denied`),
	one("25 a packet without a readable header passes where no pod is isolated", ``, `web > db TCP opaque = allow not-isolated`),
}

// changeCases test that verdicts follow changes of policies, pods and namespaces.
var changeCases = []semanticsCase{
	{"26 27 a new policy isolates at once, and a deleted policy no longer", []step{
		{flows: `web > db TCP 6379 = allow not-isolated`},
		{policies: toDB(``), flows: `web > db TCP 6379 = deny ingress-denied`},
		{policies: toDB(`{}`), flows: `web > db TCP 6379 = allow rule`},
		{policies: toDB(``), flows: `web > db TCP 6379 = deny ingress-denied`},
		{remove: "NetworkPolicy default/p", flows: `web > db TCP 6379 = allow not-isolated`},
	}},
	{"28 a pod that starts under a policy is isolated from the first snapshot that has it", []step{
		{policies: `default/p: {podSelector: {matchLabels: {role: late}}}`, flows: `web > new TCP 80 = allow not-isolated`},
		{objects: `{kind: Pod, metadata: {namespace: default, name: late, labels: {role: late}}, status: {phase: Pending, podIP: 10.0.0.8}}`,
			flows: `web > new TCP 80 = deny ingress-denied`},
	}},
	{"28 a pod may be known before its namespace", []step{
		{policies: accessDemo2, objects: `{kind: Pod, metadata: {namespace: theirs, name: early}, status: {podIP: 10.0.0.8}}`,
			flows: `new > db TCP 6379 = deny ingress-denied`},
		{objects: `{kind: Namespace, metadata: {name: theirs, labels: {project: myproject}}}`, flows: `new > db TCP 6379 = allow rule`},
	}},
	{"29 an address passes from one pod to another", []step{
		{policies: accessDemo1, flows: `web > db TCP 6379 = allow rule`},
		{remove: "Pod default/web", objects: `{kind: Pod, metadata: {namespace: default, name: next}, status: {podIP: 10.0.0.2}}`,
			flows: `web > db TCP 6379 = deny ingress-denied`},
	}},
	{"29 an address passes to another pod before the first one is deleted", []step{
		{policies: accessDemo1, objects: `{kind: Pod, metadata: {namespace: default, name: next, creationTimestamp: "2026-01-02T00:00:00Z"}, status: {podIP: 10.0.0.2}}`,
			flows: `web > db TCP 6379 = deny ingress-denied`},
		{remove: "Pod default/web", flows: `web > db TCP 6379 = deny ingress-denied`},
	}},
	one("30 both families get the same verdicts", accessDemo1, `
		web > db TCP 6379   = allow rule
		web6 > db6 TCP 6379 = allow rule
		web > db TCP 80     = deny ingress-denied
		web6 > db6 TCP 80   = deny ingress-denied
		out > db TCP 6379   = deny ingress-denied
		out6 > db6 TCP 6379 = deny ingress-denied`),
}

// scenarioCases test the two example policies access-demo1 and access-demo2, and address ranges.
var scenarioCases = []semanticsCase{
	one("scenario access-demo1", accessDemo1, `
		web > db TCP 6379 = allow rule ingress=default/access-demo1:default/access-demo1[0]
		job > db TCP 6379 = deny ingress-denied
		odd > db TCP 6379 = deny ingress-denied
		out > db TCP 6379 = deny ingress-denied
		web > db TCP 80   = deny ingress-denied
		db > web TCP 80   = allow not-isolated`),
	one("scenario access-demo2", accessDemo2, `
		job > db TCP 6379 = allow rule ingress=default/access-demo2:default/access-demo2[0]
		web > db TCP 6379 = deny ingress-denied
		odd > db TCP 6379 = deny ingress-denied
		job > db TCP 80   = deny ingress-denied`),
	one("scenario both applied", accessDemo1+"\n"+accessDemo2, `
		web > db TCP 6379 = allow rule ingress=default/access-demo1,default/access-demo2:default/access-demo1[0]
		job > db TCP 6379 = allow rule ingress=default/access-demo1,default/access-demo2:default/access-demo2[0]
		odd > db TCP 6379 = deny ingress-denied`),
	one("scenario address ranges as sources and destinations", `default/p: {podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress, Egress], ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]}], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 443}]}]}`, `
		out > db TCP 6379         = allow rule
		192.0.2.200 > db TCP 6379 = deny ingress-denied
		db > 192.0.2.200 TCP 443  = allow rule
		db > out TCP 80           = deny egress-denied`),
}
