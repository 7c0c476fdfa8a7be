package iptables

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
)

const (
	// inputChain is the chain that INPUT jumps to. It selects packets by their source.
	inputChain = Chain + "-INPUT"
	// nodeChain handles what pods send to this node. It is a separate chain, so that only
	// packets whose source inputChain selects traverse its rules.
	nodeChain = Chain + "-NODE"
)

// nodeSources returns the rules of inputChain: one for each range of NodeSources of the
// family. Packets of other sources do not reach nodeChain, so that the node stays reachable for
// them if no agent answers the queues. Each range costs some 10 ns for each packet that
// the node receives and that has another source.
func (o Options) nodeSources(f Family) (rules []string) {
	for _, p := range o.NodeSources {
		switch {
		case p.Addr().Is4() != (f == IPv4):
		case p.Bits() == 0: // iptables does not print such a range
			rules = append(rules, "-g "+nodeChain)
		default:
			rules = append(rules, fmt.Sprintf("-s %s -g %s", p.Masked(), nodeChain))
		}
	}
	if len(rules) > 0 {
		// Packets that the node sends to itself pass. Their source may be the address of a
		// bridge, which may be in a range of pods.
		rules = slices.Insert(rules, 0, "-i lo -j RETURN")
	}
	return inChain(inputChain, rules)
}

// nodeRules returns the rules of nodeChain. They are those of Chain, with three exceptions. No
// rule lets packets from the node pass, because inputChain sends only packets from pods here. One program
// matches all packets that may pass, right before the queue.
// And a packet that the BPF cache allows does not mark its connection: IPVS translates packets
// after this chain, and POSTROUTING, which judges them by their real destination, would take
// the mark for a verdict.
func (o Options) nodeRules(f Family, last ...string) []string {
	var rules, revoked, refuse []string
	if o.Reject {
		rules, revoked = []string{o.judgedRejected()}, o.refuseRevoked()
		refuse = slices.Concat(o.askAboutServices(last), o.refuseRemembered())
	}
	rules = slices.Concat(rules, o.markRules(), o.revokedRules(revoked...), o.exemptRules(f), o.cacheRules(o.AllowPin, "-j RETURN", refuse...), last)
	return inChain(nodeChain, rules)
}

// SetNodeSources sets the source addresses whose packets to this node need a verdict. If there
// are none, no packet to this node needs a verdict. SetNodeSources updates existing rules before
// it returns. After an error, Run keeps trying.
//
// If sources is not empty, a rule jumps from INPUT to inputChain; otherwise this rule is
// deleted. The built-in chain INPUT is never removed, so that no queued packet is lost.
func (m *Manager) SetNodeSources(ctx context.Context, sources []netip.Prefix) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := !slices.Equal(m.opts.NodeSources, sources)
	m.opts.NodeSources, m.all.NodeSources = sources, sources
	return m.rewrite(ctx, changed)
}
