package kube

import (
	"encoding/binary"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter/event"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// nodeText builds the text form of a Node: the length of its labels, the labels, and an item
// for each pod range and address. An item is a mark, the text and a zero byte.
type nodeText struct {
	labels labelText
	items  []byte
}

// The marks of items.
const (
	rangeItem = 'r' // a pod range
	// An InternalIP and an ExternalIP must be IP addresses. Any other address may be a name.
	internalItem = 'i'
	externalItem = 'e'
	nameItem     = 'n'
)

func (t *nodeText) reset() { t.labels, t.items = t.labels[:0], t.items[:0] }

func (t *nodeText) add(mark byte, text []byte) {
	t.items = append(append(append(t.items, mark), text...), 0)
}

// addressItem returns the mark of the item for an address with the given type.
func addressItem(addressType []byte) byte {
	switch corev1.NodeAddressType(addressType) {
	case corev1.NodeInternalIP:
		return internalItem
	case corev1.NodeExternalIP:
		return externalItem
	}
	return nameItem
}

func (t *nodeText) String() string {
	text := make([]byte, 0, binary.MaxVarintLen64+len(t.labels)+len(t.items))
	text = binary.AppendUvarint(text, uint64(len(t.labels)))
	return string(append(append(text, t.labels...), t.items...))
}

// nodes reads the Nodes. It skips a new version of a Node if nothing has changed that decisions
// need, and warns if this node has no Node object.
type nodes struct {
	self   string // name of this node's Node; empty if it has none
	ranges bool   // whether the pod ranges of the Nodes are needed
	log    *slog.Logger
	seed   maphash.Seed
	known  map[string]uint64 // hash of the text form of each Node, by name
	warned bool
}

func newNodes(self string, ranges bool, log *slog.Logger) *nodes {
	return &nodes{self: self, ranges: ranges, log: log, seed: maphash.MakeSeed(), known: make(map[string]uint64)}
}

// read parses o.text, the text form of a Node, into o.form. If the text is the same as in the
// previous version of the Node, read returns false without parsing it.
func (n *nodes) read(o *node) (changed bool) {
	sum := maphash.String(n.seed, o.text)
	if before, known := n.known[o.Name]; known && before == sum {
		return false
	}
	n.known[o.Name] = sum
	o.form = n.parse(o)
	return true
}

// forget forgets a deleted Node.
func (n *nodes) forget(name string) { delete(n.known, name) }

// parse reads the text form of a Node. The internal addresses come first, as in kubepod.ReadNode.
func (n *nodes) parse(o *node) *policy.Node {
	size, start := binary.Uvarint([]byte(o.text))
	form := &policy.Node{Name: o.Name, Labels: parseLabels(o.text[start : start+int(size)]).of()}
	type address struct {
		mark byte
		text string
	}
	var internal, others []address
	for items := o.text[start+int(size):]; len(items) > 0; {
		mark := items[0]
		item, rest, _ := strings.Cut(items[1:], zero)
		switch items = rest; mark {
		case rangeItem:
			n.parseRange(form, item)
		case internalItem:
			internal = append(internal, address{mark, item})
		default:
			others = append(others, address{mark, item})
		}
	}
	for _, a := range append(internal, others...) {
		form.Addrs = kubepod.AppendAddr(form.Addrs, a.text)
		if _, err := netip.ParseAddr(a.text); err != nil && a.mark != nameItem {
			n.log.Warn("unreadable address of a Node skipped", event.NodeAddressUnreadable.Attr(), "node", o.Name, "field", "status.addresses", "address", a.text)
		}
	}
	return form
}

func (n *nodes) parseRange(form *policy.Node, text string) {
	if !n.ranges {
		return
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		n.log.Warn("unreadable pod range of a Node skipped", event.NodeRangeUnreadable.Attr(), "node", form.Name, "field", "spec.podCIDRs", "range", text, "err", err)
		return
	}
	form.Ranges = append(form.Ranges, p)
}

// check warns if this node's Node is missing. While the Node stays missing, check does not repeat
// the warning.
func (n *nodes) check(exists bool) {
	if n.self == "" || !n.ranges || exists != n.warned {
		return
	}
	if n.warned = !exists; n.warned {
		n.log.Warn("no Node object for this node: its pod ranges are not known", event.NodeUnknown.Attr(), "node", n.self,
			"hint", "give the name of this node's Node object, in most clusters spec.nodeName of the agent's pod")
	}
}
