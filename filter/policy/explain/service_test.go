package explain

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"sluice/filter"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

const behindServices = `
pods:
- {metadata: {namespace: lab, name: web, labels: {app: web}}, status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}}
- metadata: {namespace: lab, name: db-0, labels: {app: db}}
  spec: {containers: [{ports: [{name: redis, containerPort: 6379, protocol: TCP}]}]}
  status: {podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}
- metadata: {namespace: lab, name: db-1, labels: {app: db, closed: "yes"}}
  spec: {containers: [{ports: [{name: redis, containerPort: 6380, protocol: TCP}]}]}
  status: {podIPs: [{ip: 10.0.0.3}]}
- {metadata: {namespace: lab, name: db-2, labels: {app: db}}, status: {podIPs: [{ip: 10.0.0.4}], conditions: [{type: Ready, status: "False"}]}}
- {metadata: {namespace: other, name: db-3, labels: {app: db}}, status: {podIPs: [{ip: 10.0.0.5}]}}
policies:
- metadata: {namespace: lab, name: closed}
  spec: {podSelector: {matchLabels: {closed: "yes"}}, policyTypes: [Ingress]}
services:
- metadata: {namespace: lab, name: db}
  spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, "fd00:96::7"], selector: {app: db}, ports: [{name: client, port: 80, targetPort: redis}, {name: plain, port: 81, protocol: UDP}]}
- metadata: {namespace: lab, name: api}
  spec: {clusterIP: 10.96.0.1, ports: [{port: 443, targetPort: 6443}]}
- metadata: {namespace: lab, name: sliced}
  spec: {clusterIP: 10.96.0.8, selector: {app: db}, ports: [{name: a, port: 80}]}
- metadata: {namespace: lab, name: headless}
  spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
endpointSlices:
- metadata: {namespace: lab, name: sliced-1, labels: {kubernetes.io/service-name: sliced}}
  addressType: IPv4
  ports: [{name: a, port: 6380, protocol: TCP}]
  endpoints: [{addresses: [10.0.0.3]}, {addresses: [192.0.2.1], conditions: {ready: true}}, {addresses: [10.0.0.4], conditions: {ready: false}}]
`

func serviceCluster(t *testing.T) *Cluster {
	t.Helper()
	var o struct {
		Pods           []*corev1.Pod
		Policies       []*networkingv1.NetworkPolicy
		Services       []*corev1.Service
		EndpointSlices []*discoveryv1.EndpointSlice
	}
	if err := yaml.UnmarshalStrict([]byte(behindServices), &o); err != nil {
		t.Fatal(err)
	}
	v := inventory.New(inventory.Objects{Pods: kubepod.ReadAll(o.Pods), Policies: netpol.ReadAll(o.Policies), Services: o.Services, EndpointSlices: o.EndpointSlices})
	return New(v, v.Problems)
}

// Decisions never see the address of a Service, so a question about such an address is
// answered for the Service's endpoints.
func TestServices(t *testing.T) {
	tests := map[string]struct {
		q    Question
		want string // the flows, and whether they are allowed
		err  string
	}{
		"pods by a selector":      {Question{From: "lab/web", To: "10.96.0.7", Port: "80"}, "10.0.0.2 TCP 6379 allow, 10.0.0.3 TCP 6380 deny", ""},
		"the name of a port":      {Question{From: "lab/web", To: "10.96.0.7", Port: "client"}, "10.0.0.2 TCP 6379 allow, 10.0.0.3 TCP 6380 deny", ""},
		"the other family":        {Question{From: "lab/web", To: "fd00:96::7", Port: "80"}, "fd00::2 TCP 6379 allow", ""},
		"no port of the target":   {Question{From: "lab/web", To: "10.96.0.7", Port: "81", Protocol: "udp"}, "10.0.0.2 UDP 81 allow, 10.0.0.3 UDP 81 deny", ""},
		"EndpointSlices":          {Question{From: "lab/web", To: "10.96.0.8", Port: "80"}, "10.0.0.3 TCP 6380 deny, 192.0.2.1 TCP 6380 allow", ""},
		"nothing is known behind": {Question{From: "lab/web", To: "10.96.0.1", Port: "443"}, "", "10.96.0.1 is the address of Service lab/api"},
		"another port":            {Question{From: "lab/web", To: "10.96.0.7", Port: "6379"}, "", "write one of TCP 80 client, UDP 81 plain"},
		"another protocol":        {Question{From: "lab/web", To: "10.96.0.7", Port: "80", Protocol: "udp"}, "", "has no UDP port"},
		"no port at all":          {Question{From: "lab/web", To: "10.96.0.7"}, "", "write one of"},
		"ICMP":                    {Question{From: "lab/web", To: "10.96.0.7", Protocol: "icmp"}, "", "reaches nothing"},
		"from a Service":          {Question{From: "10.96.0.7", To: "lab/web", Port: "1"}, "", "no packet comes from there"},
		"no common family":        {Question{From: "10.0.0.1", To: "fd00:96::7", Port: "80"}, "", "no packet can pass"},
		"an address beside":       {Question{From: "lab/web", To: "10.96.0.9", Port: "80"}, "10.96.0.9 TCP 80 allow", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := serviceCluster(t)
			flows, err := c.Flows(tt.q)
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want it to contain %q", err, tt.err)
			}
			var got []string
			for _, f := range flows {
				got = append(got, f.Key.DstAddr().String()+" "+portText(f.Key)+" "+c.Decide(f).Action.String())
			}
			if text := strings.Join(got, ", "); text != tt.want {
				t.Errorf("flows %q, want %q", text, tt.want)
			}
		})
	}
}

func TestAnswerOfAService(t *testing.T) {
	c := serviceCluster(t)
	q := Question{From: "lab/web", To: "10.96.0.7", Port: "80"}
	a, err := c.Answer(q)
	if err != nil {
		t.Fatal(err)
	}
	if a.Verdict != filter.Deny.String() || a.Service != "lab/db" || a.To != "10.96.0.7" || a.Port != 80 || len(a.Backends) != 2 || a.Backends[0].Verdict != filter.Allow.String() {
		t.Errorf("%+v", a)
	}
	flows, err := c.Flows(q)
	if err != nil {
		t.Fatal(err)
	}
	var all []Explanation
	for _, f := range flows {
		all = append(all, c.Explain(f))
	}
	text := Text(all)
	for _, want := range []string{"10.96.0.7 port 80 is Service lab/db → lab/db-0 port 6379, lab/db-1 port 6380: decisions see the endpoints behind a Service (2 endpoints, 1 denied)", "deny (ingress-denied): lab/web (10.0.0.1) to lab/db-1 (10.0.0.3), TCP 6380"} {
		if !strings.Contains(text, want) {
			t.Errorf("the text does not contain %q:\n%s", want, text)
		}
	}
}

// If a flow from or to a link-local address is denied, the answer has a note: the address
// may belong to the node, because the API does not list all addresses of a node.
func TestNotesAboutNodeLocalAddresses(t *testing.T) {
	c := serviceCluster(t)
	for _, tt := range []struct {
		q    Question
		note string
	}{
		{Question{From: "169.254.20.10", To: "lab/db-1", Port: "53"}, "169.254.20.10 may be an address of the pod's own node"},
		{Question{From: "fe80::1", To: "10.0.0.3", Port: "53"}, ""}, // has no answer: the address families differ
		{Question{From: "192.0.2.1", To: "lab/db-1", Port: "53"}, ""},
		{Question{From: "169.254.20.10", To: "lab/db-0", Port: "53"}, ""}, // allowed, so no note is needed
	} {
		flows, err := c.Flows(tt.q)
		if err != nil {
			continue
		}
		e := c.Explain(flows[0])
		if got := strings.Join(e.Notes, "\n"); (got == "") != (tt.note == "") || !strings.Contains(got, tt.note) {
			t.Errorf("%v: notes %q, want %q in them", tt.q, got, tt.note)
		}
		if a := NewAnswer(Question{}, []Explanation{e}); len(a.Notes) != len(e.Notes) || strings.Contains(Text([]Explanation{e}), "note: ") != (tt.note != "") {
			t.Errorf("%v: the answer has notes %q, the text is\n%s", tt.q, a.Notes, Text([]Explanation{e}))
		}
	}
}
