package main

import (
	"os"
	"testing"
)

// TestReplacedPodsCostNothing checks that pods which take the place of others need no verdicts of user
// space. The kernel has those about the others.
func TestReplacedPodsCostNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: BPF programs are loaded and run")
	}
	w, err := newWorld(options{pods: 200, apps: 20, nodes: 10, seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode(w)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	}()
	queued := func() int {
		before := n.queued
		for range 20_000 {
			if err := n.connect(w.connection()); err != nil {
				t.Fatal(err)
			}
		}
		return n.queued - before
	}
	first := queued()
	addr := w.addrs[0]
	for range w.addrs {
		w.replacePod()
	}
	if err := n.commit(); err != nil {
		t.Fatal(err)
	}
	if w.addrs[0] == addr {
		t.Error("a new pod has the address of the old one")
	}
	if again := queued(); first < 100 || again > first/50 {
		t.Errorf("of 20,000 connections, %d were queued; after all pods were replaced, %d", first, again)
	}
}
