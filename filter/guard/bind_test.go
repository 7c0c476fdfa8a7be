package guard

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// snapshotOf returns a snapshot with a pod for each letter in pods. The letter at position n,
// counted from 1, names a pod with the addresses 10.0.0.n and fd00::n; a dash skips a position.
// The pods named in isolated are isolated in both directions.
func snapshotOf(t *testing.T, pods string, isolated ...string) *policy.Snapshot {
	t.Helper()
	w := policy.NewStore()
	for i := range pods {
		if pods[i] != '-' {
			w.SetPod(kubepod.Read(&corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: string(pods[i]), Labels: map[string]string{"name": string(pods[i])}},
				Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.0.0.%d", i+1)}, {IP: fmt.Sprintf("fd00::%d", i+1)}}},
			}))
		}
	}
	for _, name := range isolated {
		w.SetPolicy(netpol.Read(&networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p-" + name},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"name": name}},
				PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"},
			},
		}))
	}
	s, _ := w.Commit()
	return s
}

func addrs(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// bridged returns a port on a bridge, with the given addresses at its other end.
func bridged(index int, behind ...string) port {
	return port{index: index, master: 99, netns: index, behind: addrs(behind...)}
}

// routed returns a port with host routes to the given addresses.
func routed(index int, to ...string) port {
	return port{index: index, netns: index, routed: addrs(to...)}
}

// podsByPort returns the name of the pod that each port is bound to.
func podsByPort(b bindings) map[int]string {
	found := make(map[int]string)
	for index, one := range b {
		found[index] = one.pod
	}
	return found
}

// A port (see the type port) is bound to a pod if it has addresses of only this pod, and no
// other port has one of them. The addresses of a port are those with a route to it and those at
// its other end; routes take precedence. A binding stays as long as its pod and its port exist.
func TestBindings(t *testing.T) {
	for name, tt := range map[string]struct {
		before, now []port
		podsBefore  string
		podsNow     string
		want        map[int]string
	}{
		"by address":                   {now: []port{bridged(1, "10.0.0.1", "fe80::1"), bridged(2, "fd00::2")}, podsNow: "ab", want: map[int]string{1: "n/a", 2: "n/b"}},
		"by route":                     {now: []port{routed(1, "10.0.0.1"), routed(2, "fd00::2")}, podsNow: "ab", want: map[int]string{1: "n/a", 2: "n/b"}},
		"two ports claim one pod":      {now: []port{bridged(1, "10.0.0.1"), bridged(2, "10.0.0.1")}, podsNow: "ab", want: map[int]string{}},
		"one port claims two pods":     {now: []port{bridged(1, "10.0.0.1", "10.0.0.2")}, podsNow: "ab", want: map[int]string{}},
		"a route precedes an address":  {now: []port{bridged(1, "10.0.0.1"), routed(2, "10.0.0.1")}, podsNow: "ab", want: map[int]string{2: "n/a"}},
		"an address of no pod":         {now: []port{bridged(1, "192.0.2.1")}, podsNow: "ab", want: map[int]string{}},
		"a binding stays":              {before: []port{bridged(1, "10.0.0.1"), bridged(2, "10.0.0.2")}, podsBefore: "ab", now: []port{bridged(1, "10.0.0.2"), bridged(2, "10.0.0.2")}, podsNow: "ab", want: map[int]string{1: "n/a", 2: "n/b"}},
		"also without its addresses":   {before: []port{bridged(1, "10.0.0.1")}, podsBefore: "ab", now: []port{bridged(1)}, podsNow: "ab", want: map[int]string{1: "n/a"}},
		"the pod is gone":              {before: []port{bridged(1, "10.0.0.1")}, podsBefore: "ab", now: []port{bridged(1, "10.0.0.1")}, podsNow: "-b", want: map[int]string{}},
		"the port is gone":             {before: []port{bridged(1, "10.0.0.1")}, podsBefore: "ab", now: []port{bridged(3, "10.0.0.1")}, podsNow: "ab", want: map[int]string{3: "n/a"}},
		"another pod gets the address": {before: []port{bridged(1, "10.0.0.1")}, podsBefore: "a", now: []port{bridged(2, "10.0.0.1")}, podsNow: "b", want: map[int]string{2: "n/b"}},
		"a tunnel is not bound":        {now: []port{{index: 1, tunnel: true, routed: addrs("10.0.0.1")}}, podsNow: "a", want: map[int]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			b := bindings{}
			if tt.before != nil {
				b = b.next(found{ports: tt.before}, snapshotOf(t, tt.podsBefore))
			}
			if got := podsByPort(b.next(found{ports: tt.now}, snapshotOf(t, tt.podsNow))); !maps.Equal(got, tt.want) {
				t.Errorf("bindings %v, want %v", got, tt.want)
			}
		})
	}
}

// The function wanted derives the content of the programs' maps from a survey of the node and
// a snapshot. The survey has two ports that are bound to pods, a port of the first pod in a
// secondary network, a port on a bridge whose pod is not known, a tunnel, and the bridge.
func TestWanted(t *testing.T) {
	second := bridged(3, "10.9.0.1")
	second.netns, second.master = 1, 98
	f := found{
		ports: []port{bridged(1, "10.0.0.1", "fd00::1", "fe80::a", "169.254.1.1"), bridged(2, "10.0.0.2"), second, bridged(4, "10.0.0.9"), {index: 5, tunnel: true}},
		node:  addresses{netip.MustParseAddr("192.0.2.1"): true}, peers: addresses{netip.MustParseAddr("192.0.2.2"): true},
		tunnels: []uint16{4789},
	}
	s := snapshotOf(t, "ab", "a")
	st := wanted(f, bindings{}.next(f, s), s)
	isolated, first := isolatedEgress|isolatedIngress, portValue{Flags: podPort | primaryPort}
	first.ordinary(addrs("10.0.0.1", "fd00::1"), nil)
	first.Flags |= isolated
	if want := map[uint32]portValue{
		1:  first,
		2:  {Flags: podPort | primaryPort, IPv4: [4]byte{10, 0, 0, 2}},
		3:  {Flags: secondaryPort | isolated},
		4:  {Flags: podPort},
		99: {},
	}; !maps.Equal(st.ports, want) {
		t.Errorf("ports %v, want %v", st.ports, want)
	}
	for text, want := range map[string]uint32{"10.0.0.1": listed, "fd00::1": listed, "fe80::a": extra, "169.254.1.1": extra, "10.0.0.2": 0} {
		if got := st.own[place{netip.MustParseAddr(text).As16(), 1}]; got != want {
			t.Errorf("%s at port 1: %d, want %d", text, got, want)
		}
	}
	for text, want := range map[string]uint32{"10.0.0.1": ofPod, "fe80::a": ofPod, "169.254.1.1": 0, "192.0.2.1": ofNode, "192.0.2.2": ofTunnel} {
		if got := st.known[netip.MustParseAddr(text).As16()]; got != want {
			t.Errorf("%s has flags %d in known, want %d", text, got, want)
		}
	}
	if len(st.tunnels) != 1 {
		t.Errorf("tunnels %v", st.tunnels)
	}
}

// The method portValue.ordinary stores one address of each family: the first that is neither
// an address of the node nor link-local. If there is none, the field stays zero.
func TestOrdinary(t *testing.T) {
	node := addresses{netip.MustParseAddr("10.0.0.9"): true}
	for listed, want := range map[string]string{
		"10.0.0.1 10.0.0.2": "10.0.0.1 ::",
		"fe80::1 fd00::1":   "0.0.0.0 fd00::1",
		"10.0.0.9 fd00::1":  "0.0.0.0 fd00::1",
		"169.254.0.1":       "0.0.0.0 ::",
	} {
		var v portValue
		v.ordinary(addrs(strings.Fields(listed)...), node)
		if got := netip.AddrFrom4(v.IPv4).String() + " " + netip.AddrFrom16(v.IPv6).String(); got != want {
			t.Errorf("ordinary addresses of %s: %s, want %s", listed, got, want)
		}
	}
}
