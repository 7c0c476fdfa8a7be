package iptables

import (
	"fmt"
	"strings"
)

// sources are the rules that drop packets with sources that only this node, or the
// receiver, can have. They are in PREROUTING, before any translation, because
// later both sources are legitimate:
//
//   - What the node itself sends never comes in, but by loopback, and by the copies
//     of its own multicast, which rpfilter knows and leaves alone. Behind this chain
//     a source that is the node's own is the node's.
//   - A packet whose source is its destination is one of a pod that reaches itself
//     by way of a Service, translated (Decide allows it). None comes in like that.
//
// rpfilter alone would do for more, but it takes an interface to tell which
// asymmetric ways are legitimate; see the package guard.
//
// Every packet of the node meets this chain. The first rule spares those of connections
// that exist the others, which took 3% of a packet's way in IPv4 and 13% in IPv6, most of
// it for the lookup in the routing table. A forger would have to guess the ports of such a
// connection and the place in its stream; at pods' interfaces the guard checks all.
//
// Where the guard's programs check the same at every interface of the node, there is no such
// chain: see Options.Guarded.
func (o Options) sources(f Family) []string {
	rules := []string{
		"-m conntrack --ctstate ESTABLISHED -j RETURN",
		"-i lo -j RETURN",
		fmt.Sprintf("-m bpf --bytecode %q -j DROP", sameAddress(f)),
		"-m addrtype --src-type LOCAL -m rpfilter --invert -j DROP",
	}
	if o.AnySource {
		rules = rules[1:2] // a chain needs a rule
	}
	for i := range rules {
		rules[i] = "-A " + sourceChain + " " + rules[i]
	}
	return rules
}

// The instructions of classic BPF that sameAddress uses.
const (
	bpfLoad   = 0x20 // a word of the packet
	bpfKeep   = 0x07 // that word, to compare the next with
	bpfDiffer = 0x1d // jump if they differ
	bpfReturn = 0x06
)

// sameAddress is a program that reports whether the source of a packet is its
// destination, in the form that iptables takes and prints. No other match compares
// two fields of a packet. It takes neither the system call bpf nor a pinned name.
func sameAddress(f Family) string {
	at, words := 12, 1 // of the source in the header of IPv4
	if f == IPv6 {
		at, words = 8, 4
	}
	const each = 4
	code := []string{fmt.Sprint(each*words + 2)}
	for i := range words {
		differ := each*(words-i) - each + 1 // instructions to the last one
		code = append(code,
			fmt.Sprintf("%d 0 0 %d", bpfLoad, at+4*i),
			fmt.Sprintf("%d 0 0 0", bpfKeep),
			fmt.Sprintf("%d 0 0 %d", bpfLoad, at+4*(words+i)),
			fmt.Sprintf("%d 0 %d 0", bpfDiffer, differ))
	}
	return strings.Join(append(code, fmt.Sprintf("%d 0 0 1", bpfReturn), fmt.Sprintf("%d 0 0 0", bpfReturn)), ",")
}
