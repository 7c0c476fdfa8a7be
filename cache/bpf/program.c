//go:build ignore

// The flow cache in the kernel: programs that iptables calls as matches (-m bpf
// --object-pinned). "allow" matches packets that may pass without a trip to user space, "deny"
// packets that must not pass. A packet that neither matches is queued, as it would be without
// a cache. It takes two programs because a match has only two results.
//
// In POSTROUTING, two programs replace "allow", so that the first packets of most connections pass few
// rules. "forwarded" is for TCP, UDP and SCTP packets that arrived on an interface, "others" for the rest.
//
// Two more programs are for the hooks where a denied packet can be rejected. "reject" matches
// packets that must not pass and are to be rejected. "later" is for FORWARD and matches packets
// that are answered in POSTROUTING, except those to reject.
//
// A match always agrees with packet.Decode and policy.Snapshot.DecideBetween. Unusual
// packets are left to user space: fragments, IPv4 options, IPv6 extension headers, invalid
// lengths.
//
// The data of a packet begins with its IP header. A program takes 90 to 120 ns if it needs no
// remembered verdict and 150 ns if it looks one up. A packet that is queued in the end has
// been evaluated for both results.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "../../filter/addrbits/addrbits.h"

// address is an IPv6 address, or an IPv4 address in its mapped form, ::ffff:a.b.c.d.
struct address {
	__u32 word[4];
};

// key has the layout of filter.Key.
struct key {
	struct address src, dst;
	__u16 port; // destination port, in host byte order
	__u8 protocol, transport;
};

// The values of filter.Transport.
enum { OPAQUE = 0, PORTLESS = 1, PORTED = 2, ANY = 3 };

enum { ICMPV6 = 58 }; // not defined in linux/in.h

// flow is what verdicts are remembered by, with the layout of policy.IDKey without the padding at its
// end: the IDs of both addresses, and all of a key but the addresses. A verdict holds for all
// addresses with these IDs.
struct flow {
	__u64 src, dst;
	__u16 port;
	__u8 protocol, transport;
} __attribute__((packed, aligned(4)));

// endpoint is the owner of an address. "id" is the ID of the address (policy.ID). The flags hold the
// directions in which policies isolate the endpoint, the directions in which no rule allows anything,
// and whether the endpoint is this node. "device" is the interface of a pod of this node that has one
// of its own; otherwise 0. If another pod gets the address while no agent runs, that pod has a
// different interface, and the programs match none of its packets. "host" stands for the
// addresses of the pod's node: it is the same number for all pods whose nodes have these addresses, and 0
// if the addresses are not known.
struct endpoint {
	__u64 id;
	__u32 flags;
	__u32 device;
	__u32 host, pad;
};

enum {
	ISOLATED_EGRESS = 1,
	ISOLATED_INGRESS = 2,
	NODE = 4,
	CLOSED_EGRESS = 8,
	CLOSED_INGRESS = 16,
	KNOWN = 32, // the address has an endpoint; set by evaluate, never stored in the table
	SHARED = 64, // a pod of this node that shares its interface with others
	ASK_TO_NODE = 128, // policies may deny what the pod sends to its node
	REJECT_EGRESS = 256, // if everything is denied in a direction, it is rejected
	REJECT_INGRESS = 512,
	CLOSED = CLOSED_EGRESS | CLOSED_INGRESS,
	OF_SOURCE = ISOLATED_EGRESS | CLOSED_EGRESS | NODE,
	OF_DESTINATION = ISOLATED_INGRESS | CLOSED_INGRESS | NODE,
};

// verdict is what a program is asked for. DENY includes REJECT. LATER is ALLOW or DENY without
// REJECT.
enum verdict { DENY = 0, ALLOW = 1, REJECT = 2, LATER = 3 };

// Random numbers for stamp(), set by the loader.
volatile const __u64 secrets[3];

// endpoints holds one table of all endpoints. To publish changes, user space writes another
// table and replaces the first one with it. So the changes of a snapshot take effect
// together, and the system call returns when no program uses the previous table. Only the
// device of an endpoint is changed in place. Without a table the programs match nothing.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(max_entries, 65536);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__uint(key_size, sizeof(struct address));
		__uint(value_size, sizeof(struct endpoint));
	});
} endpoints SEC(".maps");

// deadline is the time until which the programs answer for pods that share a device, in
// nanoseconds of the kernel's monotonic clock. The agent extends it. The addresses of such
// pods may belong to other pods when the agent has been gone for long.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} deadline SEC(".maps");

struct prefix {
	__u32 bits;
	struct address first;
};

// unowned is what is known of an address without an endpoint, by the longest prefix with it. An
// address that is "pending" belongs to a pod that is not known yet, and user space holds the packet.
// "host" is not 0 if the address is that of a node with pods: it is the endpoint.host of these pods,
// or SEVERAL if they have different ones.
struct unowned {
	__u64 id;
	__u32 host, pending;
};

enum { SEVERAL = 0xffffffff };

enum { OWNED_BITS = 20 };

// owned is a Bloom filter of the addresses that have an endpoint, and of some that had one. Most addresses
// without an endpoint therefore need no lookup in the table of endpoints.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << (OWNED_BITS - 6));
	__type(key, __u32);
	__type(value, __u64);
} owned SEC(".maps");

// prefixes holds the prefixes that policies name, the address ranges of pods, and the addresses of
// nodes with pods. ::ffff:0:0/96 is always there, so that no IPv4 address gets what is said of ::/0.
// User space changes it in place, and not as "endpoints": see Cache.publish.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, struct unowned);
} prefixes SEC(".maps");

// flows holds the verdicts. A value is a stamp, with the verdict in its lowest two bits: DENY,
// ALLOW or REJECT. A verdict that applies to all packets between two IDs is stored once, with
// transport ANY, so that a port scan takes one entry and one trip to user space.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, __u64);
} flows SEC(".maps");

// answers counts four kinds of packets: allowed because no policy isolates either end,
// allowed for another reason, dropped, and rejected.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} answers SEC(".maps");

enum answer { OPEN, ALLOWED, DENIED, REJECTED };

static __always_inline int yes(enum answer which)
{
	__u32 at = which;
	__u64 *count = bpf_map_lookup_elem(&answers, &at);

	if (count)
		(*count)++; // not atomic: the counter is per CPU, and iptables disables preemption
	return 1;
}

// denial counts the denied packets of a flow, for "sluice denied". The times are of the kernel's
// monotonic clock, in nanoseconds.
struct denial {
	__u64 packets, first, last;
	__u16 source; // source port of the first packet; 0 if it has none or it could not be read
	__u8 rejected, pad[5];
};

// denials holds the flows that the programs have denied last. The programs always update it, even if
// nothing reads it. That takes 80 ns for a denied packet, 600 ns for the first of a flow, and nothing for others.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct key);
	__type(value, struct denial);
} denials SEC(".maps");

// event describes one denied packet.
struct event {
	__u64 time;
	struct key key;
	__u16 source;
	__u8 rejected, pad;
};

// events reports denied packets to the agent, while something watches flows.
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 19);
} events SEC(".maps");

// watch holds how many denied packets of one source the programs report within a second; 0 while
// nothing watches.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} watch SEC(".maps");

// second counts the events of a source within the second that starts at "begin".
struct second {
	__u64 begin;
	__u32 events, pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct address);
	__type(value, struct second);
} sources SEC(".maps");

// left_out counts the denied packets that were not reported although something watches: those beyond
// the rate of their source, and those for which events had no room.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} left_out SEC(".maps");

enum left_out_for { BEYOND_RATE, NO_ROOM };

// upper describes the header behind the IP header: its offset, the length of the packet from
// there on, and its protocol. The length is computed from the IP header, whose length field is
// 0 if the packet is too long for it; such a packet is left to user space. Protocol 0 marks an
// unusual packet; in IPv6, 0 is also the number of hop-by-hop options, which are unusual too.
// read_upper sets "begins" if the packet may be the first of a connection: the verdict about
// such a packet depends only on its key. Any other packet may belong to a connection that its
// receiver has opened: see Evaluator.decideMidStream in sluice/filter/engine.
struct upper {
	__u32 at, length;
	__u8 protocol, begins;
	__u16 source; // source port, in host byte order; 0 if the protocol has none
};

static __always_inline int mapped(struct address *a)
{
	return !a->word[0] && !a->word[1] && a->word[2] == bpf_htonl(0xffff);
}

// same compares two addresses word by word. The programs must not compare pointers: without
// CAP_PERFMON, the verifier rejects that as a leak of kernel addresses.
static __always_inline int same(struct address *a, struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

static __always_inline void map(struct address *a, __be32 v4)
{
	a->word[2] = bpf_htonl(0xffff);
	a->word[3] = v4;
}

struct ipv4 {
	__u8 version, tos;
	__be16 length, id, fragment;
	__u8 ttl, protocol;
	__u16 checksum;
	__be32 src, dst;
};

static __always_inline int read_ipv4(struct __sk_buff *skb, struct key *k, struct upper *up)
{
	struct ipv4 ip;

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.version >> 4 != 4)
		return 0;
	map(&k->src, ip.src);
	map(&k->dst, ip.dst);
	__u32 length = bpf_ntohs(ip.length);

	// The mask leaves out DF, which only forbids fragmentation.
	if (ip.version == 0x45 && !(ip.fragment & bpf_htons(0xbfff)) && length >= sizeof(ip)) {
		up->at = sizeof(ip);
		up->length = length - sizeof(ip);
		up->protocol = ip.protocol;
	}
	return 1;
}

struct ipv6 {
	__be32 version;
	__be16 length;
	__u8 next, hops;
	struct address src, dst;
};

// An IPv6 packet with a mapped address could be mistaken for IPv4. It is left to user space,
// which denies it.
static __always_inline int read_ipv6(struct __sk_buff *skb, struct key *k, struct upper *up)
{
	struct ipv6 ip;

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || bpf_ntohl(ip.version) >> 28 != 6 || mapped(&ip.src) || mapped(&ip.dst))
		return 0;
	k->src = ip.src;
	k->dst = ip.dst;
	up->at = sizeof(ip);
	up->length = bpf_ntohs(ip.length);
	up->protocol = ip.next;
	return 1;
}

enum { FIN = 0x01, SYN = 0x02, RST = 0x04, ACK = 0x10 }; // TCP flags, RFC 9293, 3.1
enum { INIT = 1 };						 // SCTP chunk type, RFC 9260, 3.2

// read_upper completes the key and sets "begins". It returns 0 if the header is unusual or
// incomplete.
static __always_inline int read_upper(struct __sk_buff *skb, struct key *k, struct upper *up)
{
	__u8 header[20]; // room for the fixed header of TCP, the longest of all
	__be16 port, length;

	k->protocol = up->protocol;
	k->transport = PORTED;
	up->begins = 1;
	switch (up->protocol) {
	case IPPROTO_TCP: // RFC 9293, 3.1
		if (bpf_skb_load_bytes(skb, up->at, header, 20))
			return 0;
		__u32 own = (header[12] >> 4) * 4;
		if (own < 20 || own > up->length)
			return 0;
		up->begins = (header[13] & (FIN | SYN | RST | ACK)) == SYN;
		break;
	case IPPROTO_UDP: // RFC 768
		if (up->length < 8 || bpf_skb_load_bytes(skb, up->at, header, 8))
			return 0;
		__builtin_memcpy(&length, header + 4, sizeof(length));
		if (bpf_ntohs(length) < 8)
			return 0;
		break;
	case IPPROTO_SCTP: // RFC 9260, 3.1
		if (up->length < 12 || bpf_skb_load_bytes(skb, up->at, header, 12))
			return 0;
		up->begins = up->length > 12 && !bpf_skb_load_bytes(skb, up->at + 12, header + 12, 1) && header[12] == INIT;
		break;
	case IPPROTO_ICMP:
	case ICMPV6:
		k->transport = PORTLESS;
		return 1;
	default:
		return 0;
	}
	__builtin_memcpy(&port, header + 2, sizeof(port));
	k->port = bpf_ntohs(port);
	__builtin_memcpy(&port, header, sizeof(port));
	up->source = bpf_ntohs(port);
	return 1;
}

static __always_inline void leave_out(enum left_out_for why)
{
	__u32 at = why;
	__u64 *count = bpf_map_lookup_elem(&left_out, &at);

	if (count)
		(*count)++;
}

// within reports whether a source may have another event in this second, and counts the event if so.
// The count is not exact if several CPUs deny packets of the source at the same time.
static __always_inline int within(struct address *source, __u64 now, __u32 limit)
{
	struct second *s = bpf_map_lookup_elem(&sources, source);

	if (!s) {
		struct second first = { .begin = now, .events = 1 };

		bpf_map_update_elem(&sources, source, &first, BPF_ANY);
		return 1;
	}
	if (now - s->begin >= 1000000000) {
		s->begin = now;
		s->events = 1;
		return 1;
	}
	if (s->events >= limit)
		return 0;
	s->events++;
	return 1;
}

// report sends an event about a denied packet if something watches.
static __always_inline void report(struct key *k, __u64 now, __u16 source, __u8 rejected)
{
	__u32 first = 0;
	__u32 *limit = bpf_map_lookup_elem(&watch, &first);

	if (!limit || !*limit)
		return;
	if (!within(&k->src, now, *limit)) {
		leave_out(BEYOND_RATE);
		return;
	}
	struct event e = { .time = now, .key = *k, .source = source, .rejected = rejected };

	if (bpf_ringbuf_output(&events, &e, sizeof(e), 0))
		leave_out(NO_ROOM);
}

// denied counts and reports a denied packet, and returns 1. If "read" is 0, evaluate has not called
// read_upper for the packet yet: then denied does.
static __always_inline int denied(struct __sk_buff *skb, struct key *k, struct upper *up, int read, enum answer as)
{
	__u64 now = bpf_ktime_get_ns();
	__u8 rejected = as == REJECTED;

	if (!read && !read_upper(skb, k, up)) {
		k->transport = OPAQUE;
		k->port = 0;
	}
	struct denial *known = bpf_map_lookup_elem(&denials, k);

	if (known) {
		__sync_fetch_and_add(&known->packets, 1);
		known->last = now;
		known->rejected = rejected;
	} else {
		struct denial one = { .packets = 1, .first = now, .last = now, .source = up->source, .rejected = rejected };

		bpf_map_update_elem(&denials, k, &one, BPF_ANY);
	}
	report(k, now, up->source, rejected);
	return yes(as);
}

// endpoint_of returns the endpoint of an address in a table of endpoints, NULL if it has none.
static __always_inline struct endpoint *endpoint_of(void *table, struct address *a)
{
	return may_hold(&owned, a->word, OWNED_BITS) ? bpf_map_lookup_elem(table, a) : 0;
}

// read_unowned reads the ID and the host of an address without an endpoint. It returns 0 if the
// address is pending.
static __always_inline int read_unowned(struct address *a, __u64 *id, __u32 *host)
{
	struct prefix one = { .bits = 128, .first = *a };
	struct unowned *is = bpf_map_lookup_elem(&prefixes, &one);

	if (!is)
		return 1;
	*id = is->id;
	*host = is->host;
	return !is->pending;
}

// product is one step of NH, the hash of UMAC (Black, Halevi, Krawczyk, Krovetz and
// Rogaway, "UMAC: Fast and secure message authentication", CRYPTO 1999).
static __always_inline __u64 product(__u64 secret, __u32 a, __u32 b)
{
	return (__u64)(__u32)(a + (__u32)secret) * (__u32)(b + (__u32)(secret >> 32));
}

// stamp returns a hash of a flow; the lowest two bits are left for the verdict. The kernel reuses the
// entry of an evicted flow at once, so that a program may read the value of another flow. Stamp and
// verdict are one number, so that a program cannot read a value that is only half overwritten.
//
// For any two inputs, at most one in 2^29 choices of the secrets gives both the same stamp,
// so that an attacker without the secrets cannot construct collisions. A chain of
// multiplications by constants has no such bound: flipping the same two bits in neighbouring
// words cancelled out for every start value.
static __always_inline __u64 stamp(struct flow *f)
{
	__u32 rest = (__u32)f->port << 16 | f->protocol << 8 | f->transport;

	return (product(secrets[0], f->src, f->src >> 32) + product(secrets[1], f->dst, f->dst >> 32) + product(secrets[2], rest, 0)) & ~3ULL;
}

// remembered reports whether the map "flows" has the wanted verdict about a flow.
static __always_inline int remembered(struct flow *f, enum verdict wanted)
{
	volatile __u64 *found = bpf_map_lookup_elem(&flows, f);

	if (!found)
		return 0;
	__u64 value = *found, of_flow = stamp(f);

	switch (wanted) {
	case DENY:
		return (value & ~(__u64)REJECT) == of_flow;
	case LATER:
		return (value & ~(__u64)ALLOW) == of_flow;
	default:
		return value == (of_flow | wanted);
	}
}

// closed_as returns how packets are denied if an end is closed: DENY, REJECT, or LATER if
// that is not known, because the policies of the source may deny a packet to a closed
// destination in another way.
static __always_inline enum verdict closed_as(__u64 of_src, __u64 of_dst)
{
	if (of_src & CLOSED_EGRESS)
		return of_src & REJECT_EGRESS ? REJECT : DENY;
	if (of_src & ISOLATED_EGRESS)
		return LATER;
	return of_dst & REJECT_INGRESS ? REJECT : DENY;
}

// unattended reports whether the deadline has passed.
static __always_inline int unattended(void)
{
	__u32 first = 0;
	__u64 *until = bpf_map_lookup_elem(&deadline, &first);

	return !until || bpf_ktime_get_ns() > *until;
}

// part is the part of all packets that a program matches. FORWARDED are TCP, UDP and SCTP packets that have
// arrived on an interface; a packet that the node itself sends has arrived on none. ICMP is in OTHERS, for which
// the rules that let ICMP errors and neighbor discovery pass come first.
enum part { ALL, FORWARDED, OTHERS };

static __always_inline int evaluate(struct __sk_buff *skb, enum verdict wanted, enum part part)
{
	struct key k = {};
	struct upper up = {};
	__u32 first = 0;

	if (part == FORWARDED && !skb->ingress_ifindex)
		return 0;
	void *known = bpf_map_lookup_elem(&endpoints, &first);
	if (!known)
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (!read_ipv4(skb, &k, &up))
			return 0;
	} else if (skb->protocol != bpf_htons(ETH_P_IPV6) || !read_ipv6(skb, &k, &up)) {
		return 0;
	}
	int ports = up.protocol == IPPROTO_TCP || up.protocol == IPPROTO_UDP || up.protocol == IPPROTO_SCTP;

	if (part != ALL && (part == FORWARDED) != (skb->ingress_ifindex && ports))
		return 0;

	struct endpoint *src = endpoint_of(known, &k.src), *dst = endpoint_of(known, &k.dst);
	// The later conditions on both ends test these numbers, not src and dst: the compiler may
	// turn a condition on two pointers into code that needs CAP_PERFMON too.
	__u64 of_src = 0, of_dst = 0, src_id = 0, dst_id = 0;
	__u32 src_host = 0, dst_host = 0;

	if (src) {
		of_src = src->flags | KNOWN;
		src_id = src->id;
		src_host = src->host;
		if (src->device && src->device != skb->ingress_ifindex)
			return 0;
	} else if (!read_unowned(&k.src, &src_id, &src_host)) {
		return 0;
	}
	if (dst) {
		of_dst = dst->flags | KNOWN;
		dst_id = dst->id;
		dst_host = dst->host;
		// The packet has no output interface yet in FORWARD, where the other programs are called.
		if (wanted <= ALLOW && dst->device && dst->device != skb->ifindex)
			return 0;
	} else if (!read_unowned(&k.dst, &dst_id, &dst_host)) {
		return 0;
	}

	if ((of_src | of_dst) & SHARED && unattended())
		return 0;

	// A node without an endpoint is open to and from its pods like this node, and these verdicts are
	// not those of the IDs. User space decides if it is not certain that it is the pod's node, or if
	// policies may deny packets to it.
	if ((of_src ^ of_dst) & KNOWN && src_host && dst_host) {
		if (src_host == SEVERAL || dst_host == SEVERAL)
			return 0;
		if (src_host == dst_host) {
			if (of_src & ASK_TO_NODE)
				return 0;
			if (of_src & KNOWN)
				of_dst = NODE;
			else
				of_src = NODE;
		}
	}

	__u64 flags = (of_src & OF_SOURCE) | (of_dst & OF_DESTINATION);
	__u64 back = (of_src & ISOLATED_INGRESS) | (of_dst & ISOLATED_EGRESS);

	// Ordered rules may deny what a pod sends to its node. Such a packet needs a remembered
	// verdict, in the middle of a connection too, because the opposite direction is allowed.
	int judged = of_dst & NODE && of_src & ASK_TO_NODE;
	int read = 0, may_allow = 1;

	// A pod is open to itself, whatever its policies are. Such a verdict is not that of the IDs.
	if (same(&k.src, &k.dst))
		flags |= NODE;

	// If policies isolate an end in the opposite direction, only the first packet of a
	// connection may be allowed here: see struct upper.
	if (wanted & ALLOW && back && !(flags & NODE)) {
		read = read_upper(skb, &k, &up);
		may_allow = read && up.begins;
		if (wanted == ALLOW && !may_allow)
			return 0;
	}

	// Without a policy every packet passes. One end must be known: user space also lets
	// packets between two unknown ends pass, but without an agent these may be new pods.
	if ((of_src | of_dst) & KNOWN && (!flags || flags & NODE) && !judged) {
		if (wanted == LATER)
			return may_allow;
		return wanted == ALLOW && yes(OPEN);
	}

	// No packet passes from or to a closed pod, except between the pod and itself or its
	// node. Both ends must be known: without an agent, an unknown one may be the node.
	if (of_src & of_dst & KNOWN && flags & CLOSED && !judged) {
		enum verdict as = closed_as(of_src, of_dst);

		if (wanted == DENY)
			return denied(skb, &k, &up, read, DENIED);
		if (wanted == ALLOW)
			return 0;
		if (wanted == REJECT && as == REJECT)
			return denied(skb, &k, &up, read, REJECTED);
		if (as != LATER)
			return wanted == LATER && as == DENY;
	}

	if (!read && !read_upper(skb, &k, &up))
		return 0;
	struct flow f = { .src = src_id, .dst = dst_id, .port = k.port, .protocol = k.protocol, .transport = k.transport };

	// Most policies list ports, so look up the verdict for this port first. A lookup takes 25 ns, or 125 ns
	// if the entry is not in the processor's caches.
	if (!remembered(&f, wanted)) {
		f.port = 0;
		f.protocol = 0;
		f.transport = ANY;
		if (!remembered(&f, wanted))
			return 0;
	}
	switch (wanted) {
	case ALLOW:
		return yes(ALLOWED);
	case REJECT:
		return denied(skb, &k, &up, 1, REJECTED);
	case LATER:
		return may_allow;
	default:
		return denied(skb, &k, &up, 1, DENIED);
	}
}

SEC("socket/allow")
int allow(struct __sk_buff *skb)
{
	return evaluate(skb, ALLOW, ALL);
}

SEC("socket/forwarded")
int forwarded(struct __sk_buff *skb)
{
	return evaluate(skb, ALLOW, FORWARDED);
}

SEC("socket/others")
int others(struct __sk_buff *skb)
{
	return evaluate(skb, ALLOW, OTHERS);
}

SEC("socket/deny")
int deny(struct __sk_buff *skb)
{
	return evaluate(skb, DENY, ALL);
}

SEC("socket/reject")
int reject(struct __sk_buff *skb)
{
	return evaluate(skb, REJECT, ALL);
}

SEC("socket/later")
int later(struct __sk_buff *skb)
{
	return evaluate(skb, LATER, ALL);
}
