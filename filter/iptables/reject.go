package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"sluice/filter/event"
)

// A denied packet is rejected in the table filter, because the kernel allows the target REJECT
// only there, and only in INPUT, FORWARD and OUTPUT. The kernel then makes the answer: with the
// right sequence numbers, and from the address that the sender has talked to. It answers no later
// fragments, broadcasts, resets or ICMP errors.
//
// So while something may be rejected, forwarded packets are judged in mangle's FORWARD, where
// the addresses are those of POSTROUTING. A packet to reject gets RevokedMark in its packet
// mark, and the first rule of filter's FORWARD rejects it. POSTROUTING drops what still has the
// mark, and judges what FORWARD has not seen: these packets are dropped if they are denied.
// Packets to the node take the same way in INPUT.
//
// Packets of allowed connections do not enter these chains: see conditions. A jump with a condition
// costs such a packet a third of what a rule at the begin of the chain costs it.
//
// A live connection that is no longer allowed has RevokedMark in its connection mark. If its
// packets are to be rejected, it has AllowedMark too.
const (
	// forwardChain is the chain that mangle's FORWARD jumps to.
	forwardChain = Chain + "-FORWARD"
	// refuseChain marks a packet that is to be rejected.
	refuseChain = Chain + "-REFUSE"
	// rejectChain is the chain in the table filter.
	rejectChain = Chain + "-REJECT"
)

// RejectMark is the bit of the packet mark of packets that are to be rejected.
func (o Options) RejectMark() uint32 { return o.RevokedMark }

// conditions returns the conditions of the jumps that not all packets take, by the chains that
// they lead to.
//
// Only packets of a connection whose mark is not that of allowed ones are judged in FORWARD. The
// others are left to POSTROUTING, which drops them if they are denied. So three kinds of packets are
// never rejected in FORWARD:
//
//   - Packets of allowed connections.
//   - The first packets of a connection that a conntrack helper announces (see markRules), if the
//     control connection is allowed. They have its mark. A rule for them would cost every packet of
//     allowed connections as much as this condition.
//   - Packets without a connection (INVALID or UNTRACKED), which connmark never matches. TCP must not
//     answer them: a reset might end an allowed connection, because a segment outside of a connection's
//     window is INVALID, and is denied if policies deny the opposite direction. And the reset would not
//     be tracked either, so POSTROUTING would deny it as a packet of the other pod.
func (o Options) conditions() map[string]string {
	return map[string]string{
		forwardChain: fmt.Sprintf("-m connmark ! --mark %#x/%#x", o.AllowedMark, o.Mask()),
		rejectChain:  fmt.Sprintf("-m mark --mark %#x/%#x", o.RejectMark(), o.RejectMark()),
	}
}

// forwardRules returns the rules of forwardChain. They leave two kinds of packets to POSTROUTING:
// those that it allows, so that only one chain marks connections; and those that it drops without
// an answer.
func (o Options) forwardRules(f Family, last ...string) []string {
	rules := []string{
		// A worker has allowed the packet. POSTROUTING marks its connection.
		fmt.Sprintf("-m mark --mark %#x/%#x -j RETURN", o.AllowedMark, o.AllowedMark),
		o.judgedRejected(),
	}
	rules = append(rules, o.revokedRules(o.refuseRevoked()...)...)
	if o.LaterPin != "" {
		// It precedes the rules that let packets pass: each of them leaves the packet to POSTROUTING,
		// too, and together they cost 200 ns. Packets of revoked connections do not come here: their
		// reverse flow may be remembered as allowed.
		rules = append(rules, fmt.Sprintf("-m bpf --object-pinned %s -j RETURN", o.LaterPin))
	}
	rules = append(append(rules, "-m addrtype --src-type LOCAL -j RETURN"), o.exemptRules(f)...)
	return inChain(forwardChain, slices.Concat(rules, o.askAboutServices(last), o.refuseRemembered(), last))
}

// translatedAtPort matches TCP through a Service from a port of a bridge. The kernel would send
// a reset for such a packet directly out of the port, without address translation
// (nf_send_reset), and the client would ignore it. So the client gets an ICMP error instead.
const translatedAtPort = "-p tcp -m conntrack --ctstate DNAT -m physdev --physdev-is-in"

// askAboutServices returns the rules that queue the packets of translatedAtPort even if the kernel
// remembers that they are rejected. Without the queue, the kernel would send the ICMP error before
// the client's call of connect returns. During this call, TCP ignores ICMP errors
// (LockDroppedIcmps), so the client would notice nothing until it sends again, a second later. The
// way through the queue takes longer than the call.
func (o Options) askAboutServices(last []string) (rules []string) {
	if o.RejectPin == "" || !o.BridgePorts {
		return nil
	}
	for _, rule := range last {
		rules = append(rules, translatedAtPort+" "+rule)
	}
	return rules
}

// judgedRejected returns the rule by which packets with RejectMark leave the chain: the table
// filter rejects them.
func (o Options) judgedRejected() string {
	return fmt.Sprintf("-m mark --mark %#x/%#x -j RETURN", o.RejectMark(), o.RejectMark())
}

// refuseRevoked returns the rule for revoked connections whose packets are rejected.
func (o Options) refuseRevoked() []string {
	return []string{fmt.Sprintf("-m connmark --mark %#x/%#x -g %s", o.Mask(), o.Mask(), refuseChain)}
}

// refuseRemembered returns the rule for packets that the program at RejectPin matches.
// refuseChain marks them to be rejected.
func (o Options) refuseRemembered() []string {
	if o.RejectPin == "" {
		return nil
	}
	return []string{fmt.Sprintf("-m bpf --object-pinned %s -g %s", o.RejectPin, refuseChain)}
}

// passResets returns the rule by which POSTROUTING lets TCP resets of revoked connections pass,
// because the kernel sends them to reject packets of these connections. Resets that a pod sends
// do not come here, because FORWARD has dropped them.
func (o Options) passResets() []string {
	return []string{fmt.Sprintf("-p tcp -m tcp --tcp-flags RST RST -m connmark --mark %#x/%#x -j RETURN", o.Mask(), o.Mask())}
}

// rejects returns the chains of the table filter.
func (o Options) rejects(f Family) map[string][]string {
	prohibited := map[Family]string{IPv4: "icmp-admin-prohibited", IPv6: "icmp6-adm-prohibited"}[f]
	rules := []string{
		// The jumps have the same condition. Without this rule, a jump without it, such as that of an
		// earlier version, would reject all packets.
		fmt.Sprintf("-m mark ! --mark %#x/%#x -j RETURN", o.RejectMark(), o.RejectMark()),
		// Clear the mark: with the sysctl fwmark_reflect, the answer inherits it, and POSTROUTING
		// would drop an answer with the mark.
		fmt.Sprintf("-j MARK --set-xmark 0x0/%#x", o.RejectMark()),
	}
	// TCP of no connection that does not begin one is never answered, as in FORWARD; see conditions. Only
	// what a pod sends to its node comes here, and the log of denials calls it rejected.
	rules = append(rules, "-p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate INVALID,UNTRACKED -j DROP")
	if o.BridgePorts && f == IPv4 {
		// For IPv4, the kernel decides by the packet's route whether it may answer a TCP segment. A
		// broadcast or multicast packet that a bridge sends out of its ports has no route. So the
		// kernel would send a reset for each port, from the group's address (nf_send_reset).
		rules = append(rules, "-m addrtype --dst-type BROADCAST,MULTICAST -j DROP")
	}
	if o.BridgePorts {
		rules = append(rules, translatedAtPort+" -j REJECT --reject-with "+prohibited)
	}
	rules = append(rules, "-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT --reject-with "+prohibited)
	return map[string][]string{rejectChain: inChain(rejectChain, rules)}
}

// SetReject sets whether denied packets may be rejected. It updates existing rules before it
// returns. After an error, Run keeps trying.
func (m *Manager) SetReject(ctx context.Context, reject bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := m.opts.Reject != reject
	m.opts.Reject, m.all.Reject = reject, reject
	if !reject {
		m.rejects.Store(false)
	}
	return m.rewrite(ctx, changed)
}

// Rejects reports whether the rules of all tables reject packets with RejectMark. It is cheap
// enough to be called for each packet.
func (m *Manager) Rejects() bool { return m.rejects.Load() }

// noteRejects sets what Rejects returns.
func (m *Manager) noteRejects() {
	all := m.opts.Reject && m.keep
	for _, t := range m.tables {
		all = all && t.rejects
	}
	m.rejects.Store(all)
}

// logRejects logs once that packets of a table cannot be rejected although they should be.
// completeParts logs that they can be again.
func (m *Manager) logRejects(t *keptTable) {
	off := t.lacks.Reject
	if reduced := t.reduced.Load(); off && !t.rejectOff && reduced != nil {
		m.log.Warn("denied packets are dropped instead of rejected; trying again", event.RejectOff.Attr(), "table", t.String(), "because", *reduced)
	}
	t.rejectOff = off
}

var errNoReject = errors.New("cannot reject packets")

// put makes a table and its companion have the rules of the options, and returns the
// differences. It writes the rules that reject before the rules that mark packets to be rejected,
// and removes them in the opposite order.
func (t *keptTable) put(ctx context.Context, o Options) (wrong []string, err error) {
	t.rejects = t.rejects && o.Reject
	if o.Reject {
		if wrong, err = t.putRejects(ctx, o); err != nil {
			t.rejects = false
			return wrong, fmt.Errorf("%w: %w", errNoReject, err)
		}
	}
	more, err := t.ensure(ctx, o.chains(t.Family()))
	wrong = append(wrong, more...)
	if err != nil {
		return wrong, err
	}
	t.rejects = o.Reject
	if !o.Reject {
		t.clearRejects(ctx)
	}
	return wrong, nil
}

// putRejects makes the companion of a table have the rules that reject.
func (t *keptTable) putRejects(ctx context.Context, o Options) ([]string, error) {
	c := t.filter
	if c == nil {
		return nil, errors.New("there is no table filter")
	}
	c.used = true
	c.attend(true)
	wrong, err := c.ensure(ctx, o.rejects(t.Family()))
	for i := range wrong {
		wrong[i] = "table filter: " + wrong[i]
	}
	return wrong, err
}

// clearRejects removes the rules that reject, if the table filter may have any. After a failure,
// the next check tries again. The rules that are left have no effect, because no packet gets the
// mark that they match.
func (t *keptTable) clearRejects(ctx context.Context) {
	c := t.filter
	if c == nil || !c.used {
		return
	}
	if _, err := cleanTable(ctx, c); err == nil {
		c.used, c.right = false, false
		c.attend(false)
	}
}

// current reports whether the last check found the rules right, at the given generation of the
// table. If the companion has rules, the same must be true of the companion.
func (t *keptTable) current(generation uint32) bool {
	return t.right && t.generation == generation && (t.filter == nil || !t.rejects || t.filter.current(generation))
}
