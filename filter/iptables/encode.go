//go:build linux

package iptables

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// encoded is a rule in the form that nf_tables accepts.
type encoded struct {
	expressions attributes
	protocol    uint32 // layer-4 protocol of the rule's "-p", for NFTA_RULE_COMPAT; 0 if the rule has no "-p"
}

// encodeRule translates a rule of Sluice, without "-A" and the chain, into the expressions that
// iptables-nft would write. It supports only what Sluice's rules use. For anything else it
// returns an error, so that no condition of a rule is lost.
func encodeRule(f Family, rule string) (e encoded, err error) {
	words := splitRule(rule)
	for len(words) > 0 {
		n := 2
		for n < len(words) && !slices.Contains([]string{"-p", "-s", "-i", "-m", "-j", "-g"}, words[n]) {
			n++
		}
		if len(words) < 2 {
			return encoded{}, errUnknown(rule)
		}
		if err := e.add(f, words[0], words[1], parseArguments(words[2:n])); err != nil {
			return encoded{}, err
		}
		words = words[n:]
	}
	return e, nil
}

// parseArguments parses the words after the name of a match or target.
func parseArguments(words []string) arguments {
	a, option := arguments{}, ""
	for i, w := range words {
		switch {
		case w == "!":
		case strings.HasPrefix(w, "--"):
			option = w
			if i > 0 && words[i-1] == "!" {
				option = "! " + w
			}
			a[option] = ""
		default:
			a[option] = w
		}
	}
	return a
}

// add appends one part of a rule: a match, or the target.
func (e *encoded) add(f Family, flag, name string, a arguments) error {
	switch {
	case flag == "-p":
		number := map[string]uint32{"icmp": unix.IPPROTO_ICMP, "ipv6-icmp": unix.IPPROTO_ICMPV6, "tcp": unix.IPPROTO_TCP}[name]
		if number == 0 {
			return errUnknown("-p " + name)
		}
		e.protocol = number
		e.compareMeta(unix.NFT_META_L4PROTO, []byte{byte(number)})
	case flag == "-s":
		from, err := netip.ParsePrefix(name)
		if err != nil {
			return errUnknown("-s " + name)
		}
		e.compareSource(from)
	case flag == "-i":
		e.compareMeta(unix.NFT_META_IIFNAME, append([]byte(name), 0))
	case flag == "-m" && name == "rpfilter":
		if _, is := a["--invert"]; !is || len(a) != 1 {
			return errUnknown("-m rpfilter")
		}
		e.rpfilterInvert()
	case flag == "-m":
		x, err := a.match(f, name)
		if err != nil {
			return err
		}
		e.addExpression("match", attributes{}.text(unix.NFTA_MATCH_NAME, x.name).number(unix.NFTA_MATCH_REV, x.revision).raw(unix.NFTA_MATCH_INFO, x.info))
	case flag == "-j" || flag == "-g":
		return e.end(flag, name, a)
	default:
		return errUnknown(flag + " " + name)
	}
	return nil
}

// end appends the counter that every iptables rule has, and the rule's verdict or target.
func (e *encoded) end(flag, name string, a arguments) error {
	e.addExpression("counter", nil)
	verdict := map[string]int32{"DROP": verdictDrop, "RETURN": unix.NFT_RETURN}
	code, is := verdict[name]
	switch {
	case is && flag == "-j":
		e.verdict(code, "")
	case isOwned(name) && flag == "-j":
		e.verdict(unix.NFT_JUMP, name)
	case isOwned(name):
		e.verdict(unix.NFT_GOTO, name)
	default:
		x, err := a.target(name)
		if err != nil {
			return err
		}
		e.addExpression("target", attributes{}.text(unix.NFTA_TARGET_NAME, x.name).number(unix.NFTA_TARGET_REV, x.revision).raw(unix.NFTA_TARGET_INFO, x.info))
	}
	return nil
}

// addExpression appends an expression.
func (e *encoded) addExpression(name string, data attributes) {
	x := attributes{}.text(unix.NFTA_EXPR_NAME, name).raw(unix.NFTA_EXPR_DATA, data)
	e.expressions = e.expressions.raw(unix.NFTA_LIST_ELEM, x)
}

// verdict appends a verdict. chain is the destination of a jump or goto.
func (e *encoded) verdict(code int32, chain string) {
	v := attributes{}.number(unix.NFTA_VERDICT_CODE, uint32(code))
	if chain != "" {
		v = v.text(unix.NFTA_VERDICT_CHAIN, chain)
	}
	data := attributes{}.raw(unix.NFTA_DATA_VERDICT, v)
	e.addExpression("immediate", attributes{}.number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT).raw(unix.NFTA_IMMEDIATE_DATA, data))
}

// compareMeta appends a match for packets whose meta key has the given value.
func (e *encoded) compareMeta(key uint32, value []byte) {
	e.addExpression("meta", attributes{}.number(unix.NFTA_META_KEY, key).number(unix.NFTA_META_DREG, unix.NFT_REG_1))
	e.compare(value)
}

// compareSource appends a match for packets whose source is in a range. It compares the source
// with the first and the last address of the range instead of masking it: kernels differ in the
// form in which they list a comparison with a mask.
func (e *encoded) compareSource(from netip.Prefix) {
	const offset4, offset6 = 12, 8 // of the source in the IP header
	low := from.Masked().Addr().AsSlice()
	offset := uint32(offset4)
	if len(low) == net.IPv6len {
		offset = offset6
	}
	e.addExpression("payload", attributes{}.number(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1).number(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER).
		number(unix.NFTA_PAYLOAD_OFFSET, offset).number(unix.NFTA_PAYLOAD_LEN, uint32(len(low))))
	if from.IsSingleIP() {
		e.compare(low)
		return
	}
	high := slices.Clone(low)
	for bit := from.Bits(); bit < 8*len(high); bit++ {
		high[bit/8] |= 0x80 >> (bit % 8)
	}
	e.compareBy(unix.NFT_CMP_GTE, low)
	e.compareBy(unix.NFT_CMP_LTE, high)
}

// compare appends a comparison: the rule continues only if register 1 equals value.
func (e *encoded) compare(value []byte) { e.compareBy(unix.NFT_CMP_EQ, value) }

// compareBy appends a comparison of register 1 with value.
func (e *encoded) compareBy(operator uint32, value []byte) {
	data := attributes{}.raw(unix.NFTA_DATA_VALUE, value)
	e.addExpression("cmp", attributes{}.number(unix.NFTA_CMP_SREG, unix.NFT_REG_1).number(unix.NFTA_CMP_OP, operator).raw(unix.NFTA_CMP_DATA, data))
}

// rpfilterInvert appends the equivalent of "-m rpfilter --invert": it matches if the route to
// the packet's source does not use the interface on which the packet arrived. rpfilter itself
// works only in the tables mangle and raw. Like rpfilter, the equivalent does not match packets
// from loopback or looped-back copies of the node's own multicast.
func (e *encoded) rpfilterInvert() {
	e.addExpression("fib", attributes{}.number(unix.NFTA_FIB_DREG, unix.NFT_REG_1).number(unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_OIF).
		number(unix.NFTA_FIB_FLAGS, unix.NFTA_FIB_F_SADDR|unix.NFTA_FIB_F_IIF))
	e.compare(binary.NativeEndian.AppendUint32(nil, 0))
}
