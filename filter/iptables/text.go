package iptables

import (
	"fmt"
	"slices"
	"strings"
)

const (
	// Chain is the chain that POSTROUTING jumps to, and judges. A chain is ours if it has
	// this name, or this name and a dash before something else.
	Chain = "SLUICE"
	// allowChain is where a packet goes whose verdict is "allowed". It is a chain
	// so that one test leads to three actions, the last of them "leave": were the
	// packet mark cleared on the way through Chain, an allowed packet without a
	// conntrack entry would be queued again, for ever.
	allowChain = Chain + "-ALLOW"
	// sourceChain is the chain that PREROUTING jumps to.
	sourceChain = Chain + "-SOURCE"

	table = "mangle"
)

// entry is a built-in chain of the table, and the chain of ours that its first rule
// jumps to.
type entry struct {
	name, chain string
}

// entries are those that we use, in the order in which a packet meets them.
var entries = []entry{{"PREROUTING", sourceChain}, {"POSTROUTING", Chain}}

// entriesOf are those that lead to chains that are wanted.
func entriesOf(want map[string][]string) (wanted []entry) {
	for _, e := range entries {
		if _, is := want[e.chain]; is {
			wanted = append(wanted, e)
		}
	}
	return wanted
}

// jump is the rule that leads from the one to the other.
func (e entry) jump() string { return "-A " + e.name + " -j " + e.chain }

// ours are the names of the chains that we keep, in the order in which they are made. Where
// the guard drops forged sources, the last one is left out.
var ownedChains = []string{Chain, allowChain, sourceChain}

// isOwned says whether a chain belongs to a Sluice, this version or another.
func isOwned(chain string) bool {
	return chain == Chain || strings.HasPrefix(chain, Chain+"-")
}

// What the families call ICMP, in the spelling of iptables-save, and the types
// of IPv6 neighbour discovery (RFC 4861): without them no neighbour is found,
// and so nothing gets through at all.
var (
	icmp               = map[Family]string{IPv4: "icmp", IPv6: "ipv6-icmp"}
	neighbourDiscovery = map[Family][]int{IPv6: {133, 134, 135, 136, 137}}
)

// chains are the rules of each of our chains, spelled as iptables-save spells
// them, so that what is read back can be compared.
func (o Options) chains(f Family) map[string][]string {
	return o.chainsWith(f, append(o.overflow(), o.queue())...)
}

// paused returns the same chains without the queues.
func (o Options) paused(f Family, packets Unqueued) map[string][]string {
	if packets == PassUnqueued {
		return o.chainsWith(f, "-j RETURN")
	}
	return o.chainsWith(f, "-j DROP")
}

func (o Options) chainsWith(f Family, last ...string) map[string][]string {
	chains := map[string][]string{
		Chain: o.mainRules(f, last...),
		allowChain: {
			// Without a connection, which is so for what conntrack calls INVALID or
			// UNTRACKED, there is nothing to save, and each packet is asked about.
			fmt.Sprintf("-A %s -j CONNMARK --set-xmark %#x/%#x", allowChain, o.AllowedMark, o.Mask()),
			// Cleared, so that nobody behind us meets it, or a tunnel's packet around
			// this one.
			fmt.Sprintf("-A %s -j MARK --set-xmark 0x0/%#x", allowChain, o.AllowedMark),
		},
	}
	if !o.Guarded {
		chains[sourceChain] = o.sources(f)
	}
	return chains
}

// judge is the chain that all packets to be judged run through. Most packets
// belong to judged connections and leave at the second rule. That one comes
// before the test for the node's own address, which costs a look into the
// routing table; the order of these two changes no packet's fate.
func (o Options) mainRules(f Family, last ...string) []string {
	rules := []string{
		// The queue's answer: the same packet again, with our bit in its mark.
		// --goto leaves Chain too, when allowChain ends.
		fmt.Sprintf("-m mark --mark %#x/%#x -g %s", o.AllowedMark, o.AllowedMark, allowChain),
		// A connection that a helper expects, such as the data of FTP, starts with
		// the mark of the one that announced it. It is RELATED until its first
		// reply, and judged by itself.
		fmt.Sprintf("-m connmark --mark %#x/%#x -m conntrack ! --ctstate RELATED -j RETURN", o.AllowedMark, o.Mask()),
		// Traffic from the pod's own node is always allowed, which is what lets
		// probes pass. The test is of this network namespace's addresses; sourceChain
		// has dropped what others sent from them.
		"-m addrtype --src-type LOCAL -j RETURN",
		fmt.Sprintf("-m connmark --mark %#x/%#x -j DROP", o.RevokedMark, o.RevokedMark),
		// Replies, and errors about them. A connection whose first packet was
		// denied has none.
		"-m conntrack --ctdir REPLY -j RETURN",
		// Of ICMP nothing but errors about a known connection is RELATED.
		fmt.Sprintf("-p %s -m conntrack --ctstate RELATED -j RETURN", icmp[f]),
	}
	for _, t := range neighbourDiscovery[f] {
		// A router has lowered the hop limit of all that it forwards, and who gets
		// such a message from further away must ignore it (RFC 4861). So what
		// claims to be one and comes through us is judged.
		rules = append(rules, fmt.Sprintf("-p %s -m icmp6 --icmpv6-type %d -m hl --hl-eq 255 -j RETURN", icmp[f], t))
	}
	rules = append(append(rules, o.cacheRules()...), last...)
	for i := range rules {
		rules[i] = "-A " + Chain + " " + rules[i]
	}
	return rules
}

// remembered are the rules that spare the way to the queue. They come last, so
// that a packet which leaves before costs nothing here, and none that is dropped
// before is saved by what was remembered. What a program allows takes the same way
// as the queue's answer.
func (o Options) cacheRules() (rules []string) {
	if o.AllowPin != "" {
		rules = append(rules, fmt.Sprintf("-m bpf --object-pinned %s -g %s", o.AllowPin, allowChain))
	}
	if o.DenyPin != "" {
		rules = append(rules, fmt.Sprintf("-m bpf --object-pinned %s -j DROP", o.DenyPin))
	}
	return rules
}

// queue is the rule that asks. The kernel chooses among the queues by a hash of
// both addresses and, for IPv4, the protocol, in which the direction makes no
// difference (nfqueue_hash): all packets between two addresses stay in order,
// and two busy addresses have one worker.
func (o Options) queue() string {
	rule := fmt.Sprintf("-j NFQUEUE --queue-num %d", o.FirstQueue)
	if o.Queues > 1 {
		rule = fmt.Sprintf("-j NFQUEUE --queue-balance %d:%d", o.FirstQueue, int(o.FirstQueue)+o.Queues-1)
	}
	return rule + o.bypass()
}

// bypass is what a rule that asks says of packets for which there is nobody to ask.
func (o Options) bypass() string {
	if o.FailOpen {
		return " --queue-bypass"
	}
	return ""
}

// Wanted is the text of the rules for one family, as iptables-restore --noflush
// takes it: our chains, filled, and last the jump to them.
func (o Options) Wanted(f Family) string {
	want := o.chains(f)
	return change{fill: want, hooked: entriesOf(want)}.text()
}

// change is what a transaction does.
type change struct {
	fill  map[string][]string // chains of ours that get these rules, whatever they held
	stale []string            // rules to take away, "-A CHAIN ..."
	drop  []string            // chains to take away
	// keepDropped empties these chains only, for where something refers to them.
	keepDropped bool
	hooked      []entry // put the jumps of these in the first place
}

// text is the transaction. Chains are made before rules lead to them, and
// emptied before they are dropped.
func (c change) text() string {
	var lines []string
	for _, name := range ownedChains {
		if _, ok := c.fill[name]; ok {
			lines = append(lines, ":"+name+" - [0:0]") // makes it, or empties it
		}
	}
	for _, name := range ownedChains {
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
		lines = append(lines, "-I "+e.name+" 1 -j "+e.chain)
	}
	return strings.Join(slices.Concat([]string{"*" + table}, lines, []string{"COMMIT", ""}), "\n")
}
