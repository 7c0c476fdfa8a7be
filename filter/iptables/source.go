package iptables

import (
	"fmt"
	"strings"
)

// sources returns the rules that drop packets with a forged source: an address of this node, or
// the packet's own destination. The rules are in PREROUTING, before address translation. There
// they can distinguish forged packets from legitimate ones:
//
//   - A legitimate packet with a source of the node arrives only over loopback, or as a copy of
//     the node's own multicast. A rule lets loopback pass, and "rpfilter --invert" does not match
//     the copies. So a packet that passes the rules with a source of the node is from the node.
//   - No legitimate packet arrives with a source that equals its destination. (If a pod reaches
//     itself through a Service, address translation later makes them equal. Decide allows such
//     a packet, in POSTROUTING.)
//
// rpfilter could check all sources, but it would also drop packets on legitimate asymmetric
// routes. The package guard knows which interfaces may have such routes.
//
// Every packet of the node traverses this chain. Packets of established connections leave it at
// the first rule: the other rules took 3% of a packet's time for IPv4 and 13% for IPv6, mostly
// for the route lookup. To forge a packet of an established connection, an attacker must guess
// the connection's ports and sequence numbers. At pods' interfaces, the guard checks every packet.
//
// If the guard's programs check the same sources at every interface of the node, the chain is
// omitted: see Options.Guarded.
func (o Options) sources(f Family) []string {
	rules := []string{
		"-m conntrack --ctstate ESTABLISHED -j RETURN",
		"-i lo -j RETURN",
		fmt.Sprintf("-m bpf --bytecode %q -j DROP", sameAddress(f)),
		"-m addrtype --src-type LOCAL -m rpfilter --invert -j DROP",
	}
	if o.AnySource {
		rules = rules[1:2] // keep one rule that drops nothing, because a wanted chain must have a rule
	}
	for i := range rules {
		rules[i] = "-A " + sourceChain + " " + rules[i]
	}
	return rules
}

// The instructions of classic BPF that sameAddress uses.
const (
	bpfLoad      = 0x20 // BPF_LD|BPF_W|BPF_ABS: load a word of the packet into A
	bpfToX       = 0x07 // BPF_MISC|BPF_TAX: copy A to X
	bpfJumpEqual = 0x1d // BPF_JMP|BPF_JEQ|BPF_X: jump to one place if A equals X, otherwise to another
	bpfReturn    = 0x06 // BPF_RET|BPF_K: return a constant
)

// sameAddress returns the text of a classic BPF program, in the form that iptables accepts and
// prints. The program matches packets whose source equals their destination; no other match of
// iptables compares two fields of a packet. The program is part of the rule: unlike the programs
// of cache/bpf, it needs neither the system call bpf nor a pinned file.
func sameAddress(f Family) string {
	at, words := 12, 1 // the source in an IPv4 header: its offset in bytes, and its length in 32-bit words
	if f == IPv6 {
		at, words = 8, 4
	}
	const each = 4
	code := []string{fmt.Sprint(each*words + 2)}
	for i := range words {
		// The variable "differ" is the number of instructions to skip if two words are not
		// equal, so that the program goes on with its last instruction, which returns 0 (no
		// match).
		differ := each*(words-i) - each + 1
		code = append(code,
			fmt.Sprintf("%d 0 0 %d", bpfLoad, at+4*i),
			fmt.Sprintf("%d 0 0 0", bpfToX),
			fmt.Sprintf("%d 0 0 %d", bpfLoad, at+4*(words+i)),
			fmt.Sprintf("%d 0 %d 0", bpfJumpEqual, differ))
	}
	return strings.Join(append(code, fmt.Sprintf("%d 0 0 1", bpfReturn), fmt.Sprintf("%d 0 0 0", bpfReturn)), ",")
}
