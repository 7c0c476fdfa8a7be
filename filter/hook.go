package filter

// Hook is the place in the kernel where the rules queue a packet.
type Hook uint8

// The hooks.
const (
	// AtPostrouting: the packet leaves the node. A denied packet can only be dropped here.
	AtPostrouting Hook = iota
	// AtForward: the packet is forwarded. It has the same addresses as later in POSTROUTING.
	AtForward
	// AtInput: the packet is for this node itself.
	AtInput
)
