package inventory

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// git has manifests as in Git, and running pods.
const git = `
- {kind: Namespace, metadata: {name: shop}}
- {kind: Namespace, metadata: {name: ops}}
- kind: Deployment
  metadata: {namespace: shop, name: web}
  spec: {template: {metadata: {labels: {app: web}}, spec: {containers: [{ports: [{name: http, containerPort: 8080}]}]}}}
- kind: StatefulSet
  metadata: {namespace: shop, name: db}
  spec: {template: {metadata: {labels: {app: db}}, spec: {containers: [{ports: [{name: sql, containerPort: 5432}]}]}}}
- kind: CronJob
  metadata: {namespace: shop, name: backup}
  spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: backup}}}}}}
- kind: DaemonSet
  metadata: {namespace: ops, name: exporter}
  spec: {template: {metadata: {labels: {app: exporter}}, spec: {hostNetwork: true}}}
- {kind: Pod, metadata: {namespace: shop, name: cart-7d9c-a, labels: {app: cart, pod-template-hash: 7d9c}, ownerReferences: [{kind: ReplicaSet, name: cart-7d9c, controller: true}]}, status: {podIPs: [{ip: 10.1.0.1}]}}
- {kind: Pod, metadata: {namespace: shop, name: cart-7d9c-b, labels: {app: cart, pod-template-hash: 7d9c}, ownerReferences: [{kind: ReplicaSet, name: cart-7d9c, controller: true}]}, status: {podIPs: [{ip: 10.1.0.2}]}}
- {kind: Pod, metadata: {namespace: shop, name: pay-1-a, labels: {app: pay}, ownerReferences: [{kind: ReplicaSet, name: pay-1, controller: true}]}, status: {podIPs: [{ip: 10.1.0.3}]}}
- {kind: Pod, metadata: {namespace: shop, name: pay-1-b, labels: {app: pay, old: "yes"}, ownerReferences: [{kind: ReplicaSet, name: pay-1, controller: true}]}, status: {podIPs: [{ip: 10.1.0.4}]}}
- {kind: Deployment, metadata: {namespace: shop, name: cart}, spec: {template: {metadata: {labels: {app: cart}}}}}
- {kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
- {kind: Service, metadata: {namespace: shop, name: db}, spec: {clusterIP: 10.96.0.5, selector: {app: db}, ports: [{port: 5432, targetPort: sql}]}}
- {kind: Service, metadata: {namespace: shop, name: front}, spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80, targetPort: http}]}}
- {kind: Service, metadata: {namespace: shop, name: mail}, spec: {type: ExternalName, externalName: mail.example.com}}
- kind: NetworkPolicy
  metadata: {namespace: shop, name: db}
  spec:
    podSelector: {matchLabels: {app: db}}
    policyTypes: [Ingress]
    ingress: [{from: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 10.2.0.0/16, except: [10.2.3.0/24]}}, {ipBlock: {cidr: 198.51.100.0/24}}], ports: [{port: 5432}]}]
- kind: NetworkPolicy
  metadata: {namespace: shop, name: old}
  spec: {podSelector: {matchLabels: {old: "yes"}}, policyTypes: [Egress]}
`

func read(t *testing.T, text string, change ...func(*Objects)) *Inventory {
	t.Helper()
	var raw []json.RawMessage
	if err := yaml.Unmarshal([]byte(text), &raw); err != nil {
		t.Fatal(err)
	}
	var o Objects
	for _, one := range raw {
		var kind metav1.TypeMeta
		decode(t, one, &kind)
		switch kind.Kind {
		case "Namespace":
			o.Namespaces = append(o.Namespaces, decode(t, one, &corev1.Namespace{}))
		case "Pod":
			o.Pods = append(o.Pods, kubepod.Read(decode(t, one, &corev1.Pod{})))
		case "Node":
			o.Nodes = append(o.Nodes, kubepod.ReadNode(decode(t, one, &corev1.Node{})))
		case "Service":
			o.Services = append(o.Services, decode(t, one, &corev1.Service{}))
		case "NetworkPolicy":
			o.Policies = append(o.Policies, netpol.Read(decode(t, one, &networkingv1.NetworkPolicy{})))
		default:
			into := map[string]metav1.Object{
				"Deployment": &appsv1.Deployment{}, "StatefulSet": &appsv1.StatefulSet{}, "DaemonSet": &appsv1.DaemonSet{},
				"ReplicaSet": &appsv1.ReplicaSet{}, "Job": &batchv1.Job{}, "CronJob": &batchv1.CronJob{},
			}[kind.Kind]
			o.Workloads = append(o.Workloads, kubepod.ReadWorkload(decode(t, one, into)))
		}
	}
	for _, c := range change {
		c(&o)
	}
	return New(o)
}

func decode[T any](t *testing.T, text []byte, into T) T {
	t.Helper()
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return into
}

// summary returns the ends and verdicts of flows.
func summary(v *Inventory, flows []Flow) string {
	var parts []string
	for _, f := range flows {
		parts = append(parts, fmt.Sprintf("%s > %s %d %s", f.From.Name, f.To.Name, f.Key.Port, v.Decide(f).Action))
	}
	return strings.Join(parts, ", ")
}

// A question may name its ends in all forms that Question describes.
func TestNames(t *testing.T) {
	tests := map[string]struct{ from, to, port, want string }{
		"workload":                {"deploy/web", "sts/db", "5432", "shop/web > shop/db 5432 allow"},
		"without a kind":          {"web", "shop/db", "sql", "shop/web > shop/db 5432 allow"},
		"kind and namespace":      {"shop/deploy/web", "shop/statefulset/db", "5432", "shop/web > shop/db 5432 allow"},
		"kind with its group":     {"deployment.apps/web", "statefulsets.apps/db", "5432", "shop/web > shop/db 5432 allow"},
		"ReplicaSet":              {"rs/cart-7d9c", "db", "5432", "shop/cart > shop/db 5432 deny"},
		"CronJob":                 {"cj/backup", "db", "5432", "shop/backup > shop/db 5432 deny"},
		"replicas that are equal": {"cart", "db", "5432", "shop/cart > shop/db 5432 deny"},
		"replicas that differ":    {"pay-1", "web", "80", "shop/pay-1-a > shop/web 80 allow, shop/pay-1-b > shop/web 80 deny"},
		"prefix":                  {"pay", "web", "80", "shop/pay-1-a > shop/web 80 allow, shop/pay-1-b > shop/web 80 deny"},
		"one pod":                 {"cart-7d9c-b", "db", "5432", "shop/cart-7d9c-b > shop/db 5432 deny"},
		"labels":                  {"app=web", "app in (db)", "5432", "shop/web > shop/db 5432 allow"},
		"labels of a namespace":   {"shop/app=web", "db", "5432", "shop/web > shop/db 5432 allow"},
		"labels of all":           {"*/app=exporter", "db", "5432", "ops/exporter > shop/db 5432 deny"},
		"all of a namespace":      {"ns/ops", "db", "5432", "ops/exporter > shop/db 5432 deny"},
		"Service":                 {"web", "svc/db", "5432", "shop/web > shop/db 5432 allow"},
		"headless Service":        {"cart", "svc/front", "80", "shop/cart > shop/web 80 allow"},
		"Service by name alone":   {"cart", "front", "80", "shop/cart > shop/web 80 allow"},
		"Service in DNS":          {"web", "db.shop.svc.cluster.local:5432", "", "shop/web > shop/db 5432 allow"},
		"short name in DNS":       {"ops/exporter", "db.shop:5432", "", "ops/exporter > shop/db 5432 deny"},
		"svc and DNS":             {"web", "svc/db.shop", "5432", "shop/web > shop/db 5432 allow"},
		"ClusterIP":               {"web", "10.96.0.5", "5432", "shop/web > shop/db 5432 allow"},
		"ClusterIP, port, proto":  {"web", "10.96.0.5:5432/tcp", "", "shop/web > shop/db 5432 allow"},
		"address and UDP":         {"web", "8.8.8.8:53/udp", "", "shop/web > 8.8.8.8 53 allow"},
		"IPv6 address and UDP":    {"2001:db8::1", "[2001:db8::2]:53/udp", "53", "2001:db8::1 > 2001:db8::2 53 allow"},
		"Service and protocol":    {"web", "svc/db:5432/TCP", "5432/tcp", "shop/web > shop/db 5432 allow"},
		"ClusterIP and port":      {"web", "10.96.0.5:5432", "", "shop/web > shop/db 5432 allow"},
		"node":                    {"node/n1", "db", "5432", "n1 > shop/db 5432 deny"},
		"world":                   {"world", "db", "5432", "world > shop/db 5432 deny, 10.2.0.0/16 except 10.2.3.0/24 > shop/db 5432 allow, 10.2.3.0/24 > shop/db 5432 deny, 198.51.100.0/24 > shop/db 5432 allow"},
		"range":                   {"10.2.0.0/22", "db", "5432", "10.2.0.0/22 except 10.2.3.0/24 > shop/db 5432 allow, 10.2.3.0/24 > shop/db 5432 deny"},
		"range with pods":         {"10.1.0.0/30", "db", "5432", "shop/cart > shop/db 5432 deny, shop/pay-1-a > shop/db 5432 deny, 10.1.0.0/30 > shop/db 5432 deny"},
		"protocol of the port":    {"web", "db", "53/udp", "shop/web > shop/db 53 deny"},
		"another of the same":     {"db", "db", "5432", "shop/db > shop/db 5432 deny"},
	}
	v := read(t, git)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			flows, err := v.Flows(Question{From: tt.from, To: tt.to, Port: tt.port, Namespace: "shop"})
			if got := summary(v, flows); err != nil || got != tt.want {
				t.Errorf("%s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

// NamespaceIn finds the namespace in each form of names.
func TestNamespaceIn(t *testing.T) {
	for text, want := range map[string]string{
		"shop/web": "shop", "shop/deploy/web": "shop", "ns/shop": "shop", "deploy/web": "", "web": "", "app=web": "", "shop/app=web": "shop",
		"*/app=web": "", "app.kubernetes.io/name=web": "", "db.shop": "shop", "db.shop.svc:80": "shop", "svc/db.shop": "shop",
		"db-0.db.shop.svc.cluster.local": "shop", "8.8.8.8:53/udp": "", "10.0.0.0/8": "", "fd00::/8": "", "[fd00::1]:53/udp": "",
		"https://shop.example.com/cart": "", "svc/db:53/udp": "", "world": "", "shop.example.com": "",
	} {
		if got := NamespaceIn(text); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// An error about a name states what is wrong, and suggests similar names.
func TestNamesThatNothingHas(t *testing.T) {
	tests := map[string]struct{ to, want string }{
		"namespace":               {"shpo/thing", "there is no namespace shpo: did you mean shop?"},
		"namespace, known name":   {"shpo/web", "there is no namespace shpo: did you mean shop/web?"},
		"near":                    {"shop/wbe", "there is no pod or workload shop/wbe: did you mean shop/web?"},
		"elsewhere":               {"ops/web", "there is no pod or workload ops/web: did you mean shop/web?"},
		"nothing near":            {"shop/zzzzzz", "namespace shop has backup, cart, "},
		"kind":                    {"shop/thing/web", `"thing" is not a kind`},
		"wrong kind":              {"sts/web", "there is no StatefulSet shop/web: did you mean shop/deployment/web?"},
		"not a pod":               {"pod/web", "there is no Pod shop/web: did you mean shop/deployment/web?"},
		"not a Service":           {"svc/backup", "there is no Service shop/backup: did you mean shop/cronjob/backup?"},
		"only a Service":          {"deploy/mail", "there is no Deployment shop/mail: did you mean shop/service/mail?"},
		"kind and near":           {"deploy/wbe", "there is no pod or workload shop/wbe: did you mean shop/web?"},
		"two ports":               {"db.shop.svc:5432", "but the port is also given as 80"},
		"two ports and UDP":       {"8.8.8.8:53/udp", "but the port is also given as 80"},
		"not a port":              {"8.8.8.8:http/udp", "but the port is also given as 80"},
		"selector with -l":        {"-l app=web", "is not a selector: leave out -l: app=web"},
		"world with a port":       {"world:443", "world has no ports of its own: write world, and the port 443 as the port of the flow"},
		"world in capitals":       {"WORLD", "there is no end WORLD: write world for every address outside the cluster"},
		"internet":                {"internet", "write world"},
		"Service":                 {"svc/dc", "there is no Service shop/dc: did you mean svc/db in namespace shop?"},
		"Service in DNS":          {"dc.shop.svc:80", "there is no Service shop/dc"},
		"svc and DNS":             {"svc/db.shpo", "there is no namespace shpo: did you mean shop?"},
		"ExternalName":            {"svc/mail", "is another name for mail.example.com"},
		"Node":                    {"node/n2", "there is no Node n2: write n1"},
		"labels":                  {"app=wbe", "no pod in namespace shop matches app=wbe"},
		"selector":                {"app==,", "is not a selector"},
		"namespace of a selector": {"shpo/app=web", "there is no namespace shpo: did you mean shop?"},
		"too many parts":          {"a/b/c/d", "neither a name nor an address"},
	}
	v := read(t, git)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := v.Flows(Question{From: "web", To: tt.to, Port: "80", Namespace: "shop"}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
	if _, err := v.Flows(Question{From: "svc/db", To: "web", Port: "80", Namespace: "shop"}); err == nil || !strings.Contains(err.Error(), "no packet comes from there") {
		t.Errorf("from a Service: %v", err)
	}
}

// A range of a policy may contain a pod whose address is not known. Elsewhere returns alternatives
// inside and outside of the range, but only in the pod ranges if these are known.
func TestElsewhere(t *testing.T) {
	for _, tt := range []struct{ ranges, want string }{
		{"", "10.2.0.0/16 except 10.2.3.0/24 allow, 10.2.3.0/24 deny"},
		{"10.3.0.0/16", ""},
		{"10.2.3.0/24", ""},
		{"10.2.2.0/23", "10.2.3.0/24 deny"},
	} {
		v := read(t, git, func(o *Objects) {
			if tt.ranges != "" {
				o.PodRanges = append(o.PodRanges, netip.MustParsePrefix(tt.ranges))
			}
		})
		flows, err := v.Flows(Question{From: "backup", To: "db", Port: "5432", Namespace: "shop"})
		if err != nil || len(flows) != 1 || v.Decide(flows[0]).Action != filter.Deny && tt.ranges != "10.2.2.0/23" {
			t.Fatalf("%s: %s, %v", tt.ranges, summary(v, flows), err)
		}
		var got []string
		for _, a := range v.Elsewhere(flows[0]) {
			if !a.To {
				got = append(got, fmt.Sprint(a.Range, " ", v.Decide(a.Flow).Action))
			}
		}
		if text := strings.Join(got, ", "); text != tt.want {
			t.Errorf("pods in %q: %q, want %q", tt.ranges, text, tt.want)
		}
	}
}

// Each workload has either its live pods or one pod made from its template.
func TestWorkloadsCountOnce(t *testing.T) {
	v := read(t, git+`
- {kind: ReplicaSet, metadata: {namespace: shop, name: web-1, ownerReferences: [{kind: Deployment, name: web, controller: true}]}, spec: {template: {metadata: {labels: {app: web}}}}}
- {kind: Job, metadata: {namespace: shop, name: backup-29300000, ownerReferences: [{kind: CronJob, name: backup, controller: true}]}, spec: {template: {metadata: {labels: {app: backup}}}}}
- {kind: Pod, metadata: {namespace: shop, name: backup-29300000-x, labels: {app: backup}, ownerReferences: [{kind: Job, name: backup-29300000, controller: true}]}, status: {phase: Succeeded}}
- {kind: Pod, metadata: {namespace: shop, name: web, labels: {app: other}}}
`)
	var got []string
	for ref, pods := range v.workloads {
		for _, p := range pods {
			got = append(got, fmt.Sprintf("%s: %s", ref.Object(), p))
			if v.WorkloadOf(p) != ref {
				t.Errorf("%s is of %v", p, v.WorkloadOf(p))
			}
		}
	}
	for _, want := range []string{
		"Deployment shop/web: shop/web (Deployment)", "StatefulSet shop/db: shop/db", "DaemonSet ops/exporter: ops/exporter",
		"CronJob shop/backup: shop/backup", "CronJob shop/backup: shop/backup-29300000-x",
		"Deployment shop/cart: shop/cart-7d9c-a", "Deployment shop/cart: shop/cart-7d9c-b",
		"ReplicaSet shop/pay-1: shop/pay-1-a", "ReplicaSet shop/pay-1: shop/pay-1-b",
	} {
		if n := strings.Count(strings.Join(got, "\n")+"\n", want+"\n"); n != 1 {
			t.Errorf("%q is there %d times, in\n%s", want, n, strings.Join(got, "\n"))
		}
	}
	if len(got) != 9 {
		t.Errorf("%d pods of workloads, want 9:\n%s", len(got), strings.Join(got, "\n"))
	}
}

// The ranges that cut returns contain every address once. All addresses of a range are in the same
// prefixes.
func TestCut(t *testing.T) {
	var prefixes []netip.Prefix
	for _, text := range []string{"10.0.0.0/28", "10.0.0.0/30", "10.0.0.2/32", "10.0.0.8/29", "10.0.0.8/30", "10.0.0.12/30", "fd00::/16"} {
		prefixes = append(prefixes, netip.MustParsePrefix(text))
	}
	checkCut(t, prefixes, netip.MustParsePrefix("10.0.0.0/27"))
}

// TestCutRandomly checks cut with random prefixes. Many are equal or contain each other.
func TestCutRandomly(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var prefixes []netip.Prefix
		for range random.IntN(20) {
			bits := 24 + random.IntN(9)
			a, within := netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(256))}), netip.MustParsePrefix("10.0.0.0/8")
			if random.IntN(2) == 0 {
				a, bits, within = netip.MustParseAddr(fmt.Sprintf("fd00::%x", random.IntN(256))), bits+96, netip.MustParsePrefix("fd00::/16")
			}
			prefixes = append(prefixes, netip.PrefixFrom(a, bits), netip.PrefixFrom(within.Addr(), within.Bits()+random.IntN(4)))
		}
		checkCut(t, prefixes, netip.MustParsePrefix("10.0.0.0/24"))
		checkCut(t, prefixes, netip.MustParsePrefix("10.0.0.64/27"))
		checkCut(t, prefixes, netip.MustParsePrefix("fd00::/120"))
	}
}

func checkCut(t *testing.T, prefixes []netip.Prefix, within netip.Prefix) {
	t.Helper()
	m := newMarks(slices.Clone(prefixes))
	ranges := m.cut(within)
	around := make(map[string]string) // the result of marks.around for the addresses in each set of prefixes
	for a := within.Addr(); within.Contains(a); a = a.Next() {
		key := containing(prefixes, a)
		if was, has := around[key]; has && was != m.around(a) {
			t.Fatalf("of %v, %s is in %s: around is %q, and %q for another address", prefixes, a, key, m.around(a), was)
		}
		around[key] = m.around(a)
		in := 0
		for _, r := range ranges {
			if !r.Contains(a) {
				continue
			}
			in++
			if one := r.first(); containing(prefixes, one) != key {
				t.Fatalf("of %v, %s and %s are in %s, but not in the same prefixes", prefixes, one, a, r)
			}
		}
		if in != 1 {
			t.Fatalf("%s is in %d ranges of %v", a, in, ranges)
		}
	}
	distinct := make(map[string]bool)
	for _, text := range around {
		distinct[text] = true
	}
	if len(distinct) != len(around) {
		t.Fatalf("of %v, the marks in %s have %d texts, want %d", prefixes, within, len(distinct), len(around))
	}
}

// containing returns the prefixes that contain an address, as text.
func containing(prefixes []netip.Prefix, a netip.Addr) string {
	var texts []string
	for _, p := range prefixes {
		if p.Contains(a) {
			texts = append(texts, p.Masked().String())
		}
	}
	slices.Sort(texts)
	return strings.Join(slices.Compact(texts), " ")
}

// BenchmarkPlaces makes inventories with a pod that has no address, and policies with many ranges.
// Ten times as many ranges should take little more than ten times as many ns/op.
func BenchmarkPlaces(b *testing.B) {
	for _, n := range []int{27_000, 270_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var peers []policy.Peer
			for i := range n {
				block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
				peers = append(peers, policy.Peer{Block: &policy.Block{CIDR: block}})
			}
			p := &policy.Policy{Ref: policy.Ref{Namespace: "shop", Name: "ranges"}, Subject: policy.Subject{Namespace: "shop", Pods: labels.Nothing()}}
			p.Rules[filter.Ingress] = []policy.Rule{{Action: policy.Accept, Peers: peers}}
			v := New(Objects{Pods: []*policy.Pod{{Namespace: "shop", Name: "web"}}, Policies: []*policy.Policy{p}})
			for b.Loop() {
				v.marks = marksOf(v.Policies)
				v.place()
			}
			b.ReportMetric(float64(len(v.places[0])), "places")
		})
	}
}

// A pod of the host network is assumed to have the address of a Node, if Nodes are known and no pod
// states its node. Otherwise it may have any address that a node can have.
func TestPlacesOfTheHostNetwork(t *testing.T) {
	const policies = `
- kind: NetworkPolicy
  metadata: {namespace: shop, name: hosts}
  spec:
    podSelector: {matchLabels: {app: web}}
    ingress: [{from: [{ipBlock: {cidr: 10.7.0.0/16}}, {ipBlock: {cidr: 169.254.0.0/16}}, {ipBlock: {cidr: 192.0.2.2/32}}]}]
`
	second := policy.Node{Name: "n2", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}
	tests := map[string]struct {
		change func(*Objects)
		want   string
	}{
		"one Node":  {func(*Objects) {}, ""},
		"two Nodes": {func(o *Objects) { o.Nodes = append(o.Nodes, &second) }, "192.0.2.2 allow"},
		"no Nodes":  {func(o *Objects) { o.Nodes = nil }, "10.7.0.0/16 allow, 192.0.2.2 allow"},
		"a pod runs on the Node": {func(o *Objects) {
			for _, p := range o.Pods {
				p.Node = "n1"
			}
		}, "10.7.0.0/16 allow, 192.0.2.2 allow"},
	}
	for name, tt := range tests {
		v := read(t, git+policies, tt.change)
		flows, err := v.Flows(Question{From: "ops/exporter", To: "shop/web", Port: "80"})
		if err != nil || summary(v, flows) != "ops/exporter > shop/web 80 deny" {
			t.Fatalf("%s: %s, %v", name, summary(v, flows), err)
		}
		var got []string
		for _, a := range v.Elsewhere(flows[0]) {
			if v.Decide(a.Flow).Action == filter.Allow {
				got = append(got, fmt.Sprint(a.Range, " allow"))
			}
		}
		if text := strings.Join(got, ", "); text != tt.want {
			t.Errorf("%s: %q, want %q", name, text, tt.want)
		}
	}
}
