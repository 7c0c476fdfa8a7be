//go:build linux

package main

import (
	"context"
	"testing"
	"time"
)

// When a pod is deleted, its connections are revoked. So they do not reach the next pod
// with the same address before the agent knows that pod and has judged them again.
func TestFlowsEndWithTheirPodOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.start("--pod-cidrs", startRange4.String())
	manifest, conn := s.startLatePod(t)
	s.save("late.yaml", manifest)
	send(t, conn) // judged; the verdict applies as long as the connection is tracked
	if _, err := conn.Read(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	if _, err := s.agent.Remove(ctx, "late.yaml"); err != nil {
		t.Fatal(err)
	}
	before := s.dropped("iptables")
	send(t, conn)
	s.awaitDrop(t, "iptables", before)
	s.save("late.yaml", manifest) // a new pod has the address, and its flow is allowed
	_ = conn.SetReadDeadline(time.Now().Add(waitTimeout))
	send(t, conn)
	if _, err := conn.Read(make([]byte, 64)); err != nil {
		t.Error(err)
	}
}
