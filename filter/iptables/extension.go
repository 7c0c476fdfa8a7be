//go:build linux

package iptables

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// extension is a match or target of iptables, in the form that the kernel accepts.
type extension struct {
	name     string
	revision uint32
	info     []byte // the kernel's structure for this revision
}

// arguments maps the options of a match or target to their values, which may be empty. The key
// of a negated option begins with "! ".
type arguments map[string]string

// infoAlign is the alignment in bytes to which the kernel rounds up the structures' sizes
// (XT_ALIGN).
const infoAlign = 8

// pad appends zeros to a structure, up to the next multiple of infoAlign that is at least size.
func pad(info []byte, size int) []byte {
	size = max(size, len(info))
	return append(info, make([]byte, (size+infoAlign-1)&^(infoAlign-1)-len(info))...)
}

// words32 and words16 encode numbers in the byte order of the machine.
func words32(numbers ...uint32) (info []byte) {
	for _, n := range numbers {
		info = binary.NativeEndian.AppendUint32(info, n)
	}
	return info
}

func words16(numbers ...uint16) (info []byte) {
	for _, n := range numbers {
		info = binary.NativeEndian.AppendUint16(info, n)
	}
	return info
}

// errUnknown returns an error about a part of a rule that encodeRule does not support.
func errUnknown(what string) error {
	return fmt.Errorf("%q is not supported in table %s, which is written without iptables", what, ownName)
}

// match returns the named match.
func (a arguments) match(f Family, name string) (x extension, err error) {
	x.name = name
	switch name {
	case "mark", "connmark": // xt_mark_mtinfo1, xt_connmark_mtinfo1
		x.revision = 1
		x.info, err = a.mark()
	case "conntrack":
		x.revision = 3
		x.info, err = a.conntrack()
	case "addrtype": // xt_addrtype_info_v1
		const local = 1 << 2
		x.revision, x.info = 1, words16(local, 0, 0, 0)
		err = a.require("--src-type", "LOCAL")
	case "tcp": // xt_tcp: all ports, and packets with the flag RST
		const reset = 1 << 2
		x.info = append(words16(0, 1<<16-1, 0, 1<<16-1), 0, reset, reset, 0)
		err = a.require("--tcp-flags", "RST")
	case "icmp6": // ip6t_icmp: one type, all codes
		var kind uint64
		kind, err = strconv.ParseUint(a["--icmpv6-type"], 10, 8)
		x.info = []byte{byte(kind), 0, 0xff, 0}
	case "hl": // ip6t_hl_info, mode IP6T_HL_EQ (0)
		var limit uint64
		limit, err = strconv.ParseUint(a["--hl-eq"], 10, 8)
		x.info = []byte{0, byte(limit)}
	case "bpf":
		x.revision = 1
		x.info, err = a.bpf()
	case "physdev": // xt_physdev_info: names and masks of two interfaces, invert, bitmask
		const names, isIn = 4 * 16, 1 << 3
		x.info = append(make([]byte, names), 0, isIn)
		if _, is := a["--physdev-is-in"]; !is || len(a) != 1 {
			err = errUnknown("-m physdev")
		}
	case "hashlimit":
		x.revision = 3
		x.info, err = a.hashlimit(f)
	default:
		err = errUnknown("-m " + name)
	}
	x.info = pad(x.info, 0)
	return x, err
}

// target returns the named target.
func (a arguments) target(name string) (x extension, err error) {
	x.name = name
	switch name {
	case "CONNMARK": // xt_connmark_tginfo2, mode XT_CONNMARK_SET (0), which keeps the bits outside the mask
		x.revision = 2
		if x.info, err = a.masked("--set-xmark"); err == nil {
			x.info = append(x.info, words32(1<<32-1, 0)...)
		}
	case "MARK": // xt_mark_tginfo2
		x.revision = 2
		x.info, err = a.masked("--set-xmark")
	case "NFQUEUE":
		x.revision = 3
		x.info, err = a.queue()
	default:
		err = errUnknown("-j " + name)
	}
	x.info = pad(x.info, 0)
	return x, err
}

// require returns an error unless an option has the given value, the only value that owned rules
// use.
func (a arguments) require(option, value string) error {
	if a[option] != value {
		return errUnknown(option + " " + a[option])
	}
	return nil
}

// masked encodes an option of the form MARK/MASK.
func (a arguments) masked(option string) ([]byte, error) {
	value, mask, _ := strings.Cut(a[option], "/")
	v, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		return nil, errUnknown(option + " " + a[option])
	}
	m, err := strconv.ParseUint(mask, 0, 32)
	if err != nil {
		return nil, errUnknown(option + " " + a[option])
	}
	return words32(uint32(v), uint32(m)), nil
}

// mark encodes struct xt_mark_mtinfo1 or xt_connmark_mtinfo1.
func (a arguments) mark() ([]byte, error) {
	const size = 12
	if _, inverted := a["! --mark"]; inverted {
		info, err := a.masked("! --mark")
		return pad(append(info, 1), size), err
	}
	info, err := a.masked("--mark")
	return pad(info, size), err
}

// conntrack encodes struct xt_conntrack_mtinfo3. The fields before match_flags (addresses,
// times, protocol, ports) are unused and stay 0; invert_flags and state_mask follow it.
func (a arguments) conntrack() ([]byte, error) {
	const (
		unused, size               = 146, 164 // offset of match_flags, and size of the structure
		matchState, matchDirection = 1 << 0, 1 << 12
		invalid                    = 1 << 0 // XT_CONNTRACK_STATE_INVALID
		established, related, new  = 1 << 1, 1 << 2, 1 << 3
		translated, untracked      = 1 << 7, 1 << 8 // XT_CONNTRACK_STATE_DNAT and _UNTRACKED
	)
	info := make([]byte, unused)
	state := map[string]uint16{"ESTABLISHED": established, "RELATED": related, "DNAT": translated, "INVALID,UNTRACKED": invalid | untracked, "INVALID,NEW,RELATED,UNTRACKED": invalid | new | related | untracked}
	switch {
	case a["--ctdir"] == "REPLY": // encoded as an inverted match for the original direction
		info = append(info, words16(matchDirection, matchDirection)...)
	case state[a["--ctstate"]] != 0:
		info = append(info, words16(matchState, 0, state[a["--ctstate"]])...)
	case state[a["! --ctstate"]] != 0:
		info = append(info, words16(matchState, matchState, state[a["! --ctstate"]])...)
	default:
		return nil, errUnknown(fmt.Sprintf("-m conntrack %v", a))
	}
	return pad(info, size), nil
}

// bpf encodes struct xt_bpf_info_v1: a program's instructions, or the path of a pinned program.
func (a arguments) bpf() ([]byte, error) {
	const byCode, byPath, size = 0, 1, 528
	if path := a["--object-pinned"]; path != "" {
		return pad(append(words16(byPath, 0, 0, 0), path...), size), nil
	}
	code := strings.Split(a["--bytecode"], ",")[1:]
	info := words16(byCode, uint16(len(code)), 0, 0)
	for _, line := range code {
		var op uint16
		var jumpTrue, jumpFalse uint8
		var k uint32
		if _, err := fmt.Sscan(line, &op, &jumpTrue, &jumpFalse, &k); err != nil {
			return nil, errUnknown("--bytecode " + a["--bytecode"])
		}
		info = append(append(append(info, words16(op)...), jumpTrue, jumpFalse), words32(k)...)
	}
	if len(code) == 0 {
		return nil, errUnknown("--bytecode")
	}
	return pad(info, size), nil
}

// hashlimit encodes struct xt_hashlimit_mtinfo3, which matches packets of a source above its rate.
func (a arguments) hashlimit(f Family) ([]byte, error) {
	const (
		nameSize, size    = 256, 312
		bySource, inverse = 1 << 2, 1 << 4
		second            = 1000 // the times are in milliseconds
	)
	var rate, burst, buckets, entries uint32
	text := fmt.Sprint(a["--hashlimit-above"], " ", a["--hashlimit-burst"], " ", a["--hashlimit-htable-size"], " ", a["--hashlimit-htable-max"])
	if _, err := fmt.Sscanf(text, "%d/sec %d %d %d", &rate, &burst, &buckets, &entries); err != nil || rate == 0 {
		return nil, errUnknown(fmt.Sprintf("-m hashlimit %v", a))
	}
	if err := a.require("--hashlimit-mode", "srcip"); err != nil {
		return nil, err
	}
	prefix := byte(32)
	if f == IPv6 {
		prefix = 128
	}
	info := pad([]byte(a["--hashlimit-name"]), nameSize)
	info = binary.NativeEndian.AppendUint64(info, uint64(limitUnits/rate))
	info = binary.NativeEndian.AppendUint64(info, uint64(burst))
	info = append(info, words32(bySource|inverse, buckets, entries, second, second, 0)...)
	return pad(append(info, prefix, prefix), size), nil
}

// queue encodes struct xt_NFQ_info_v3.
func (a arguments) queue() ([]byte, error) {
	const bypass = 1
	var first, last, flags uint16
	_, err := fmt.Sscanf(a["--queue-balance"], "%d:%d", &first, &last)
	if one, is := a["--queue-num"]; is {
		_, err = fmt.Sscan(one, &first)
		last = first
	}
	if err != nil {
		return nil, errUnknown(fmt.Sprintf("-j NFQUEUE %v", a))
	}
	if _, is := a["--queue-bypass"]; is {
		flags = bypass
	}
	return words16(first, last-first+1, flags), nil
}
