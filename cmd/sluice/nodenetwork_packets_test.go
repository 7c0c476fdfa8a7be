//go:build linux

package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
	"sluice/filter/event"
)

// The sysctls that make bridged packets pass through iptables.
const (
	sysctlIPv4 = "net/bridge/bridge-nf-call-iptables"
	sysctlIPv6 = "net/bridge/bridge-nf-call-ip6tables"
	sysctlVLAN = "net/bridge/bridge-nf-filter-vlan-tagged"
)

// sysctl sets a sysctl of the node. It skips the test if the kernel does not have the
// sysctl.
func (s *testbed) sysctl(t *testing.T, path, value string) {
	t.Helper()
	if err := s.Nodes[0].Do(func() error { return os.WriteFile("/proc/sys/"+path, []byte(value), 0) }); err != nil {
		t.Skipf("needs br_netfilter in the kernel: %v", err)
	}
}

// awaitNoProblems waits until sluice status reports no problems.
func (s *testbed) awaitNoProblems(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(waitTimeout); ; time.Sleep(10 * time.Millisecond) {
		status, out, err := sluice(t, "status", "--socket", s.socket)
		if status == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("sluice status: %d\n%s%s", status, out, err)
		}
	}
}

// The agent reports settings that let packets between pods on a bridge bypass iptables, until
// they are corrected. With --sysctl-problems unready, the agent is not ready until then.
func TestBridgeSettingsOnPackets(t *testing.T) {
	s := newTestbedWith(t, lab.Options{Nodes: 2, Bridged: true})
	s.write("policies.yaml", policies(demo1))
	s.sysctl(t, sysctlVLAN, "1")
	s.start("--sysctl-problems", "unready", "--guard", "off")
	s.awaitNoProblems(t)
	for i, f := range families {
		path := []string{sysctlIPv4, sysctlIPv6}[i]
		name := strings.ReplaceAll(path, "/", ".")
		t.Run(name, func(t *testing.T) {
			to := netip.AddrPortFrom(f.addr(s.host("default/db")), 6379)
			mark := s.agent.Mark()
			s.sysctl(t, path, "0")
			s.awaitProblem(t, "sysctl "+name+", br0: is 0: ")
			s.awaitProblem(t, "sysctl -w "+name+"=1")
			if status, _, stderr := sluice(t, "status", "--socket", s.socket, "--self"); status != exitFindings || !strings.Contains(stderr, name) {
				t.Errorf("the probe: status %d, %s", status, stderr)
			}
			if r := s.host("default/other").Connect(t.Context(), "tcp", to, waitTimeout); r.Outcome != lab.Reached {
				t.Errorf("the reported setting stops a denied connection: %v", r.Outcome)
			}
			if f.name == "IPv4" { // the attribute of the bridge has the same effect as the sysctl
				if err := s.Nodes[0].Run("ip", "link", "set", lab.BridgeDevice, "type", "bridge", "nf_call_iptables", "1"); err != nil {
					t.Fatal(err)
				}
				s.awaitNoProblems(t)
				if r := s.host("default/other").Connect(t.Context(), "tcp", to, probeTimeout); r.Outcome != lab.TimedOut {
					t.Errorf("no problem is reported, but a denied connection is not dropped: %v", r.Outcome)
				}
				return
			}
			s.sysctl(t, path, "1")
			s.await(mark, "the setting is right again", agenttest.Event(event.SettingRight))
			s.awaitNoProblems(t)
			if told := s.agent.Since(mark, agenttest.Event(event.SettingWrong)); len(told) != 1 {
				t.Errorf("the problem was logged %d times, want once", len(told))
			}
		})
	}
	if s.taggedArrives(t) {
		t.Error("with all settings on, a frame with a VLAN tag bypasses iptables")
	}
	s.sysctl(t, sysctlVLAN, "0")
	s.awaitProblem(t, "sysctl net.bridge.bridge-nf-filter-vlan-tagged, br0: is 0: ")
	if !s.taggedArrives(t) {
		t.Error("with the reported setting, a frame with a VLAN tag does not bypass iptables")
	}
}

// If the guard runs, the agent does not report a wrong value of sysctlVLAN: frames with VLAN tags
// cannot bypass iptables, because the guard drops all of them.
func TestGuardReplacesVLANSettingOnPackets(t *testing.T) {
	s := newTestbedWith(t, lab.Options{Nodes: 2, Bridged: true})
	s.write("policies.yaml", policies(demo1))
	s.sysctl(t, sysctlVLAN, "0")
	s.start("--sysctl-problems", "unready")
	s.awaitNoProblems(t)
	if s.taggedArrives(t) {
		t.Error("a frame with a VLAN tag passes iptables by")
	}
	s.sysctl(t, sysctlIPv6, "0") // the guard does not replace this setting
	s.awaitProblem(t, "sysctl net.bridge.bridge-nf-call-ip6tables, br0: is 0: ")
}

// taggedArrives reports whether default/db receives a datagram that policies deny. The datagram
// is from default/other, and its frame has a VLAN tag with ID 0.
func (s *testbed) taggedArrives(t *testing.T) bool {
	t.Helper()
	from, to := s.host("default/other"), s.host("default/db")
	listener, err := to.ListenUDP(netip.AddrPortFrom(to.IPv4, 9999))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	frame := slices.Concat(to.MAC(), from.MAC(), []byte{0x81, 0, 0, 0, 0x08, 0}, udpPacket(from.IPv4, to.IPv4, 9999, 9999, "tagged"))
	if err := from.SendFrame(frame); err != nil {
		t.Fatal(err)
	}
	if err := listener.SetReadDeadline(time.Now().Add(probeTimeout)); err != nil {
		t.Fatal(err)
	}
	n, _ := listener.Read(make([]byte, 64))
	return n > 0
}

// On a node without a bridge with pods, no setting is reported.
func TestNoBridgeNoSettingsOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	for _, path := range []string{sysctlIPv4, sysctlIPv6, sysctlVLAN} {
		s.sysctl(t, path, "0")
	}
	for _, args := range [][]string{{"link", "add", "docker0", "type", "bridge"}, {"addr", "add", "172.17.0.1/16", "dev", "docker0"}, {"link", "set", "docker0", "up"}} {
		if err := s.Nodes[0].Run("ip", args...); err != nil {
			t.Fatal(err)
		}
	}
	s.start("--sysctl-problems", "unready", "--pod-cidrs", s.Nodes[0].Pods4.String()+","+s.Nodes[0].Pods6.String())
	s.awaitNoProblems(t)
}

// podObject returns the API object of a pod on node-1.
func (s *testbed) podObject(name, role string, h *lab.Host) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"role": role}, CreationTimestamp: metav1.Now()},
		Spec:       corev1.PodSpec{NodeName: s.Nodes[0].Name, Containers: []corev1.Container{{Name: "c"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, a := range h.Addrs() {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	for _, a := range s.Nodes[0].Addrs() {
		p.Status.HostIPs = append(p.Status.HostIPs, corev1.HostIP{IP: a.String()})
	}
	return p
}

// Even if the Node has no spec.podCIDR, the policies isolate a new pod in both directions from
// its first packet. Its allowed packets are held until the agent knows the pod.
func TestFirstPacketWithoutPodCIDROnPackets(t *testing.T) {
	for name, bridged := range map[string]bool{"routed": false, "bridged": true} {
		t.Run(name, func(t *testing.T) {
			s := newTestbedWith(t, lab.Options{Nodes: 2, Bridged: bridged})
			s.write("policies.yaml", policies(demo1, "default/mute: {podSelector: {matchLabels: {role: mute}}}",
				"default/silent: {podSelector: {matchLabels: {role: mute}}, policyTypes: [Egress]}"))
			s.sysctl(t, sysctlVLAN, "1")
			api := s.serveAPI(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.Nodes[0].Name}}, nil)
			s.startFollowing(api.kubeconfig, "--hold", waitTimeout.String())
			for i, role := range []string{"mute", "frontend"} {
				s.startPod(t, api, fmt.Sprintf("start-%d", i), role, role == "frontend", !bridged)
			}
			s.awaitNoProblems(t)
		})
	}
}

// startPod starts a pod. Before the agent knows the pod, the pod opens connections, and another pod
// connects to it. When the agent holds the first packets of these connections, startPod creates
// the API object of the pod. If allowed is set, all connections must then succeed; otherwise, none
// may succeed. ownRoute states that the node has a host route to the pod.
func (s *testbed) startPod(t *testing.T, api *standIn, name, role string, allowed, ownRoute bool) {
	t.Helper()
	pod, err := s.Nodes[0].AddPod(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.Serve("tcp", 6379); err != nil {
		t.Fatal(err)
	}
	if ownRoute { // otherwise the addresses are in the bridge's range, which is pending already
		for _, a := range pod.Addrs() {
			s.awaitPending(t, a)
		}
	}
	want, limit := lab.TimedOut, 2*probeTimeout
	if allowed {
		want, limit = lab.Reached, waitTimeout
	}
	before, tries := s.held(t), 0
	var wait sync.WaitGroup
	for _, f := range families {
		for _, way := range []struct {
			from, to *lab.Host
			port     uint16
		}{{pod, s.host("default/web"), 80}, {s.host("default/other"), pod, 6379}} {
			tries++
			wait.Go(func() {
				if r := way.from.Connect(t.Context(), "tcp", netip.AddrPortFrom(f.addr(way.to), way.port), limit); r.Outcome != want {
					t.Errorf("%s, over %s: %s to %s: %v, want %v", role, f.name, way.from.Name, way.to.Name, r.Outcome, want)
				}
			})
		}
	}
	for end := time.Now().Add(waitTimeout); s.held(t) < before+tries; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("%s: of %d packets, only %d are held", role, tries, s.held(t)-before)
			break
		}
	}
	api.Set(s.podObject(name, role, pod))
	wait.Wait()
}

// awaitPending waits until an address is pending: the agent expects a pod with this address.
func (s *testbed) awaitPending(t *testing.T, addr netip.Addr) {
	t.Helper()
	s.await(0, "the range of "+addr.String(), func(l agenttest.Line) bool {
		return l.Is(event.RangesDerived) && strings.Contains(fmt.Sprint(l["ranges"]), netip.PrefixFrom(addr, addr.BitLen()).String())
	})
}

// held returns the number of packets that have been held so far.
func (s *testbed) held(t *testing.T) int {
	t.Helper()
	_, out, _ := sluice(t, "status", "--socket", s.socket, "-o", "json")
	var status struct{ Packets struct{ Held int } }
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return status.Packets.Held
}

// With kube-proxy's route_localnet and rp_filter 0, the kernel accepts packets from pods
// with a loopback source. The agent's rules drop these packets.
func TestLoopbackSourcesOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(db("[{ports: [{protocol: UDP, port: 53}]}]")))
	s.sysctl(t, "net/ipv4/conf/all/route_localnet", "1")
	for _, conf := range []string{"all", "default", s.host("default/web").RouterDevice()} {
		s.sysctl(t, "net/ipv4/conf/"+conf+"/rp_filter", "0")
	}
	pr := s.newProber(t, false)
	forged := func(source string) (packet []byte, text string) {
		text = "from " + source
		packet = pr.udpTo(9, text)
		from := netip.MustParseAddr(source).As4()
		copy(packet[12:], from[:])
		copy(packet[10:], []byte{0, 0})
		binary.BigEndian.PutUint16(packet[10:], checksum(packet[:20]))
		copy(packet[26:], []byte{0, 0}) // 0 means that there is no UDP checksum
		return packet, text
	}
	if !pr.arrives(forged("127.0.0.2")) {
		t.Fatal("even without an agent, the packet does not arrive, so the test shows nothing")
	}
	s.start()
	for _, source := range []string{"127.0.0.1", "127.0.0.2", "127.255.255.254", s.Nodes[0].IPv4.String()} {
		if pr.arrives(forged(source)) {
			t.Errorf("a packet with source %s arrives", source)
		}
	}
	s.awaitNoProblems(t)
}
