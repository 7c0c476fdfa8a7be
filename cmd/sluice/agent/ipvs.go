package agent

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"sluice/filter"
)

const (
	// ipvsFile lists the virtual services of IPVS. It is missing on nodes without IPVS.
	ipvsFile = "/proc/net/ip_vs"
	// ipvsInterval bounds the age of the list of services when it is used. Reading 1,000
	// services takes about a millisecond.
	ipvsInterval = time.Second
	// ipvsMissInterval and ipvsShare bound the cost of packets to services that are not in the
	// list. Such a packet may be for a new service. If it counted as a packet to the node, the
	// connection to the service's pod would not be judged. So before that, the list is read
	// again, provided it is older than ipvsMissInterval and than ipvsShare times the duration of
	// the last reading.
	ipvsMissInterval = 20 * time.Millisecond
	ipvsShare        = 20
)

// ipvsServices reads the virtual services of IPVS. The address of a virtual service is an
// address of the node, because kube-proxy adds it to an interface of the node. So a packet to a
// virtual service passes the hook INPUT; IPVS replaces its destination after that. ipvsServices
// is safe for concurrent use.
type ipvsServices struct {
	path string

	mu       sync.Mutex
	next     time.Time // of the next reading
	nextMiss time.Time // of the earliest reading for a packet without a listed service
	services map[ipvsService]struct{}
	marked   bool // some services are selected by a packet mark instead of an address
}

type ipvsService struct {
	protocol filter.Protocol
	at       netip.AddrPort
}

// translated reports whether a packet is for a virtual service. possible reports whether there
// are any virtual services.
func (v *ipvsServices) translated(k filter.Key) (translated, possible bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !time.Now().Before(v.next) {
		v.read()
	}
	if translated = v.has(&k); !translated && !time.Now().Before(v.nextMiss) {
		v.read()
		translated = v.has(&k)
	}
	return translated, len(v.services) > 0 || v.marked
}

// has reports whether the list has a service for a packet.
func (v *ipvsServices) has(k *filter.Key) bool {
	_, is := v.services[ipvsService{k.Protocol, netip.AddrPortFrom(k.DstAddr(), k.Port)}]
	return is && k.Transport == filter.Ported
}

// read reads the list.
func (v *ipvsServices) read() {
	began := time.Now()
	text, _ := os.ReadFile(v.path) // without the file there are none
	v.services, v.marked = parseIPVS(text)
	now := time.Now()
	v.next, v.nextMiss = now.Add(ipvsInterval), now.Add(max(ipvsMissInterval, ipvsShare*now.Sub(began)))
}

// parseIPVS reads lines such as "TCP  0A600001:0050 rr" and "UDP  [fd00:...:000a]:0035 rr".
// It skips the lines of a service's servers, which begin with an arrow.
func parseIPVS(text []byte) (services map[ipvsService]struct{}, marked bool) {
	services = make(map[ipvsService]struct{})
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 {
			continue
		}
		if words[0] == "FWM" {
			marked = true
			continue
		}
		protocol, known := filter.ParseProtocol(words[0])
		at, ok := parseIPVSAddr(words[1])
		if known && ok {
			services[ipvsService{protocol, at}] = struct{}{}
		}
	}
	return services, marked
}

// parseIPVSAddr reads an address and a port. IPv4 addresses and ports are in hexadecimal digits.
func parseIPVSAddr(text string) (at netip.AddrPort, ok bool) {
	colon := strings.LastIndexByte(text, ':')
	if colon < 0 {
		return at, false
	}
	port, err := strconv.ParseUint(text[colon+1:], 16, 16)
	if err != nil {
		return at, false
	}
	host := text[:colon]
	if inner, is := strings.CutPrefix(host, "["); is {
		addr, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		return netip.AddrPortFrom(addr.Unmap(), uint16(port)), err == nil
	}
	b, err := hex.DecodeString(host)
	addr, is := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr, uint16(port)), err == nil && is && addr.Is4()
}
