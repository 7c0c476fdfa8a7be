package iptables

import (
	"fmt"
	"slices"
	"strings"
)

const (
	// Chain is the chain that POSTROUTING jumps to. Sluice owns the chain with this name, and
	// all chains whose names begin with this name and a dash.
	Chain = "SLUICE"
	// allowChain has the rules for allowed packets. A rule of Chain jumps to it with -g, so that
	// one match leads to three actions: set the allowed mark on the connection, clear the packet
	// mark, and leave Chain. These cannot be rules of Chain itself: after the packet mark is
	// cleared, no match would recognise an allowed packet without a conntrack entry. The packet
	// would be queued and allowed again, forever.
	allowChain = Chain + "-ALLOW"
	// sourceChain is the chain that PREROUTING jumps to.
	sourceChain = Chain + "-SOURCE"

	table = "mangle"
)

// entry is a built-in chain, also called a hook, and the owned chain that its first rule jumps to.
type entry struct {
	name, chain string
	// when is the condition of the jump, such as "-m mark --mark 0x20/0x20"; empty if it has none.
	when string
}

// jump returns the rule that jumps from the built-in chain to the owned one.
func (e entry) jump() string { return "-A " + e.name + e.rule() }

// insertion returns the line that makes this rule the first of the built-in chain.
func (e entry) insertion() string { return "-I " + e.name + " 1" + e.rule() }

// rule returns the condition and the jump, with a blank before them.
func (e entry) rule() string {
	if e.when == "" {
		return " -j " + e.chain
	}
	return " " + e.when + " -j " + e.chain
}

// isOwned reports whether a chain belongs to this version of Sluice or another.
func isOwned(chain string) bool {
	return chain == Chain || strings.HasPrefix(chain, Chain+"-")
}

// icmp is the name of ICMP as iptables-save prints it. neighbourDiscovery lists the types of
// IPv6 neighbour discovery (RFC 4861): without these messages a node finds no neighbour, and
// no packet passes.
var (
	icmp               = map[Family]string{IPv4: "icmp", IPv6: "ipv6-icmp"}
	neighbourDiscovery = map[Family][]int{IPv6: {133, 134, 135, 136, 137}}
)

// chains returns the rules of each owned chain as iptables-save prints them, so that they
// can be compared with the rules that are read back.
func (o Options) chains(f Family) map[string][]string {
	return o.chainsWith(f, append(o.overflow(), o.queue())...)
}

// paused returns the chains for a pause: they drop or pass packets instead of queueing them.
func (o Options) paused(f Family, packets Unqueued) map[string][]string {
	if packets == PassUnqueued {
		return o.chainsWith(f, "-j RETURN")
	}
	return o.chainsWith(f, "-j DROP")
}

// chainsWith returns the owned chains. Chain ends with the rules in the parameter "last".
func (o Options) chainsWith(f Family, last ...string) map[string][]string {
	chains := map[string][]string{
		Chain: o.mainRules(f, last...),
		allowChain: {
			// Set the allowed mark on the connection. A packet without a conntrack entry (INVALID
			// or UNTRACKED) has no connection mark. So every such packet is queued, even if an
			// earlier packet of the same flow was allowed.
			fmt.Sprintf("-A %s -j CONNMARK --set-xmark %#x/%#x", allowChain, o.AllowedMark, o.Mask()),
			// Clear the packet mark, so that neither later rules nor the outer packet of a tunnel
			// see it.
			fmt.Sprintf("-A %s -j MARK --set-xmark 0x0/%#x", allowChain, o.AllowedMark),
		},
	}
	if o.Reject {
		chains[refuseChain] = []string{fmt.Sprintf("-A %s -j MARK --set-xmark %#x/%#x", refuseChain, o.RejectMark(), o.RejectMark())}
		chains[forwardChain] = o.forwardRules(f, last...)
	}
	if !o.Guarded {
		chains[sourceChain] = o.sources(f)
	}
	if from := o.nodeSources(f); len(from) > 0 {
		chains[inputChain], chains[nodeChain] = from, o.nodeRules(f, last...)
	}
	return chains
}

// mainRules returns the rules of Chain. Most packets belong to allowed connections and leave
// at the second rule. Most other packets begin connections that the kernel remembers as allowed, and leave
// at the rule of forwardedRules. Both rules precede the test for the node's own addresses, because that
// test is a lookup in the routing table, which takes 170 ns for IPv4 and 450 ns for IPv6.
func (o Options) mainRules(f Family, last ...string) []string {
	rules, revoked := o.markRules(), []string(nil)
	if o.Reject {
		// FORWARD has judged the packet, but the table filter has not rejected it.
		rules = append(rules, fmt.Sprintf("-m mark --mark %#x/%#x -j DROP", o.RejectMark(), o.RejectMark()))
		revoked = o.passResets()
	}
	rules = append(append(rules, o.forwardedRules()...),
		// Traffic from the pod's own node is always allowed, for the sake of probes. The match
		// covers the addresses of this network namespace; sourceChain has dropped packets of
		// other senders with such a source.
		"-m addrtype --src-type LOCAL -j RETURN")
	rules = slices.Concat(rules, o.revokedRules(revoked...), o.exemptRules(f))
	return inChain(Chain, slices.Concat(rules, o.cacheRules(o.OthersPin, "-g "+allowChain), last))
}

// forwardedRules returns the rule for forwarded packets that the kernel remembers as allowed. It
// overtakes other rules, but no policy is applied differently:
//
//   - The rule for this node's own addresses also lets packets pass. A packet that the node sends has
//     arrived on no interface, so the program does not match it.
//   - Packets of a revoked connection that has had a reply are ESTABLISHED. Before the first reply, or if a
//     conntrack helper has announced the connection, the program matches packets only if the policies now allow
//     them, and the next sweep would restore the connection too.
//   - Replies are ESTABLISHED, so that a verdict about the opposite direction is not applied to them.
//   - The program matches no ICMP errors and no neighbor discovery.
//
// ESTABLISHED packets of forwarded connections without the allowed mark are queued. They are rare, because
// the first allowed packet marks its connection.
func (o Options) forwardedRules() []string {
	if o.ForwardedPin == "" {
		return nil
	}
	return []string{fmt.Sprintf("-m conntrack --ctstate INVALID,NEW,RELATED,UNTRACKED -m bpf --object-pinned %s -g %s", o.ForwardedPin, allowChain)}
}

// markRules returns the rules about packets and connections that have been allowed.
func (o Options) markRules() []string {
	return []string{
		// A packet that the queue has allowed comes again, with AllowedMark set. Because of
		// --goto, the end of allowChain is also the end of this chain.
		fmt.Sprintf("-m mark --mark %#x/%#x -g %s", o.AllowedMark, o.AllowedMark, allowChain),
		// A conntrack helper announces some connections, such as a data connection of FTP. The
		// kernel gives them the connection mark of the control connection, so they would pass
		// here without a verdict of their own. Until its first reply, such a connection is
		// RELATED, and this rule excludes RELATED packets.
		o.allowedConnection(),
	}
}

// allowedConnection returns the rule that lets packets of allowed connections pass.
func (o Options) allowedConnection() string {
	return fmt.Sprintf("-m connmark --mark %#x/%#x -m conntrack ! --ctstate RELATED -j RETURN", o.AllowedMark, o.Mask())
}

// revokedRules returns the rules about packets of revoked connections. Those in the parameter
// "special" come first: they handle packets that are not simply dropped.
func (o Options) revokedRules(special ...string) []string {
	return append(slices.Clone(special), fmt.Sprintf("-m connmark --mark %#x/%#x -j DROP", o.RevokedMark, o.RevokedMark))
}

// exemptRules returns the rules about packets that are never queued: replies, ICMP errors and
// neighbour discovery pass. The rules about revoked connections must precede them.
func (o Options) exemptRules(f Family) []string {
	rules := []string{
		// Replies pass, and so do ICMP errors about replies. They need no verdict, because only
		// a connection whose first packet was allowed has replies.
		"-m conntrack --ctdir REPLY -j RETURN",
		// The only RELATED packets of ICMP are errors about a known connection.
		fmt.Sprintf("-p %s -m conntrack --ctstate RELATED -j RETURN", icmp[f]),
	}
	for _, t := range neighbourDiscovery[f] {
		// A receiver must ignore these messages with a hop limit below 255 (RFC 4861), and a
		// router lowers the hop limit. So only messages with 255 pass here; a forwarded one
		// gets a verdict.
		rules = append(rules, fmt.Sprintf("-p %s -m icmp6 --icmpv6-type %d -m hl --hl-eq 255 -j RETURN", icmp[f], t))
	}
	return rules
}

// inChain returns the rules as rules of a chain.
func inChain(chain string, rules []string) []string {
	for i := range rules {
		rules[i] = "-A " + chain + " " + rules[i]
	}
	return rules
}

// cacheRules returns those rules that consult the BPF cache right before the queue (see also
// forwardedRules): packets that leave earlier do not pay for the cache, and a cached verdict cannot override
// an earlier DROP. pin is the path of the program for packets that may pass, and allow is the target for
// packets that it matches. The rules in refuse are about packets that a program denies and that are
// not simply dropped.
func (o Options) cacheRules(pin, allow string, refuse ...string) (rules []string) {
	if pin != "" {
		rules = append(rules, fmt.Sprintf("-m bpf --object-pinned %s %s", pin, allow))
	}
	rules = append(rules, refuse...)
	if o.DenyPin != "" {
		rules = append(rules, fmt.Sprintf("-m bpf --object-pinned %s -j DROP", o.DenyPin))
	}
	return rules
}

// queue returns the NFQUEUE rule. The kernel selects the queue by a hash of both addresses and,
// for IPv4, the protocol; both directions have the same hash (nfqueue_hash). So packets of one
// protocol between two addresses stay in order, and all of them have the same worker, even if
// other workers are idle.
func (o Options) queue() string {
	rule := fmt.Sprintf("-j NFQUEUE --queue-num %d", o.FirstQueue)
	if o.Queues > 1 {
		rule = fmt.Sprintf("-j NFQUEUE --queue-balance %d:%d", o.FirstQueue, int(o.FirstQueue)+o.Queues-1)
	}
	return rule + o.bypass()
}

// bypass returns the option for packets whose queue has no reader.
func (o Options) bypass() string {
	if o.FailOpen {
		return " --queue-bypass"
	}
	return ""
}

// Wanted returns the text of the rules for one family, in the format of iptables-restore
// --noflush: first the owned chains with their rules, last the jumps to them.
func (o Options) Wanted(f Family) string {
	want := o.chains(f)
	text := change{fill: want, hooked: o.entriesOf(mangle, want)}.text(mangle)
	if o.Reject {
		want = o.rejects(f)
		text += change{fill: want, hooked: o.entriesOf(rejecting, want)}.text(rejecting)
	}
	return text
}

// change is the content of a transaction.
type change struct {
	fill  map[string][]string // replaces the rules of these owned chains
	stale []string            // rules to delete, "-A CHAIN ..."
	drop  []string            // chains to delete
	// keepDropped is set if the chains in the list "drop" are emptied and not deleted, because
	// something else, such as another program's rule, still refers to them.
	keepDropped bool
	hooked      []entry // hooks that get their jump as the first rule
}

// text returns the transaction. It creates chains before rules jump to them, and empties chains
// before it deletes them.
func (c change) text(in *layout) string {
	var lines []string
	for _, name := range in.chains {
		if _, ok := c.fill[name]; ok {
			lines = append(lines, ":"+name+" - [0:0]") // creates or empties the chain
		}
	}
	for _, name := range in.chains {
		lines = append(lines, c.fill[name]...)
	}
	for _, rule := range c.stale {
		lines = append(lines, "-D"+strings.TrimPrefix(rule, "-A"))
	}
	for _, name := range c.drop {
		lines = append(lines, "-F "+name)
	}
	for _, name := range c.drop {
		if !c.keepDropped {
			lines = append(lines, "-X "+name)
		}
	}
	for _, e := range c.hooked {
		lines = append(lines, e.insertion())
	}
	return strings.Join(slices.Concat([]string{"*" + in.table}, lines, []string{"COMMIT", ""}), "\n")
}
