package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/near"
)

// maxEnds bounds the ends, and the addresses of an end, in one line.
const maxEnds = 3

// sourceText and destinationText name the ends of an explanation as users know them, with their
// addresses, except for assumed addresses.
func (e *Explanation) sourceText() string { return endsText(e.flows(), source, filter.Key.SrcAddr) }

func (e *Explanation) destinationText() string {
	return endsText(e.flows(), destination, filter.Key.DstAddr)
}

func source(f Flow) *End      { return f.From }
func destination(f Flow) *End { return f.To }

func endsText(flows []Flow, endOf func(Flow) *End, addrOf func(filter.Key) netip.Addr) string {
	var texts []string
	var ranges []*End
	for _, end := range endsOf(flows, endOf) {
		if end.Range != nil {
			ranges = append(ranges, end)
			continue
		}
		var addrs []netip.Addr
		for _, f := range flows {
			if a := addrOf(f.Key); endOf(f).Name == end.Name && !slices.Contains(addrs, a) {
				addrs = append(addrs, a)
			}
		}
		if text := endText(end, addrs); !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	if len(texts) > maxEnds { // names without addresses are enough for so many ends
		texts = namesOf(slices.DeleteFunc(slices.Clone(flows), func(f Flow) bool { return endOf(f).Range != nil }), endOf)
	}
	if len(ranges) > 0 {
		text := rangesText(ranges)
		switch {
		case !slices.ContainsFunc(ranges, func(e *End) bool { return !e.PodRange }):
			text += " (in the range of the pods, but no pod here has it)"
		case text == inventory.World:
			text += " (every address outside the cluster)"
		case strings.Contains(text, "/") && !strings.Contains(text, " "):
			text += " (every address of it outside the cluster)"
		}
		texts = append(texts, text)
	}
	return near.List(texts, 2*maxEnds, separatorOf(texts))
}

// endText names an end and the addresses of its flows.
func endText(e *End, addrs []netip.Addr) string {
	if e.ByAddress() {
		switch {
		case e.Pod != nil:
			return fmt.Sprintf("%s (pod %s/%s)", e.Name, e.Pod.Namespace, e.Pod.Name)
		case e.NodeName != "":
			return e.Name + " (node " + e.NodeName + ")"
		case e.Node:
			return e.Name + " (this node)"
		case e.PodRange:
			return e.Name + " (in the range of the pods, but no pod here has it)"
		}
		return e.Name + " (no pod)"
	}
	if e.Assumed {
		return e.Name + " (" + strings.Join(append(unknownWords(e), unknownAddress(e, addrs)), ", ") + ")"
	}
	return e.Name + " (" + addressText(e, addrs) + ")"
}

// unknownAddress names the family of the flows if the end has the other one as well: the verdicts
// of the two may differ.
func unknownAddress(e *End, addrs []netip.Addr) string {
	if len(e.Addrs) == 2 && len(addrs) == 1 {
		return familyOf(addrs[0]) + " address not known"
	}
	return "address not known"
}

// shortText names ends without their addresses.
func shortText(flows []Flow, endOf func(Flow) *End) string { return listText(flows, endOf, maxEnds) }

// listText names at most n ends, and joins adjacent ranges of addresses.
func listText(flows []Flow, endOf func(Flow) *End, n int) string {
	var names []string
	var ranges []*End
	for _, e := range endsOf(flows, endOf) {
		if e.Range != nil {
			ranges = append(ranges, e)
		} else {
			names = append(names, e.Name)
		}
	}
	if len(ranges) > 0 {
		names = append(names, rangesText(ranges))
	}
	return near.List(names, n, separatorOf(names))
}

// separatorOf returns what separates the items of a list: a semicolon if commas within an item, such
// as those between the exceptions of a range, could be read as separators.
func separatorOf(items []string) string {
	if slices.ContainsFunc(items, func(item string) bool { return strings.Contains(item, " except ") }) {
		return "; "
	}
	return ", "
}

// unknownWords describes an end whose address is assumed.
func unknownWords(e *End) (words []string) {
	if e.Workload.Kind != "" {
		words = append(words, e.Workload.Kind)
	}
	if len(e.Pods) > 1 {
		words = append(words, count(len(e.Pods), "pod", "pods"))
	}
	if e.Node {
		words = append(words, "in the host network")
	}
	return words
}

// addressText returns the addresses of an end. If the end has several pods, it returns the first
// address of each.
func addressText(e *End, addrs []netip.Addr) string {
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	if len(e.Pods) < 2 {
		return strings.Join(texts, ", ")
	}
	texts = nil
	for _, p := range e.Pods {
		if len(p.Addrs) > 0 {
			texts = append(texts, p.Addrs[0].String())
		}
	}
	if len(texts) > maxEnds {
		texts = append(texts[:maxEnds], "…")
	}
	return count(len(e.Pods), "pod", "pods") + ": " + strings.Join(texts, ", ")
}

// rangesText describes ranges of addresses, and joins adjacent ones.
func rangesText(ends []*End) string {
	var all []inventory.Range
	for _, e := range ends {
		all = append(all, *e.Range)
	}
	var texts []string
	for _, r := range joinRanges(all) {
		text := r.String()
		if r.Prefix.Bits() == 0 {
			text = strings.Replace(text, r.Prefix.String(), inventory.World, 1)
		}
		if !slices.Contains(texts, text) { // the world is one name for two ranges, of IPv4 and IPv6
			texts = append(texts, text)
		}
	}
	return near.List(texts, 2*maxEnds, separatorOf(texts))
}

// EndAnswer is the JSON form of an end.
type EndAnswer struct {
	Name      string   `json:"name"`
	Kind      string   `json:"kind,omitempty"` // kind of the workload
	Pods      []string `json:"pods,omitempty"`
	Node      bool     `json:"node,omitempty"`
	Range     string   `json:"range,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	// AddressUnknown is set if the pods have no address yet.
	AddressUnknown bool `json:"addressUnknown,omitempty"`
}

// endAnswers describes the ends of flows. It returns nil if the only end is a single pod or address,
// because the name alone describes it.
func endAnswers(flows []Flow, endOf func(Flow) *End) []EndAnswer {
	ends := endsOf(flows, endOf)
	if e := ends[0]; len(ends) == 1 && len(e.Pods) < 2 && e.Range == nil && !e.Assumed {
		return nil
	}
	var all []EndAnswer
	for _, e := range ends {
		a := EndAnswer{Name: e.Name, Kind: e.Workload.Kind, Node: e.Node, AddressUnknown: e.Assumed}
		for _, p := range e.Pods {
			if !e.Assumed {
				a.Pods = append(a.Pods, p.String())
				a.Addresses = append(a.Addresses, addrTexts(p.Addrs)...)
			}
		}
		if e.Range != nil {
			a.Range = e.Range.String()
		}
		all = append(all, a)
	}
	return all
}

func addrTexts(addrs []netip.Addr) (texts []string) {
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	return texts
}

// podName returns the name of an end that consists of pods.
func podName(e *End) string {
	if e.ByAddress() {
		return e.Pod.String()
	}
	return e.Name
}
