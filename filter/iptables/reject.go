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
// right sequence numbers, from the address that the sender has talked to, and never to
// fragments, broadcasts, resets and ICMP errors.
//
// So while something may be rejected, forwarded packets are judged in mangle's FORWARD, where
// the addresses are those of POSTROUTING. A packet to reject gets RevokedMark in its packet
// mark, and the first rule of filter's FORWARD rejects it. POSTROUTING drops what still has the
// mark, and judges what FORWARD has not seen: these packets are dropped if they are denied.
// Packets to the node take the same way in INPUT.
//
// A live connection that is no longer allowed has both bits in its connection mark if its
// packets are rejected, otherwise only RevokedMark.
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

// forwardRules returns the rules of forwardChain. They let pass what POSTROUTING allows, so that
// only that chain marks connections, and what it drops. Packets of allowed connections leave at
// the first rule.
func (o Options) forwardRules(f Family, last ...string) []string {
	rules := []string{
		o.allowedConnection(),
		// The queue has judged the packet. POSTROUTING marks its connection.
		fmt.Sprintf("-m mark --mark %#x/%#x -j RETURN", o.AllowedMark, o.AllowedMark),
		o.judgedRejected(),
		"-m addrtype --src-type LOCAL -j RETURN",
	}
	rules = append(rules, o.exemptRules(f, o.refuseRevoked()...)...)
	if o.LaterPin != "" {
		rules = append(rules, fmt.Sprintf("-m bpf --object-pinned %s -j RETURN", o.LaterPin))
	}
	return inChain(forwardChain, slices.Concat(rules, o.askAboutServices(last), o.refuseRemembered(), last))
}

// translatedAtPort matches TCP through a Service from a port of a bridge. The kernel would send the
// reset of such a packet out of the port itself, without address translation (nf_send_reset), and
// the client would ignore it. So it gets an ICMP error.
const translatedAtPort = "-p tcp -m conntrack --ctstate DNAT -m physdev --physdev-is-in"

// askAboutServices returns the rules that send packets to the queue although a program may tell to
// reject them: the client must get an ICMP error. The kernel makes it, for a remembered verdict,
// before the client's call of connect has returned. TCP keeps no error that arrives in this call
// (LockDroppedIcmps), so the client would wait a second, until it sends again. The way through the
// queue takes longer than the call.
func (o Options) askAboutServices(last []string) (rules []string) {
	if o.RejectPin == "" || !o.BridgePorts {
		return nil
	}
	for _, rule := range last {
		rules = append(rules, translatedAtPort+" "+rule)
	}
	return rules
}

// judgedRejected returns the rule that lets a packet pass that is to be rejected.
func (o Options) judgedRejected() string {
	return fmt.Sprintf("-m mark --mark %#x/%#x -j RETURN", o.RejectMark(), o.RejectMark())
}

// refuseRevoked returns the rule for revoked connections whose packets are rejected.
func (o Options) refuseRevoked() []string {
	return []string{fmt.Sprintf("-m connmark --mark %#x/%#x -g %s", o.Mask(), o.Mask(), refuseChain)}
}

// refuseRemembered returns the rule for packets that a program tells to reject.
func (o Options) refuseRemembered() []string {
	if o.RejectPin == "" {
		return nil
	}
	return []string{fmt.Sprintf("-m bpf --object-pinned %s -g %s", o.RejectPin, refuseChain)}
}

// passResets returns the rule of POSTROUTING that lets the kernel's resets of revoked
// connections pass: they belong to these connections. Resets that a pod sends in such a
// connection do not come here, because FORWARD has dropped them.
func (o Options) passResets() []string {
	return []string{fmt.Sprintf("-p tcp -m tcp --tcp-flags RST RST -m connmark --mark %#x/%#x -j RETURN", o.Mask(), o.Mask())}
}

// rejects returns the chains of the table filter.
func (o Options) rejects(f Family) map[string][]string {
	prohibited := map[Family]string{IPv4: "icmp-admin-prohibited", IPv6: "icmp6-adm-prohibited"}[f]
	rules := []string{
		fmt.Sprintf("-m mark ! --mark %#x/%#x -j RETURN", o.RejectMark(), o.RejectMark()),
		// The answer may inherit the mark (sysctl fwmark_reflect), and POSTROUTING would drop it.
		fmt.Sprintf("-j MARK --set-xmark 0x0/%#x", o.RejectMark()),
	}
	if o.BridgePorts && f == IPv4 {
		// For IPv4, the kernel decides by the packet's route whether a segment must not be
		// answered, and a packet that a bridge distributes to its ports has none. It would send a
		// reset from the group's address for each port (nf_send_reset).
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

// Rejects reports whether the rules in all tables reject packets that are marked so. It may be
// called for each packet.
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
// differences. The rules that reject are written before those that mark packets for them, and
// removed after these.
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

// clearRejects removes the rules that reject, if there may be any. If that fails, the next check
// tries again: without a packet that is marked, they have no effect.
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

// current reports whether the table is known to have had the right rules at the generation.
func (t *keptTable) current(generation uint32) bool {
	return t.right && t.generation == generation && (t.filter == nil || !t.rejects || t.filter.current(generation))
}
