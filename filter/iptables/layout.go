package iptables

import "slices"

// layout is what the rules use of a table of iptables.
type layout struct {
	table    string
	priority int32   // of the table's hooks
	entries  []entry // in the order in which a packet meets them; Options.entries adds the conditions
	chains   []string
}

var (
	// mangle has the rules that judge. sourceChain is omitted where the guard drops forged
	// sources. The chains of INPUT are omitted unless a policy may deny what pods send to their
	// node, and those of FORWARD unless denied packets may be rejected.
	mangle = &layout{
		table: table, priority: -150, // NF_IP_PRI_MANGLE
		entries: []entry{{name: "PREROUTING", chain: sourceChain}, {name: "POSTROUTING", chain: Chain}, {name: "INPUT", chain: inputChain}, {name: "FORWARD", chain: forwardChain}},
		chains:  []string{Chain, allowChain, sourceChain, refuseChain, inputChain, nodeChain, forwardChain},
	}
	// rejecting has the rules with the target REJECT, which the kernel allows only in this
	// table.
	rejecting = &layout{
		table: "filter", priority: 0, // NF_IP_PRI_FILTER
		entries: []entry{{name: "FORWARD", chain: rejectChain}, {name: "INPUT", chain: rejectChain}},
		chains:  []string{rejectChain},
	}
)

// isHook reports whether a chain has the name of one of the hooks in entries.
func (l *layout) isHook(chain string) bool {
	return slices.ContainsFunc(l.entries, func(e entry) bool { return e.name == chain })
}

// entries returns the entries of a layout with the conditions of their jumps.
func (o Options) entries(in *layout) []entry {
	all, when := slices.Clone(in.entries), o.conditions()
	for i := range all {
		all[i].when = when[all[i].chain]
	}
	return all
}

// entriesOf returns the entries of the wanted chains.
func (o Options) entriesOf(in *layout, want map[string][]string) (wanted []entry) {
	for _, e := range o.entries(in) {
		if _, is := want[e.chain]; is {
			wanted = append(wanted, e)
		}
	}
	return wanted
}
