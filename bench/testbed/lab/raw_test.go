package lab_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/bench/testbed/lab"
)

// build makes an IP packet of a protocol for which no host has a socket.
func build(t *testing.T, from, to *lab.Host, v6 bool, payload []byte) []byte {
	t.Helper()
	ip4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolSCTP, SrcIP: from.IPv4.AsSlice(), DstIP: to.IPv4.AsSlice()}
	ip6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolSCTP, SrcIP: from.IPv6.AsSlice(), DstIP: to.IPv6.AsSlice()}
	b := gopacket.NewSerializeBuffer()
	var ip gopacket.SerializableLayer = ip4
	if v6 {
		ip = ip6
	}
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSendAndSniff(t *testing.T) {
	l := lab.ForTest(t, lab.Options{Nodes: 2})
	web, db := addPod(t, l.Nodes[0], "web"), addPod(t, l.Nodes[1], "db")
	s, err := db.Sniff()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), attemptTimeout)
	defer cancel()
	for _, v6 := range []bool{false, true} {
		want := build(t, web, db, v6, []byte("eight by"))
		if err := web.Send(want); err != nil {
			t.Fatal(err)
		}
		got, err := s.Await(ctx, func(p []byte) bool { return bytes.HasSuffix(p, []byte("eight by")) })
		if err != nil {
			t.Fatal(err)
		}
		// Three routers have decremented the TTL.
		if ttl := got[8-int(got[0]>>4)/6]; ttl != 61 {
			t.Errorf("TTL %d, want 61: % x", ttl, got)
		}
		if len(got) != len(want) {
			t.Errorf("got % x, want % x", got, want)
		}
	}
	// The pod's own kernel would not send this packet, because its length is wrong.
	malformed := build(t, web, db, false, nil)
	malformed[3] = 19
	n, err := l.Nodes[0].Sniff()
	if err != nil {
		t.Fatal(err)
	}
	if err := web.Send(malformed); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Await(ctx, func(p []byte) bool { return bytes.Equal(p, malformed) }); err != nil {
		t.Error(err)
	}
	cancel()
	if _, err := s.Next(ctx); err == nil {
		t.Error("Next returns a packet after its context has ended")
	}
}

// One CPU handles all packets that a host receives. Otherwise a packet can overtake another when
// its sender moves to another CPU.
func TestOneCPUHandlesAllPackets(t *testing.T) {
	if _, err := os.Stat("/proc/sys/net/core/rps_default_mask"); err != nil {
		t.Skipf("needs Linux 6.3: %v", err)
	}
	for _, bridged := range []bool{false, true} {
		l := lab.ForTest(t, lab.Options{Bridged: bridged})
		for _, h := range []*lab.Host{l.Nodes[0].Host, l.Outside, addPod(t, l.Nodes[0], "web")} {
			// A mount of sysfs shows the interfaces of the namespace in which it was made.
			cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount -t sysfs sysfs /sys && grep -H . $(find -L /sys/class/net -maxdepth 4 -name rps_cpus -not -path "*/lo/*")`)
			masks, err := h.Output(cmd)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(masks) {
				_, mask, _ := strings.Cut(strings.TrimSpace(line), ":")
				if mask = strings.TrimLeft(mask, "0,"); mask != "1" {
					t.Errorf("%s: the CPUs that handle packets of an interface are %q, want the first alone: %s", h.Name, mask, line)
				}
			}
		}
	}
}
