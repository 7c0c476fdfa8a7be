package iptables

import (
	"fmt"
	"strings"
)

// sentence describes the rules that contain certain parts.
type sentence struct {
	parts []string // all of them must be in the rule
	words string
}

// sentences returns the descriptions of the rules that the options produce. The first sentence
// whose parts a rule contains describes the rule.
func (o Options) sentences() []sentence {
	mark := func(match string, value, mask uint32) string {
		return fmt.Sprintf(" -m %s --mark %#x/%#x ", match, value, mask)
	}
	return []sentence{
		{[]string{"-I POSTROUTING"}, "judge what leaves this node, before other programs' rules"},
		{[]string{"-I PREROUTING"}, "check the sources of all packets"},
		{[]string{"-I INPUT", "-j " + inputChain}, "judge what pods send to this node"},
		{[]string{"-I FORWARD", "-j " + forwardChain}, "judge forwarded packets early, so that they can be rejected, except those of allowed connections"},
		{[]string{"-j " + rejectChain}, "reject packets with the mark for it, before other programs' rules"},

		{[]string{"-A " + rejectChain, " ! --mark "}, "packets that are not to be rejected go on"},
		{[]string{"-A " + rejectChain, "--set-xmark"}, "clear the mark, which the answer might inherit"},
		{[]string{"-A " + rejectChain, "INVALID,UNTRACKED"}, "TCP that belongs to no connection and begins none is never answered"},
		{[]string{"-A " + rejectChain, "BROADCAST,MULTICAST"}, "broadcast and multicast are never answered"},
		{[]string{"-A " + rejectChain, "--physdev-is-in"}, "TCP through a Service, from a bridge port: an ICMP error, because the reset would have the pod's address"},
		{[]string{"-A " + rejectChain, "tcp-reset"}, "TCP: a reset"},
		{[]string{"-A " + rejectChain, "-j REJECT"}, "everything else: the ICMP error \"administratively prohibited\""},

		{[]string{"-A " + allowChain, "-j CONNMARK"}, "mark the connection as allowed"},
		{[]string{"-A " + allowChain, "-j MARK"}, "clear the packet's mark"},
		{[]string{"-A " + refuseChain}, "mark the packet, so that the table filter rejects it"},
		{[]string{"-A " + sourceChain, "ESTABLISHED"}, "packets of known connections are not checked"},
		{[]string{"-A " + sourceChain, "-i lo"}, "the node's own packets to itself are not checked"},
		{[]string{"-A " + sourceChain, "--bytecode"}, "drop packets whose source equals their destination"},
		{[]string{"-A " + sourceChain, "--src-type LOCAL"}, "drop packets from elsewhere with an address of this node as source"},
		{[]string{"-A " + inputChain, "-i lo"}, "the node's own packets to itself are not judged"},
		{[]string{"-A " + inputChain, "-g " + nodeChain}, "judge what these addresses of pods send to this node"},

		{[]string{translatedAtPort, "--hashlimit-above"}, "the same as below, in the overflow queue, for a source over its limit"},
		{[]string{translatedAtPort, "-j NFQUEUE"}, "TCP through a Service, from a bridge port: have the agent judge the packet, because the ICMP error must not arrive too early"},

		{[]string{mark("mark", o.RejectMark(), o.RejectMark()), "-j DROP"}, "drop packets that were to be rejected and were not"},
		{[]string{mark("mark", o.RejectMark(), o.RejectMark())}, "the queue has denied the packet: the table filter rejects it"},
		{[]string{mark("mark", o.AllowedMark, o.AllowedMark), "-g " + allowChain}, "the queue has allowed the packet"},
		{[]string{mark("mark", o.AllowedMark, o.AllowedMark)}, "the queue has allowed the packet: POSTROUTING marks its connection"},
		{[]string{mark("connmark", o.AllowedMark, o.Mask())}, "packets of allowed connections pass"},
		{[]string{mark("connmark", o.Mask(), o.Mask()), "RST"}, "the resets of revoked connections pass, which the kernel sends when it rejects"},
		{[]string{mark("connmark", o.Mask(), o.Mask())}, "reject packets of revoked connections"},
		{[]string{mark("connmark", o.RevokedMark, o.RevokedMark)}, "drop packets of revoked connections"},
		{[]string{"--src-type LOCAL"}, "what the node itself sends passes"},
		{[]string{"--ctdir REPLY"}, "replies pass"},
		{[]string{"--ctstate RELATED"}, "ICMP errors about known connections pass"},
		{[]string{"--icmpv6-type"}, "neighbour discovery passes"},
		{[]string{"--object-pinned", "-j DROP"}, "drop what the kernel remembers as denied"},
		{[]string{"--object-pinned", "-g " + refuseChain}, "reject what the kernel remembers as denied by rejecting"},
		{[]string{"-A " + forwardChain, "--object-pinned"}, "what the kernel remembers otherwise is decided in POSTROUTING"},
		{[]string{"--ctstate INVALID,NEW,RELATED,UNTRACKED", "--object-pinned"}, "forwarded packets pass if the kernel remembers them as allowed, or if no policy concerns them"},
		{[]string{"--object-pinned"}, "what the kernel remembers as allowed passes, and what no policy concerns"},
		{[]string{"--hashlimit-above"}, "judge the packets of a source over its limit in the overflow queue"},
		{[]string{"-j NFQUEUE"}, "have the agent judge the packet"},
	}
}

// InWords returns the text of the rules (see Wanted) with a comment before each rule that says
// what it does.
func (o Options) InWords(f Family) string {
	var b strings.Builder
	all := o.sentences()
	for line := range strings.Lines(o.Wanted(f)) {
		if strings.HasPrefix(line, "-") {
			fmt.Fprintf(&b, "# %s\n", wordsFor(all, line))
		}
		b.WriteString(line)
	}
	return b.String()
}

// wordsFor returns what a rule does, in words.
func wordsFor(all []sentence, rule string) string {
	for _, s := range all {
		applies := true
		for _, part := range s.parts {
			applies = applies && strings.Contains(rule, part)
		}
		if applies {
			return s.words
		}
	}
	return "(not described)"
}
