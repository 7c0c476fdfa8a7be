package filter

// Denial states whether denied packets are dropped or rejected. The zero value leaves this to a
// wider scope: the namespace or the node.
type Denial uint8

// The denials.
const (
	// DenialUnset: the policy or namespace does not set it, so a wider scope decides.
	DenialUnset Denial = iota
	// DenialDrop: the sender of a denied packet gets no answer.
	DenialDrop
	// DenialReject: the sender gets a TCP reset or an ICMP error.
	DenialReject
)

// String returns the denial as in flags and annotations; empty for DenialUnset.
func (d Denial) String() string {
	switch d {
	case DenialDrop:
		return "drop"
	case DenialReject:
		return "reject"
	}
	return ""
}

// ParseDenial returns the denial with the given name, drop or reject.
func ParseDenial(text string) (Denial, bool) {
	for _, d := range [...]Denial{DenialDrop, DenialReject} {
		if text == d.String() {
			return d, true
		}
	}
	return DenialUnset, false
}

// Or returns d, or wider if d is unset.
func (d Denial) Or(wider Denial) Denial {
	if d == DenialUnset {
		return wider
	}
	return d
}
