//go:build ignore

// Two programs run at the node's end of every pod's interface. "sluice_from_pod" checks each
// frame from the pod, before bridge, iptables and routing. "sluice_to_pod" checks each frame
// to the pod, after them. They drop frames to which policies cannot be applied: frames with
// a missing or forged source, and frames that bypass iptables.
//
// "sluice_from_pod" also runs at tunnels, which it checks like the interface of an unknown
// pod, and at the node's other interfaces. There it only drops packets whose source is the
// node's own or equals the destination, and frames with too many VLAN tags to check.
//
// The programs do not track connections and do not evaluate policies.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../addrbits/addrbits.h"

// allowed_mark is the mark of packets that need no verdict. The loader sets it.
volatile const __u32 allowed_mark;

// address is an IPv6 address, or an IPv4 address in its mapped form, ::ffff:a.b.c.d.
struct address {
	__u32 word[4];
};

// The flags of a port.
enum {
	POD = 1,		// leads to a known pod, or is in the same bridge as a port that does
	PRIMARY = 2,		// leads to a known pod, on the network whose addresses the API lists for the pod
	ISOLATED_EGRESS = 4,	// policies isolate the known pod for egress
	ISOLATED_INGRESS = 8,	// policies isolate the known pod for ingress
	SECONDARY = 16,		// leads to a known pod, on one of its other networks
	OUTSIDE = 32,		// leads to no pod: only from_outside checks its frames
	BARE = 64,		// OUTSIDE, and its frames have no Ethernet header
	MEMBER = 128,		// OUTSIDE, and in a bridge, which accepts frames for any link address
	ASK_TO_NODE = 256,	// policies may deny what the known pod sends to its node
};

// port describes an interface. ipv4 and ipv6 are addresses that the API lists for the pod;
// neither is the node's or link-local. Each is zero if there is none. The map "own" has these
// addresses too; they are repeated here so that an ordinary frame needs no further lookup.
struct port {
	__u32 flags;
	__be32 ipv4;
	struct address ipv6;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); // interface index
	__type(value, struct port);
} ports SEC(".maps");

// place is an address at a port, by interface index: the key of the map "own".
struct place {
	struct address address;
	__u32 port;
};

// The values of the map "own". LISTED: the API lists the address for the pod. EXTRA: the API does not
// list it, but a host route for it leads to the pod, or an interface of the pod has it.
// NODES: it is a link-local address of the node, at a port with the flag OUTSIDE.
enum { LISTED = 1, EXTRA = 2, NODES = 4 };

// "own" holds the addresses that belong to the pod behind a port, or to the node there.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct place);
	__type(value, __u32);
} own SEC(".maps");

// The flags in the map "known".
enum {
	OF_POD = 1,	// address of a known pod of this node
	OF_NODE = 2,	// address of this node
	OF_TUNNEL = 4,	// address of the other end of one of this node's tunnels
	OF_ALL = 8,	// broadcast address on one of this node's networks
};

// known holds the addresses whose owners are certain.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u32);
} known SEC(".maps");

enum { NODE_BITS = 14 };

// node_bits is a Bloom filter of the addresses with OF_NODE in the map "known". Most packets from outside
// therefore need no lookup in "known".
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << (NODE_BITS - 6));
	__type(key, __u32);
	__type(value, __u64);
} node_bits SEC(".maps");

// tunnels holds the UDP ports at which this node decapsulates packets.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u16); // UDP port in network byte order
	__type(value, __u32);
} tunnels SEC(".maps");

// reason is the reason why a frame is dropped, and its index in the map "dropped". Reasons in
// guard.go lists the names.
enum reason { SOURCE, ARP, TAG, ROUTER, TUNNEL, LINK_LOCAL, GROUP, STRAY, REASONS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
} dropped SEC(".maps");

static __always_inline int drop(enum reason why)
{
	__u32 at = why;
	__u64 *count = bpf_map_lookup_elem(&dropped, &at);

	if (count)
		__sync_fetch_and_add(count, 1);
	return TC_ACT_SHOT;
}

// load copies length bytes at an offset from the network header; 0 on success.
static __always_inline int load(struct __sk_buff *skb, __u32 at, void *to, __u32 length)
{
	return bpf_skb_load_bytes_relative(skb, at, to, length, BPF_HDR_START_NET);
}

enum { HOP_BY_HOP = 0, IPIP = 4, SIT = 41, ROUTING = 43, FRAGMENT = 44, GRE = 47, ICMP6 = 58, NONE = 59, OPTIONS = 60 };

// packet holds the fields of an IP packet that the programs check.
struct packet {
	struct address src, dst;
	__u32 upper;		// offset of the upper-layer header
	__u8 protocol;		// upper-layer protocol; NONE if the upper-layer header is not in this packet
	__u8 type;		// type of an ICMP message
	__u8 hops;		// hop limit of IPv6
	__u8 direct;		// no extension header before the upper-layer header
	__u8 plain;		// no extension header, except one with hop-by-hop options
	__u8 group, local;	// multicast or broadcast destination; link-local source or destination
	__be16 sport, dport;	// UDP ports
};

static __always_inline int local6(struct address *a)
{
	return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline int local4(struct address *a)
{
	return (a->word[3] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000);
}

static __always_inline int unspecified4(struct address *a)
{
	return !a->word[3];
}

static __always_inline int unspecified6(struct address *a)
{
	return !a->word[0] && !a->word[1] && !a->word[2] && !a->word[3];
}

static __always_inline int loopback4(struct address *a)
{
	return (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

static __always_inline int same(struct address *a, struct address *b)
{
	return a->word[3] == b->word[3] && a->word[2] == b->word[2] && a->word[1] == b->word[1] && a->word[0] == b->word[0];
}

static __always_inline int read4(struct __sk_buff *skb, struct packet *p)
{
	struct {
		__u8 version, tos;
		__be16 length, id, fragment;
		__u8 ttl, protocol;
		__u16 checksum;
		__be32 src, dst;
	} ip;

	if (load(skb, 0, &ip, sizeof(ip)))
		return -1;
	p->src.word[2] = p->dst.word[2] = bpf_htonl(0xffff);
	p->src.word[3] = ip.src;
	p->dst.word[3] = ip.dst;
	p->upper = (ip.version & 15) * 4;
	p->protocol = ip.fragment & bpf_htons(0x1fff) ? NONE : ip.protocol;
	p->group = (ip.dst & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || ip.dst == 0xffffffff;
	p->local = local4(&p->src) || local4(&p->dst);
	p->direct = p->plain = 1;
	return 0;
}

static __always_inline int read6(struct __sk_buff *skb, struct packet *p)
{
	struct {
		__be32 version;
		__be16 length;
		__u8 next, hops;
		struct address src, dst;
	} ip;

	if (load(skb, 0, &ip, sizeof(ip)))
		return -1;
	p->src = ip.src;
	p->dst = ip.dst;
	p->upper = sizeof(ip);
	p->protocol = ip.next;
	p->group = (ip.dst.word[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
	p->local = local6(&p->src) || local6(&p->dst);
	p->hops = ip.hops;
	p->direct = p->plain = 1;
#pragma unroll
	for (int i = 0; i < 8; i++) {
		__u8 h[4];

		if (p->protocol != HOP_BY_HOP && p->protocol != ROUTING && p->protocol != FRAGMENT && p->protocol != OPTIONS)
			return 0;
		if (load(skb, p->upper, h, sizeof(h))) {
			p->protocol = NONE;
			return 0;
		}
		p->direct = 0;
		p->plain &= i == 0 && p->protocol == HOP_BY_HOP;
		if (p->protocol == FRAGMENT) {
			if (h[2] || h[3] & 0xf8) {
				p->protocol = NONE;
				return 0;
			}
			p->upper += 8;
		} else {
			p->upper += (h[1] + 1) * 8;
		}
		p->protocol = h[0];
	}
	return 0;
}

// read reads an IP packet; 0 on success, -1 if its header is incomplete.
static __always_inline int read(struct __sk_buff *skb, struct packet *p)
{
	__be16 udp[2];

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (read4(skb, p))
			return -1;
	} else if (read6(skb, p)) {
		return -1;
	}
	if (p->protocol == ICMP6 || p->protocol == IPPROTO_ICMP) {
		if (load(skb, p->upper, &p->type, 1))
			p->protocol = NONE;
	} else if (p->protocol == IPPROTO_UDP) {
		if (!load(skb, p->upper, udp, sizeof(udp))) {
			p->sport = udp[0];
			p->dport = udp[1];
		}
	}
	return 0;
}

static __always_inline int ip(struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6);
}

static __always_inline int tagged(struct __sk_buff *skb)
{
	return skb->vlan_present || skb->protocol == bpf_htons(ETH_P_8021Q) || skb->protocol == bpf_htons(ETH_P_8021AD);
}

// neighbours reports whether a packet is a neighbour discovery message that no router has
// forwarded (RFC 4861; no redirects), or a report of group membership (MLD, RFC 3810; IGMP,
// RFC 3376). Without these a pod can neither find its neighbours nor join groups.
static __always_inline int neighbours(struct __sk_buff *skb, struct packet *p)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return p->protocol == IPPROTO_IGMP && (p->dst.word[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000);
	if (p->protocol != ICMP6)
		return 0;
	if (p->type >= 133 && p->type <= 136)
		return p->direct && p->hops == 255;
	return p->plain && p->group && ((p->type >= 130 && p->type <= 132) || p->type == 143);
}

// asks_dhcp reports whether a packet is a DHCP client's broadcast or multicast to servers.
static __always_inline int asks_dhcp(struct __sk_buff *skb, struct packet *p)
{
	if (p->protocol != IPPROTO_UDP)
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return !~p->dst.word[3] && p->sport == bpf_htons(68) && p->dport == bpf_htons(67);
	return p->dst.word[0] == bpf_htonl(0xff020000) && !p->dst.word[1] && !p->dst.word[2] && p->dst.word[3] == bpf_htonl(0x00010002) &&
	       p->sport == bpf_htons(546) && p->dport == bpf_htons(547);
}

// owned returns the value in the map "own" for an address at a port; 0 if there is none.
static __always_inline __u32 owned(struct address *a, __u32 port)
{
	struct place at = { .address = *a, .port = port };
	__u32 *how = bpf_map_lookup_elem(&own, &at);

	return how ? *how : 0;
}

// whose returns the flags of an address in the map "known"; 0 if there are none.
static __always_inline __u32 whose(struct address *a)
{
	__u32 *who = bpf_map_lookup_elem(&known, a);

	return who ? *who : 0;
}

// is_own reports whether this node has an address.
static __always_inline int is_own(struct address *a)
{
	return may_hold(&node_bits, a->word, NODE_BITS) && whose(a) & OF_NODE;
}

// for_all reports whether the destination of a packet is a multicast or broadcast address,
// including the broadcast address of one of this node's networks (such as 10.0.0.255 on
// 10.0.0.0/24).
static __always_inline int for_all(struct packet *p)
{
	return p->group || (whose(&p->dst) & (OF_ALL | OF_POD)) == OF_ALL;
}

// may_claim reports whether the source of a packet is legitimate at the port. A pod that is
// isolated for egress must not use addresses that the API does not list, because policies do
// not apply to such addresses.
static __always_inline int may_claim(struct __sk_buff *skb, __u32 flags, struct packet *p)
{
	__u32 how = owned(&p->src, skb->ifindex);

	if (how == LISTED)
		return 1;
	if (how == EXTRA && !(flags & ISOLATED_EGRESS && flags & PRIMARY))
		return 1;
	if (skb->protocol == bpf_htons(ETH_P_IP) ? unspecified4(&p->src) : unspecified6(&p->src))
		return !(flags & PRIMARY) || neighbours(skb, p) || asks_dhcp(skb, p);
	if (skb->protocol == bpf_htons(ETH_P_IPV6) && local6(&p->src))
		return !(whose(&p->src) & (OF_POD | OF_NODE)) || how;
	return !(flags & PRIMARY) && !(whose(&p->src) & (OF_POD | OF_NODE));
}

// may_answer reports whether a port may announce an address as its own, in ARP or neighbour
// discovery. The guard knows all addresses of a known pod, except that a link-local address
// may be new; "local" is set for link-local addresses.
static __always_inline int may_answer(struct __sk_buff *skb, __u32 flags, struct address *a, int local)
{
	if (owned(a, skb->ifindex))
		return 1;
	return !(whose(a) & (OF_POD | OF_NODE)) && (local || !(flags & PRIMARY));
}

static __always_inline int arp_from(struct __sk_buff *skb, __u32 flags)
{
	struct address sender = { .word[2] = bpf_htonl(0xffff) };

	// The offset skips the types of hardware and protocol, their lengths, the operation
	// and the sender's link address.
	if (load(skb, 14, &sender.word[3], 4) || unspecified4(&sender))
		return TC_ACT_UNSPEC;
	return may_answer(skb, flags, &sender, 0) ? TC_ACT_UNSPEC : drop(ARP);
}

// may_advertise reports whether a port may send a neighbour advertisement for its target
// (RFC 4861, section 4.4). If the target is cut off, receivers ignore the message, and it
// may pass.
static __always_inline int may_advertise(struct __sk_buff *skb, __u32 flags, struct packet *p)
{
	struct address target;

	if (load(skb, p->upper + 8, &target, sizeof(target)))
		return 1;
	return may_answer(skb, flags, &target, local6(&target));
}

// Values of pkt_type in __sk_buff: PACKET_OTHERHOST and PACKET_LOOPBACK of linux/if_packet.h.
enum { OTHERS = 3, LOOPED = 5 };

enum { ETH_LENGTH = 14, IPV4_LENGTH = 20, IPV6_LENGTH = 40 };

// no_tunnel reports whether a packet is TCP, or UDP to a port at which this node does not
// decapsulate packets.
static __always_inline int no_tunnel(__u8 protocol, void *upper, void *end)
{
	__be16 *ports = upper, to;

	if (protocol == IPPROTO_TCP)
		return 1;
	if (protocol != IPPROTO_UDP || (void *)(ports + 2) > end)
		return 0;
	to = ports[1];
	return !bpf_map_lookup_elem(&tunnels, &to);
}

// ordinary reports whether a frame needs no further check. Such a frame is untagged and
// unicast, and contains a TCP or UDP packet that does not belong to a tunnel. Both addresses
// of the packet are unicast and, in IPv6, not link-local; one of them is the address
// that *port holds for its pod. The other checks would let the frame pass too, but would cost up to four more lookups.
static __always_inline int ordinary(struct __sk_buff *skb, struct port *port, int from)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u8 *link = data;

	if (data + ETH_LENGTH + IPV4_LENGTH > end || skb->vlan_present || link[0] & 1)
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_LENGTH;
		__be32 pods = from ? ip->saddr : ip->daddr;

		// Multicast, reserved and broadcast addresses are all in 224.0.0.0/3.
		if (!pods || pods != port->ipv4 || ip->ihl != 5 || ip->saddr == ip->daddr ||
		    (ip->daddr & bpf_htonl(0xe0000000)) == bpf_htonl(0xe0000000))
			return 0;
		return no_tunnel(ip->protocol, ip + 1, end);
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct {
			__be32 version;
			__be16 length;
			__u8 next, hops;
			struct address src, dst;
		} *ip = data + ETH_LENGTH;

		if ((void *)(ip + 1) > end)
			return 0;
		struct address *pods = from ? &ip->src : &ip->dst;

		// Link-local (fe80::/10) and multicast (ff00::/8) addresses are all in fe00::/7.
		if (!pods->word[0] || pods->word[0] != port->ipv6.word[0] || pods->word[1] != port->ipv6.word[1] ||
		    pods->word[2] != port->ipv6.word[2] || pods->word[3] != port->ipv6.word[3] ||
		    (ip->src.word[0] & bpf_htonl(0xfe000000)) == bpf_htonl(0xfe000000) ||
		    (ip->dst.word[0] & bpf_htonl(0xfe000000)) == bpf_htonl(0xfe000000) || same(&ip->src, &ip->dst))
			return 0;
		return no_tunnel(ip->next, ip + 1, end);
	}
	return 0;
}

enum { TAGS = 3 };

// inside returns the protocol behind VLAN tags with ID 0, which the kernel ignores, and
// increases *at by their length. It returns 0 if a tag has another ID: the kernel hands
// such a frame to the interface of that VLAN, which has this program too, or drops it. The
// first tag is not in the frame's data, because the kernel has moved it to vlan_tci.
static __always_inline __be16 inside(struct __sk_buff *skb, __u32 *at)
{
	__be16 protocol = skb->protocol, tag[2];

	if (skb->vlan_present && skb->vlan_tci & 0xfff)
		return 0;
#pragma unroll
	for (int i = 0; i < TAGS; i++) {
		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			return protocol;
		if (load(skb, *at, tag, sizeof(tag)) || tag[0] & bpf_htons(0xfff))
			return 0;
		protocol = tag[1];
		*at += sizeof(tag);
	}
	return protocol;
}

// comes_back reports whether a frame may have the node's own source: either the kernel has
// looped back a multicast or broadcast of the node itself, or the frame has the link address
// of another machine, and no bridge accepts it for the node.
static __always_inline int comes_back(struct __sk_buff *skb, __u32 flags)
{
	return skb->pkt_type == LOOPED || (skb->pkt_type == OTHERS && !(flags & MEMBER));
}

// from_outside drops packets whose source is the node's own or equals the destination. A
// link-local address of the node counts only at its own network: on another one, another
// machine may have it. Addresses right behind an Ethernet header are read directly. A helper
// reads them if a VLAN tag comes between, or if the frame has no Ethernet header, such as a
// packet that is looped back.
static __always_inline int from_outside(struct __sk_buff *skb, __u32 flags)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 at = 0;
	__be16 protocol = inside(skb, &at);
	int direct = !at && !(flags & BARE) && data + ETH_LENGTH <= end && ((struct ethhdr *)data)->h_proto == protocol, nodes;
	struct address ends[2] = {};

	if (protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + ETH_LENGTH;
		__be32 both[2];

		if (direct && (void *)(ip + 1) <= end) {
			both[0] = ip->saddr;
			both[1] = ip->daddr;
		} else if (load(skb, at + 12, both, sizeof(both))) {
			return TC_ACT_UNSPEC;
		}
		if (both[0] == both[1] && !comes_back(skb, flags))
			return drop(SOURCE);
		ends[0].word[2] = bpf_htonl(0xffff);
		ends[0].word[3] = both[0];
		nodes = loopback4(&ends[0]) || is_own(&ends[0]);
	} else if (protocol == bpf_htons(ETH_P_IPV6)) {
		if (direct && data + ETH_LENGTH + IPV6_LENGTH <= end)
			__builtin_memcpy(ends, data + ETH_LENGTH + 8, sizeof(ends));
		else if (load(skb, at + 8, ends, sizeof(ends)))
			return TC_ACT_UNSPEC;
		if (same(&ends[0], &ends[1]) && !comes_back(skb, flags))
			return drop(SOURCE);
		nodes = local6(&ends[0]) ? owned(&ends[0], skb->ifindex) == NODES : is_own(&ends[0]);
	} else {
		// More tags than any network needs: the packet behind them cannot be checked.
		return protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD) ? drop(TAG) : TC_ACT_UNSPEC;
	}
	return nodes && !comes_back(skb, flags) ? drop(SOURCE) : TC_ACT_UNSPEC;
}

SEC("tc/from_pod")
int sluice_from_pod(struct __sk_buff *skb)
{
	__u32 index = skb->ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &index);
	__u32 flags = port ? port->flags : 0;

	if (flags & OUTSIDE)
		return from_outside(skb, flags);
	if (port && ordinary(skb, port, 1))
		return TC_ACT_UNSPEC;
	struct packet p = {};
	__u8 link[6] = {};

	// Tagged frames can bypass iptables, even with VLAN ID 0, which the kernel otherwise
	// treats as no tag.
	if (tagged(skb)) {
		if (flags & POD || !(skb->vlan_tci & 0xfff))
			return drop(TAG);
		return TC_ACT_UNSPEC;
	}
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return arp_from(skb, flags);
	if (!ip(skb) || read(skb, &p))
		return TC_ACT_UNSPEC;
	if (same(&p.src, &p.dst) || (skb->protocol == bpf_htons(ETH_P_IP) && loopback4(&p.src)) || !may_claim(skb, flags, &p))
		return drop(SOURCE);

	// Drop a unicast packet in a broadcast or multicast frame: a bridge also passes it to the
	// node, where the kernel confirms its conntrack entry (br_nf_local_in) even if policies
	// deny the packet. Then replies to the packet, and ICMP errors about it, would pass.
	if (flags & POD && !p.group && !bpf_skb_load_bytes(skb, 0, link, sizeof(link)) && link[0] & 1) {
		if (!for_all(&p))
			return drop(STRAY);
		p.group = 1;
	}

	if (p.protocol == ICMP6 && p.type == 136 && skb->protocol == bpf_htons(ETH_P_IPV6) && !may_advertise(skb, flags, &p))
		return drop(ARP);

	// Pods must not act as routers for their neighbours: no advertisements, no redirects.
	if (flags & POD) {
		if (p.protocol == ICMP6 && skb->protocol == bpf_htons(ETH_P_IPV6) && (p.type == 134 || p.type == 137))
			return drop(ROUTER);
		if (p.protocol == IPPROTO_ICMP && skb->protocol == bpf_htons(ETH_P_IP) && (p.type == 5 || p.type == 9))
			return drop(ROUTER);
	}

	// Drop tunnel packets from a pod to a tunnel of this node: the packet inside would seem to
	// come from another node.
	__u8 tunnelled = p.protocol == IPIP || p.protocol == SIT || p.protocol == GRE;

	if (p.protocol == IPPROTO_UDP)
		tunnelled = bpf_map_lookup_elem(&tunnels, &p.dport) != 0;
	if (tunnelled && flags & POD && (p.group || whose(&p.dst) & (OF_NODE | OF_TUNNEL | OF_ALL)))
		return drop(TUNNEL);

	// Policies treat a link-local address as a pod's only if the API lists it. With any other
	// link-local address, an isolated pod could evade its policies. It may use one to talk to
	// its node, unless policies judge that: the rules know the pod by its listed addresses.
	int from_local = skb->protocol == bpf_htons(ETH_P_IP) ? local4(&p.src) : local6(&p.src);

	if (flags & ISOLATED_EGRESS && p.local && (!(whose(&p.dst) & OF_NODE) || (flags & ASK_TO_NODE && from_local))) {
		if (skb->protocol == bpf_htons(ETH_P_IP)) {
			if (local4(&p.src) && owned(&p.src, skb->ifindex) != LISTED)
				return drop(LINK_LOCAL);
		} else if (flags & PRIMARY && !neighbours(skb, &p) && !asks_dhcp(skb, &p)) {
			return drop(LINK_LOCAL);
		}
	}

	// A bridge copies multicast and broadcast packets to all its ports. The copies share
	// an unconfirmed conntrack entry, and the kernel drops such packets instead of queueing
	// them (nf_ct_drop_unconfirmed). So a packet that needs no verdict gets the allowed
	// mark. sluice_to_pod keeps it from isolated pods.
	if (flags & POD && p.group && (!(flags & ISOLATED_EGRESS) || neighbours(skb, &p) || asks_dhcp(skb, &p)))
		skb->mark |= allowed_mark;
	return TC_ACT_UNSPEC;
}

SEC("tc/to_pod")
int sluice_to_pod(struct __sk_buff *skb)
{
	__u32 index = skb->ifindex, from = skb->ingress_ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &index);

	if (!port || !(port->flags & (PRIMARY | ISOLATED_INGRESS)) || ordinary(skb, port, 0))
		return TC_ACT_UNSPEC;
	struct packet p = {};
	__u8 link[6] = {};
	__u32 flags = port->flags;

	if (from && flags & PRIMARY && flags & ISOLATED_INGRESS && tagged(skb))
		return drop(TAG);
	if (!ip(skb) || read(skb, &p))
		return TC_ACT_UNSPEC;

	// The node itself may send anything. Without an incoming interface, a packet is the
	// node's own or a fragment that IPv6 has made while forwarding (ip6_copy_metadata
	// does not copy the interface); so the source is checked too.
	if (!from && whose(&p.src) & OF_NODE)
		return TC_ACT_UNSPEC;

	// Drop packets to the node: policies let them pass, but a bridge forwards by link address
	// and may deliver them to a pod. Drop neighbour discovery that a router has sent back to
	// the bridge that it came from, although it must not be forwarded. Genuine messages have a
	// hop limit of 255 and no extension headers.
	if (flags & PRIMARY) {
		if (whose(&p.dst) & OF_NODE)
			return drop(STRAY);
		if (p.protocol == ICMP6 && p.type >= 133 && p.type <= 137 && (p.hops != 255 || !p.direct) && skb->protocol == bpf_htons(ETH_P_IPV6))
			return drop(STRAY);
	}
	if (!(flags & ISOLATED_INGRESS) || neighbours(skb, &p))
		return TC_ACT_UNSPEC;
	if (flags & PRIMARY) {
		if (for_all(&p) || (!bpf_skb_load_bytes(skb, 0, link, sizeof(link)) && link[0] & 1))
			return drop(GROUP);
		if (p.local && skb->protocol == bpf_htons(ETH_P_IPV6))
			return drop(LINK_LOCAL);
	}

	// Policies do not know the owner of an address that the API does not list. Packets from
	// pods, or of unknown origin, to such an address are dropped. Packets from elsewhere may be
	// replies, and pass unless a bridge has flooded them: then the address is another pod's.
	if (owned(&p.dst, skb->ifindex) == LISTED || !(flags & PRIMARY || (skb->protocol == bpf_htons(ETH_P_IP) && local4(&p.dst))))
		return TC_ACT_UNSPEC;
	struct port *other = bpf_map_lookup_elem(&ports, &from);

	if (!from || whose(&p.dst) & OF_POD || (other && !(other->flags & OUTSIDE)))
		return drop(LINK_LOCAL);
	return TC_ACT_UNSPEC;
}

