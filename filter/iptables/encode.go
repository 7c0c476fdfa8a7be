package iptables

import (
	"encoding/binary"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// encoded is a rule as nf_tables takes it.
type encoded struct {
	expressions attributes
	protocol    uint32 // that its matches may rely on; 0 if any
}

// encodeRule translates a rule of ours, without "-A" and its chain, into the expressions
// that iptables-nft writes for it. It knows what our rules use and refuses the rest, so
// that no rule means less than it says.
func encodeRule(f Family, rule string) (e encoded, err error) {
	words := splitRule(rule)
	for len(words) > 0 {
		n := 2
		for n < len(words) && !slices.Contains([]string{"-p", "-i", "-m", "-j", "-g"}, words[n]) {
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

// parseArguments reads what follows the name of a match or target.
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

// add adds one part of a rule.
func (e *encoded) add(f Family, flag, name string, a arguments) error {
	switch {
	case flag == "-p":
		number := map[string]uint32{"icmp": unix.IPPROTO_ICMP, "ipv6-icmp": unix.IPPROTO_ICMPV6}[name]
		if number == 0 {
			return errUnknown("-p " + name)
		}
		e.protocol = number
		e.compareMeta(unix.NFT_META_L4PROTO, []byte{byte(number)})
	case flag == "-i":
		e.compareMeta(unix.NFT_META_IIFNAME, append([]byte(name), 0))
	case flag == "-m" && name == "rpfilter":
		if _, is := a["--invert"]; !is || len(a) != 1 {
			return errUnknown("-m rpfilter")
		}
		e.noWayBack()
	case flag == "-m":
		x, err := a.match(f, name)
		if err != nil {
			return err
		}
		e.express("match", attributes{}.text(unix.NFTA_MATCH_NAME, x.name).number(unix.NFTA_MATCH_REV, x.revision).raw(unix.NFTA_MATCH_INFO, x.info))
	case flag == "-j" || flag == "-g":
		return e.end(flag, name, a)
	default:
		return errUnknown(flag + " " + name)
	}
	return nil
}

// end adds the counter that each rule of iptables has, and what the rule does.
func (e *encoded) end(flag, name string, a arguments) error {
	e.express("counter", nil)
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
		e.express("target", attributes{}.text(unix.NFTA_TARGET_NAME, x.name).number(unix.NFTA_TARGET_REV, x.revision).raw(unix.NFTA_TARGET_INFO, x.info))
	}
	return nil
}

// express adds an expression.
func (e *encoded) express(name string, data attributes) {
	x := attributes{}.text(unix.NFTA_EXPR_NAME, name).raw(unix.NFTA_EXPR_DATA, data)
	e.expressions = e.expressions.raw(unix.NFTA_LIST_ELEM, x)
}

func (e *encoded) verdict(code int32, chain string) {
	v := attributes{}.number(unix.NFTA_VERDICT_CODE, uint32(code))
	if chain != "" {
		v = v.text(unix.NFTA_VERDICT_CHAIN, chain)
	}
	data := attributes{}.raw(unix.NFTA_DATA_VERDICT, v)
	e.express("immediate", attributes{}.number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT).raw(unix.NFTA_IMMEDIATE_DATA, data))
}

// compareMeta matches packets of which a property is value.
func (e *encoded) compareMeta(key uint32, value []byte) {
	e.express("meta", attributes{}.number(unix.NFTA_META_KEY, key).number(unix.NFTA_META_DREG, unix.NFT_REG_1))
	e.compare(value)
}

// compare goes on if register 1 is value.
func (e *encoded) compare(value []byte) {
	data := attributes{}.raw(unix.NFTA_DATA_VALUE, value)
	e.express("cmp", attributes{}.number(unix.NFTA_CMP_SREG, unix.NFT_REG_1).number(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ).raw(unix.NFTA_CMP_DATA, data))
}

// noWayBack is rpfilter --invert: no answer to the packet's source would leave by the
// interface that it came from. rpfilter itself refuses every table but mangle and raw.
// Both spare loopback, and the copies of the node's own multicast.
func (e *encoded) noWayBack() {
	e.express("fib", attributes{}.number(unix.NFTA_FIB_DREG, unix.NFT_REG_1).number(unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_OIF).
		number(unix.NFTA_FIB_FLAGS, unix.NFTA_FIB_F_SADDR|unix.NFTA_FIB_F_IIF))
	e.compare(binary.NativeEndian.AppendUint32(nil, 0))
}
