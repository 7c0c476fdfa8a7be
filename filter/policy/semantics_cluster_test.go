package policy_test

// The numbered test cases of the meaning of ClusterNetworkPolicy.

// toAll returns an Admin policy named p for all pods, with ingress rules. fromAll returns one
// with egress rules.
func toAll(rules string) string {
	return "p: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [" + rules + "]}"
}

func fromAll(rules string) string {
	return "p: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [" + rules + "]}"
}

// Peers of ClusterNetworkPolicies.
const (
	anyPods     = `{namespaces: {}}`
	frontends   = `{pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: frontend}}}}`
	myProject   = `{namespaces: {matchLabels: {project: myproject}}}`
	anyNetwork  = `{networks: [0.0.0.0/0, "::/0"]}`
	nodesOfPool = `{nodes: {matchLabels: {pool: a}}}`
)

// poolNodes are two Node objects. "here" is the enforcing node: its addresses are that of
// "node" in the map "ends" and an external one. "there" is the node of the pod db.
const poolNodes = `
{kind: Node, metadata: {name: here, labels: {pool: a}}, status: {addresses: [{type: InternalIP, address: 10.9.0.1}, {type: ExternalIP, address: 192.0.2.7}, {type: Hostname, address: here}]}}
---
{kind: Node, metadata: {name: there, labels: {pool: b}}, status: {addresses: [{type: InternalIP, address: 10.9.0.2}]}}`

var clusterCases = []semanticsCase{
	{"c01 Admin, then NetworkPolicy, then Baseline, then allow", []step{
		{policies: `
			low: {tier: Baseline, priority: 0, subject: {namespaces: {}}, ingress: [{name: closed, action: Deny, from: [` + anyPods + `]}]}`,
			flows: `
			web > db TCP 6379 = deny ingress-denied ingress=baseline/low[0:closed]
			out > db TCP 6379 = allow`},
		{policies: `
			default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {}}]}]}`,
			flows: `
			web > db TCP 6379 = allow rule ingress=default/p:default/p[0]
			job > db TCP 6379 = deny ingress-denied ingress=default/p:none
			job > web TCP 80  = deny ingress-denied ingress=baseline/low[0:closed]`},
		{policies: `
			top: {tier: Admin, priority: 1000, subject: {namespaces: {}}, ingress: [{action: Accept, from: [` + myProject + `]}, {action: Deny, from: [` + frontends + `]}]}`,
			flows: `
			job > db TCP 6379 = allow rule ingress=admin/top[0]
			web > db TCP 6379 = deny ingress-denied ingress=admin/top[1]
			odd > db TCP 6379 = deny ingress-denied ingress=default/p:none`},
		{remove: "ClusterNetworkPolicy top", flows: `web > db TCP 6379 = allow rule ingress=default/p:default/p[0]`},
		{remove: "ClusterNetworkPolicy low", flows: `job > web TCP 80 = allow not-isolated`},
	}},
	{"c01 lower priorities come first, in both tiers", []step{
		{policies: `
			a: {tier: Admin, priority: 20, subject: {namespaces: {}}, ingress: [{action: Deny, from: [` + anyPods + `]}]}
			b: {tier: Admin, priority: 3, subject: {namespaces: {}}, ingress: [{action: Accept, from: [` + frontends + `]}]}`,
			flows: `
			web > db TCP 1 = allow rule ingress=admin/b[0]
			odd > db TCP 1 = deny ingress-denied ingress=admin/a[0]`},
		{policies: `b: {tier: Admin, priority: 21, subject: {namespaces: {}}, ingress: [{action: Accept, from: [` + frontends + `]}]}`,
			flows: `web > db TCP 1 = deny ingress-denied ingress=admin/a[0]`},
		{policies: `
			a: {tier: Baseline, priority: 20, subject: {namespaces: {}}, ingress: [{action: Deny, from: [` + anyPods + `]}]}
			b: {tier: Baseline, priority: 3, subject: {namespaces: {}}, ingress: [{action: Accept, from: [` + frontends + `]}]}`,
			flows: `
			web > db TCP 1 = allow rule ingress=baseline/b[0]
			odd > db TCP 1 = deny ingress-denied ingress=baseline/a[0]`},
	}},
	one("c01 both ends must accept", `
		in: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [`+frontends+`]}]}
		out: {tier: Admin, priority: 2, subject: {namespaces: {matchLabels: {project: myproject}}}, egress: [{action: Deny, to: [`+anyPods+`]}]}`, `
		web > db TCP 1 = allow rule ingress=admin/in[0]
		job > db TCP 1 = deny egress-denied egress=admin/out[0] ingress=admin/in[0]`),
	one("c02 what no rule matches goes on: it isolates no pod", toAll(`{action: Accept, from: [`+myProject+`]}`), `
		job > db TCP 1 = allow rule ingress=admin/p[0]
		web > db TCP 1 = allow
		out > db TCP 1 = allow
		db > out TCP 1 = allow not-isolated`),
	one("c02 a pod that a NetworkPolicy isolates does not come to Baseline in that direction", `
		default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {}}]}]}
		b: {tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [`+anyPods+`]}], egress: [{action: Deny, to: [`+anyNetwork+`]}]}`, `
		web > db TCP 1 = deny egress-denied egress=baseline/b[0] ingress=default/p:default/p[0]
		db > web TCP 1 = deny egress-denied egress=baseline/b[0]
		out > db TCP 1 = deny ingress-denied ingress=default/p:none
		out > web TCP 1 = allow`),
	one("c02 without rules for a direction a policy does not affect it", fromAll(`{action: Deny, to: [`+frontends+`]}`), `
		db > web TCP 1 = deny egress-denied
		web > db TCP 1 = allow
		out > db TCP 1 = allow not-isolated`),
	one("c03 the first rule that matches counts", toAll(`{name: first, action: Accept, from: [`+frontends+`], protocols: [{tcp: {destinationPort: {number: 6379}}}]}, {action: Deny, from: [`+frontends+`]}, {action: Accept, from: [`+anyPods+`]}`), `
		web > db TCP 6379 = allow rule ingress=admin/p[0:first]
		web > db TCP 80   = deny ingress-denied ingress=admin/p[1]
		odd > db TCP 80   = allow rule ingress=admin/p[2]`),
	{"c03 Pass in Admin leaves the tier: NetworkPolicy decides, then Baseline", []step{
		{policies: toAll(`{name: to-teams, action: Pass, from: [`+frontends+`]}, {action: Deny, from: [`+anyPods+`]}`) + `
			q: {tier: Admin, priority: 2, subject: {namespaces: {}}, ingress: [{action: Deny, from: [` + frontends + `]}]}`,
			flows: `
			web > db TCP 1 = allow not-denied ingress=admin/p[0:to-teams]>none
			odd > db TCP 1 = deny ingress-denied ingress=admin/p[1]`},
		{policies: `
			default/n: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: 6379}]}]}
			b: {tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [` + anyPods + `]}]}`,
			flows: `
			web > db TCP 6379 = allow rule ingress=admin/p[0:to-teams]>default/n:default/n[0]
			web > db TCP 80   = deny ingress-denied ingress=admin/p[0:to-teams]>default/n:none
			job > web TCP 80  = deny ingress-denied ingress=admin/p[0:to-teams]>baseline/b[0]`},
	}},
	one("c03 Pass in Baseline: the default follows", `
		b: {tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{name: open, action: Pass, from: [`+frontends+`]}]}
		c: {tier: Baseline, priority: 2, subject: {namespaces: {}}, ingress: [{action: Deny, from: [`+anyPods+`]}]}`, `
		web > db TCP 1 = allow rule ingress=baseline/b[0:open]
		odd > db TCP 1 = deny ingress-denied ingress=baseline/c[0]`),
	{"c04 equal priorities are ordered by name", []step{
		{policies: `
			y: {tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Accept, from: [` + anyPods + `]}]}
			x: {tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Deny, from: [` + frontends + `]}]}`,
			flows: `
			web > db TCP 1 = deny ingress-denied ingress=admin/x[0]
			odd > db TCP 1 = allow rule ingress=admin/y[0]`},
		{remove: "ClusterNetworkPolicy x", policies: `z: {tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Deny, from: [` + frontends + `]}]}`,
			flows: `web > db TCP 1 = allow rule ingress=admin/y[0]`},
	}},
	one("c05 without protocols a rule matches everything", toAll(`{action: Deny, from: [`+frontends+`]}`), `
		web > db ICMP       = deny ingress-denied
		web > db TCP opaque = deny ingress-denied
		web6 > db6 ICMPv6   = deny ingress-denied
		web > db SCTP 6379  = deny ingress-denied`),
	one("c05 with protocols only what could be read", toAll(`{action: Deny, from: [`+frontends+`], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 65535}}}}, {udp: {destinationPort: {number: 53}}}]}`), `
		web > db TCP 6379   = deny ingress-denied
		web > db UDP 53     = deny ingress-denied
		web > db UDP 54     = allow
		web > db ICMP       = allow
		web > db TCP opaque = allow
		web > db SCTP 53    = allow`),
	one("c06 a host-network pod is neither subject nor peer by label", `
		p: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [`+frontends+`]}], egress: [{action: Deny, to: [`+frontends+`]}]}`, `
		agent > db TCP 1 = allow
		db > agent TCP 1 = allow
		agent > out TCP 1 = allow not-isolated
		web > db TCP 1   = deny ingress-denied`),
	{"c06 the address of a host-network pod is its node's, for networks and nodes", []step{
		{policies: fromAll(`{action: Deny, to: [{networks: [10.9.0.3/32]}]}`), flows: `
			db > agent TCP 1 = deny egress-denied
			db > out TCP 1   = allow`},
		{policies: fromAll(`{action: Deny, to: [{nodes: {matchLabels: {pool: c}}}]}`),
			objects: `{kind: Node, metadata: {name: third, labels: {pool: c}}, status: {addresses: [{type: InternalIP, address: 10.9.0.3}]}}`,
			flows:   `db > agent TCP 1 = deny egress-denied`},
	}},
	one("c06 networks match pods, nodes and what is outside", fromAll(`{action: Deny, to: [{networks: [10.0.0.2/31, 192.0.2.0/24, 10.9.0.0/24]}]}`), `
		db > web TCP 1   = deny egress-denied
		db > job ICMP    = deny egress-denied
		db > out TCP 1   = deny egress-denied
		db > agent TCP 1 = deny egress-denied
		db > odd TCP 1   = allow
		db6 > web6 TCP 1 = allow`),
	one("c06 all namespaces is every pod, and nothing outside the cluster", `
		p: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [`+anyPods+`]}]}`, `
		odd > db TCP 1   = deny ingress-denied
		out > db TCP 1   = allow
		done > db TCP 1  = allow
		agent > db TCP 1 = allow`),
	{"c07 pod to own node is judged by networks and nodes", []step{
		{flows: `db > node TCP 1 = allow own-node`},
		{policies: fromAll(`{action: Deny, to: [{networks: [10.9.0.1/32]}], protocols: [{tcp: {destinationPort: {number: 10250}}}]}`), flows: `
			db > node TCP 10250 = deny egress-denied egress=admin/p[0]
			db > node TCP 53    = allow
			node > db TCP 10250 = allow own-node
			db > nodeOfDB TCP 10250 = allow`},
		{objects: poolNodes, policies: fromAll(`{action: Deny, to: [` + nodesOfPool + `]}`), flows: `
			db > node TCP 1     = deny egress-denied
			web > node UDP 1    = deny egress-denied
			db > nodeOfDB TCP 1 = allow
			node > db TCP 1     = allow own-node
			db > out TCP 1      = deny egress-denied`},
		{objects: `{kind: Node, metadata: {name: there, labels: {pool: a}}, status: {addresses: [{type: InternalIP, address: 10.9.0.2}]}}`, flows: `
			db > nodeOfDB TCP 1 = deny egress-denied
			nodeOfDB > db TCP 1 = allow own-node
			web > nodeOfDB TCP 1 = deny egress-denied`},
		{remove: "Node here", flows: `
			db > node TCP 1     = allow
			db > out TCP 1      = allow
			db > nodeOfDB TCP 1 = deny egress-denied`},
	}},
	one("c07 Node to pod cannot be denied", toAll(`{action: Deny, from: [`+anyPods+`]}`)+`
		default/n: {podSelector: {}, policyTypes: [Ingress]}`, `
		node > db TCP 1     = allow own-node
		nodeOfDB > db TCP 1 = allow own-node
		nodeOfDB > web TCP 1 = deny ingress-denied`),
	one("c07 NetworkPolicy leaves pod to own node open, and keeps Baseline from judging it", `
		default/n: {podSelector: {matchLabels: {role: db}}, policyTypes: [Egress]}
		b: {tier: Baseline, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [`+anyNetwork+`]}]}`, `
		db > node TCP 1  = allow own-node
		db > out TCP 1   = deny egress-denied egress=default/n:none
		web > node TCP 1 = deny egress-denied egress=baseline/b[0]`),
	one("c07 Accept and Pass to the own node", `
		default/n: {podSelector: {matchLabels: {role: db}}, policyTypes: [Egress]}
		p: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{name: dns, action: Accept, to: [`+anyNetwork+`], protocols: [{udp: {destinationPort: {number: 53}}}]}, {action: Pass, to: [{networks: [10.9.0.1/32]}]}]}
		b: {tier: Baseline, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [`+anyNetwork+`]}]}`, `
		db > node UDP 53 = allow rule egress=admin/p[0:dns]
		db > node TCP 53 = allow
		web > node TCP 53 = deny egress-denied egress=admin/p[1]>baseline/b[0]`),
	{"c07 a pod's own node has all addresses of its Node object", []step{
		{policies: `default/n: {podSelector: {}, policyTypes: [Ingress, Egress]}`,
			objects: `{kind: Pod, metadata: {namespace: default, name: new}, spec: {nodeName: there}, status: {podIP: 10.0.0.8, hostIP: 10.9.0.2}}`,
			flows: `
			new > nodeOfDB TCP 1 = allow own-node
			new > out TCP 1      = deny egress-denied`},
		{objects: `{kind: Node, metadata: {name: there}, status: {addresses: [{type: InternalIP, address: 10.9.0.2}, {type: ExternalIP, address: 192.0.2.7}]}}`,
			flows: `
			new > nodeOfDB TCP 1 = allow own-node
			new > out TCP 1      = allow own-node
			out > new TCP 1      = allow own-node
			db > out TCP 1       = deny egress-denied`},
		{remove: "Node there", flows: `new > out TCP 1 = deny egress-denied`},
	}},
	one("c08 named ports are looked up at the destination, in any protocol", fromAll(`{action: Deny, to: [`+anyPods+`], protocols: [{destinationNamedPort: redis}, {destinationNamedPort: dns}]}`), `
		web > db TCP 6379 = deny egress-denied
		web > db UDP 53   = deny egress-denied
		web > db TCP 53   = allow
		db > web TCP 6379 = allow`),
	one("c09 in a rule that accepts, a peer with no field matches nothing", fromAll(`{action: Accept, to: [{}]}, {action: Deny, to: [`+anyPods+`]}`), `
		web > db TCP 1 = deny egress-denied egress=admin/p[1]
		db > out TCP 1 = allow`),
	one("c09 a rule that denies or passes and has a peer with no field denies everything", `
		p: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {project: myproject}}}, egress: [{name: later, action: Pass, to: [{}], protocols: [{tcp: {destinationPort: {number: 1}}}]}]}
		q: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: bare}}}, egress: [{action: Deny, to: [{}]}]}`, `
		job > out UDP 2 = deny egress-denied egress=admin/p[0:later]
		job > web ICMP  = deny egress-denied
		odd > out UDP 2 = deny egress-denied egress=admin/q[0]
		db > out TCP 1  = allow not-isolated`),
	one("c09 an unknown protocol or action fails closed", `
		p: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {project: myproject}}}, egress: [{action: Accept, to: [`+anyNetwork+`], protocols: [{}]}, {action: Deny, to: [`+anyNetwork+`]}]}
		q: {tier: Admin, priority: 2, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: bare}}}, egress: [{action: Log, to: [`+myProject+`]}]}`, `
		job > out TCP 1 = deny egress-denied egress=admin/p[1]
		odd > out TCP 1 = deny egress-denied egress=admin/q[0]`),
	one("c09 a subject that cannot be understood is every pod, for which the rules fail closed", `
		p: {tier: Baseline, priority: 1, subject: {}, egress: [{action: Deny, to: [`+myProject+`]}], ingress: [{action: Accept, from: [`+anyPods+`]}]}`, `
		db > out TCP 1  = deny egress-denied
		out > db TCP 1  = allow`),
	one("c10 domain names accept nothing, and deny everything elsewhere", `
		p: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {project: myproject}}}, egress: [{action: Accept, to: [{domainNames: [example.com]}, {networks: [10.0.0.1/32]}]}, {action: Deny, to: [`+anyNetwork+`]}]}
		q: {tier: Admin, priority: 2, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: bare}}}, egress: [{action: Deny, to: [{domainNames: [example.com]}]}]}`, `
		job > out TCP 1 = deny egress-denied egress=admin/p[1]
		job > db TCP 1  = allow rule egress=admin/p[0]
		odd > db TCP 1  = deny egress-denied egress=admin/q[0]`),
	one("c12 a pod to its own address is subject to no policy", fromAll(`{action: Deny, to: [`+anyNetwork+`]}`)+`
		q: {tier: Admin, priority: 2, subject: {namespaces: {}}, ingress: [{action: Deny, from: [`+anyPods+`]}]}`, `
		db > db TCP 1  = allow same-address
		db > db6 TCP 1 = deny egress-denied`),
	{"subjects follow labels of namespaces and pods", []step{
		{policies: `
			p: {tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {matchLabels: {project: myproject}}, podSelector: {matchLabels: {role: frontend}}}}, ingress: [{action: Deny, from: [` + anyPods + `]}]}`,
			flows: `
			db > job TCP 1 = deny ingress-denied
			db > web TCP 1 = allow not-isolated`},
		{objects: `{kind: Namespace, metadata: {name: default, labels: {project: myproject}}}`, flows: `
			odd > web TCP 1 = deny ingress-denied
			web > db TCP 1  = allow not-isolated`},
		{objects: `{kind: Pod, metadata: {namespace: default, name: web, labels: {role: backend}}, status: {podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}}`, flows: `
			odd > web TCP 1 = allow not-isolated
			db > job TCP 1  = deny ingress-denied`},
		{remove: "Namespace mine", flows: `db > job TCP 1 = allow not-isolated`},
	}},
}
