//go:build ignore

// The flow cache in the kernel: two programs that iptables calls as a match (-m
// bpf --object-pinned). "allow" says yes to a packet that may pass without asking
// user space, "deny" to one that must not; a packet to which neither says yes goes
// to the queue, as if there were no cache. A match can only say yes or no, hence
// two.
//
// What they may say is what packet.Decode and policy.Snapshot.DecideBetween say,
// or nothing. All that is odd is left to those: fragments, IPv4 options, IPv6
// extension headers, lengths that cannot be right.
//
// A packet reaches them at its IP header. Each costs 110 ns where no verdict is
// needed and 180 where one is looked up; a packet that is queued after all has paid
// for both.

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// address is IPv6, or IPv4 in its mapped form, ::ffff:a.b.c.d.
struct address {
	__u32 word[4];
};

// key has the layout of filter.Key.
struct key {
	struct address src, dst;
	__u16 port; // of the destination, in the order of this machine
	__u8 protocol, transport;
};

// What filter.Transport calls these states.
enum { PORTLESS = 1, PORTED = 2, ANY = 3 };

enum { ICMPV6 = 58 }; // which linux/in.h lacks

// endpoint is whoever is known to have an address. The flags say in which
// directions policies isolate it, in which of these no rule allows anything, and
// whether it is this node and no pod. The device is the interface that leads to this
// pod of this node and to no other, if there is one: a pod that gets the address when
// there is no agent has another, and nothing is answered for it.
struct endpoint {
	__u64 epoch;
	__u32 flags;
	__u32 device;
};

enum {
	ISOLATED_EGRESS = 1,
	ISOLATED_INGRESS = 2,
	NODE = 4,
	CLOSED_EGRESS = 8,
	CLOSED_INGRESS = 16,
	KNOWN = 32, // set here: there is one
	SHARED = 64, // a pod of this node that no device tells from others
	CLOSED = CLOSED_EGRESS | CLOSED_INGRESS,
	OF_SOURCE = ISOLATED_EGRESS | CLOSED_EGRESS | NODE,
	OF_DESTINATION = ISOLATED_INGRESS | CLOSED_INGRESS | NODE,
};

enum verdict { DENY = 0, ALLOW = 1 };

// Random numbers that the loader sets: see stamp.
volatile const __u64 secrets[7];

// endpoints holds one table of all endpoints, which is never written while it is
// here: user space writes another and puts that in its place. So whatever changes
// at once in a cluster changes here at once, and the kernel tells user space when
// no program uses the table from before any more. Empty, it closes the cache.
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

// deadline is until when the programs answer for pods that no device tells from
// others, in nanoseconds of the kernel's monotonic clock. The agent moves it on. The
// addresses of such pods may belong to others when it has been gone for long.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} deadline SEC(".maps");

struct range {
	__u32 bits;
	struct address first;
};

// ranges are those in which pods have their addresses. Whoever is not known there
// is a pod of which the news is still on its way, and user space has the packet
// wait.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct range);
	__type(value, __u32);
} ranges SEC(".maps");

// flows are the verdicts that were given, as stamp and verdict in one number. Where
// one holds for all packets of a pair of addresses, its key is the pair's, so that
// a scan of ports takes one place, and one way to user space.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct key);
	__type(value, __u64);
} flows SEC(".maps");

// answers counts: packets allowed because nobody isolates either end, other packets
// allowed, and packets denied.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
} answers SEC(".maps");

enum answer { OPEN, ALLOWED, DENIED };

static __always_inline int yes(enum answer which)
{
	__u32 at = which;
	__u64 *count = bpf_map_lookup_elem(&answers, &at);

	if (count)
		(*count)++; // this CPU's own, and iptables keeps others from running on it
	return 1;
}

// upper is where the header behind that of IP begins, and how much of the packet
// lies behind there by what the IP header says: nothing, in packets too long for
// the field, which are left to user space. Protocol 0 stands for something odd; in
// IPv6 it is that, a header of options. begins is set once the header was read, if
// the packet may be the first of a connection, for which the verdict about its key
// suffices. Any other may belong to a connection that the end it goes to has opened:
// see Judge in the package cache.
struct upper {
	__u32 at, length;
	__u8 protocol, begins;
};

static __always_inline int mapped(struct address *a)
{
	return !a->word[0] && !a->word[1] && a->word[2] == bpf_htonl(0xffff);
}

// Pointers that the programs get cannot be compared: without the capability PERFMON
// the kernel takes that for a leak.
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

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
		return 0;
	map(&k->src, ip.src);
	map(&k->dst, ip.dst);
	__u32 length = bpf_ntohs(ip.length);

	// Of the fragment field, one bit only says that nobody may cut the packet up.
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

// A packet that claims a mapped address on the wire could pass for one of IPv4,
// and is denied.
static __always_inline int read_ipv6(struct __sk_buff *skb, struct key *k, struct upper *up)
{
	struct ipv6 ip;

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || mapped(&ip.src) || mapped(&ip.dst))
		return 0;
	k->src = ip.src;
	k->dst = ip.dst;
	up->at = sizeof(ip);
	up->length = bpf_ntohs(ip.length);
	up->protocol = ip.next;
	return 1;
}

enum { FIN = 0x01, SYN = 0x02, RST = 0x04, ACK = 0x10 }; // of TCP, RFC 9293, 3.1
enum { INIT = 1 };						 // the chunk of SCTP, RFC 9260, 3.2

// read_upper completes the key; 0 if the header is odd, or not all there.
static __always_inline int read_upper(struct __sk_buff *skb, struct key *k, struct upper *up)
{
	__u8 header[20]; // the fixed part of TCP, which is the longest
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
	return 1;
}

// expected says whether an address is one that a pod should have.
static __always_inline int expected(struct address *a)
{
	struct range one = { .bits = 128, .first = *a };

	return bpf_map_lookup_elem(&ranges, &one) != 0;
}

// product is one step of NH, the hash of UMAC (Black, Halevi, Krawczyk, Krovetz and
// Rogaway, "UMAC: Fast and secure message authentication", CRYPTO 1999).
static __always_inline __u64 product(__u64 secret, __u32 a, __u32 b)
{
	return (__u64)(__u32)(a + (__u32)secret) * (__u32)(b + (__u32)(secret >> 32));
}

// stamp is a number that a key has with the epochs of its two ends, and with no
// others: a verdict holds while both are what they were. It stands for the key
// too because the kernel gives the place of a flow that it forgets to another at
// once, under the hands of a program that reads it; what is read is one number,
// so that it cannot be half of each. Of any two inputs, at most one choice of the
// secrets in 2^30 gives both one stamp, so that two cannot be found without
// them. A chain of multiplications by a constant has no such bound: there, the same
// two bits changed in neighbouring words cancelled out for every start value.
static __always_inline __u64 stamp(struct key *k, __u64 src, __u64 dst)
{
	__u32 rest = (__u32)k->port << 16 | k->protocol << 8 | k->transport;
	__u64 h = product(secrets[0], k->src.word[0], k->src.word[1]);

	h += product(secrets[1], k->src.word[2], k->src.word[3]);
	h += product(secrets[2], k->dst.word[0], k->dst.word[1]);
	h += product(secrets[3], k->dst.word[2], k->dst.word[3]);
	h += product(secrets[4], rest, 0);
	h += product(secrets[5], src, src >> 32);
	h += product(secrets[6], dst, dst >> 32);
	return h & ~1ULL;
}

static __always_inline int remembered(struct key *k, __u64 src, __u64 dst, enum verdict wanted)
{
	volatile __u64 *flow = bpf_map_lookup_elem(&flows, k);

	return flow && *flow == (stamp(k, src, dst) | wanted);
}

// unattended reports whether the deadline is over.
static __always_inline int unattended(void)
{
	__u32 first = 0;
	__u64 *until = bpf_map_lookup_elem(&deadline, &first);

	return !until || bpf_ktime_get_ns() > *until;
}

static __always_inline int judge(struct __sk_buff *skb, enum verdict wanted)
{
	struct key k = {};
	struct upper up = {};
	__u32 first = 0;
	__u8 version;

	void *known = bpf_map_lookup_elem(&endpoints, &first);
	if (!known || bpf_skb_load_bytes(skb, 0, &version, 1))
		return 0;
	if (version >> 4 == 4) {
		if (!read_ipv4(skb, &k, &up))
			return 0;
	} else if (version >> 4 != 6 || !read_ipv6(skb, &k, &up)) {
		return 0;
	}

	struct endpoint *src = bpf_map_lookup_elem(known, &k.src);
	struct endpoint *dst = bpf_map_lookup_elem(known, &k.dst);
	// Numbers from here on: what a compiler makes of two pointers in one condition
	// needs PERFMON too.
	__u64 of_src = 0, of_dst = 0, src_epoch = 0, dst_epoch = 0;

	if (src) {
		of_src = src->flags | KNOWN;
		src_epoch = src->epoch;
		if (src->device && src->device != skb->ingress_ifindex)
			return 0;
	} else if (expected(&k.src)) {
		return 0;
	}
	if (dst) {
		of_dst = dst->flags | KNOWN;
		dst_epoch = dst->epoch;
		if (dst->device && dst->device != skb->ifindex)
			return 0;
	} else if (expected(&k.dst)) {
		return 0;
	}

	if ((of_src | of_dst) & SHARED && unattended())
		return 0;

	__u64 flags = (of_src & OF_SOURCE) | (of_dst & OF_DESTINATION);
	__u64 back = (of_src & ISOLATED_INGRESS) | (of_dst & ISOLATED_EGRESS);

	int read = 0;

	if (wanted == ALLOW && back && !(flags & NODE)) {
		read = read_upper(skb, &k, &up);
		if (!read || !up.begins)
			return 0;
	}

	// With no policy in the way any packet passes, whatever it is. It takes a known
	// end: of two strangers user space says the same, but when it is gone, they may
	// be pods that it never heard of.
	if ((of_src | of_dst) & KNOWN && (!flags || flags & NODE))
		return wanted == ALLOW && yes(OPEN);

	// Nor does any pass from or to a pod to which nothing is allowed, but from and to
	// itself, and its node: a stranger may be that.
	if (of_src & of_dst & KNOWN && !same(&k.src, &k.dst) && flags & CLOSED)
		return wanted == DENY && yes(DENIED);

	if (!read && !read_upper(skb, &k, &up))
		return 0;
	struct key pair = { .src = k.src, .dst = k.dst, .transport = ANY };

	if (!remembered(&pair, src_epoch, dst_epoch, wanted) && !remembered(&k, src_epoch, dst_epoch, wanted))
		return 0;
	return yes(wanted == ALLOW ? ALLOWED : DENIED);
}

SEC("socket/allow")
int allow(struct __sk_buff *skb)
{
	return judge(skb, ALLOW);
}

SEC("socket/deny")
int deny(struct __sk_buff *skb)
{
	return judge(skb, DENY);
}
