// See the Go package addrbits, which has the same function.

#define ADDRESS_BIT_HIGH 0x9e3779b97f4a7c15ULL
#define ADDRESS_BIT_LOW 0xd1342543de82ef95ULL

// address_bit returns the number of the bit of an address, given as its four words, in a filter of 2^log2 bits.
static __always_inline __u32 address_bit(const __u32 *word, int log2)
{
	__u64 high = (__u64)word[0] << 32 | word[1], low = (__u64)word[2] << 32 | word[3];
	__u64 sum = high * ADDRESS_BIT_HIGH + low * ADDRESS_BIT_LOW;

	return (sum ^ sum >> 32) * ADDRESS_BIT_HIGH >> (64 - log2);
}

// may_hold reports whether a filter may hold an address. The filter is an array map with 2^log2 bits, in words of
// 64 bits. If it cannot be read, it may hold any address.
static __always_inline int may_hold(void *filter, const __u32 *word, int log2)
{
	__u32 bit = address_bit(word, log2), at = bit >> 6;
	__u64 *bits = bpf_map_lookup_elem(filter, &at);

	return !bits || *bits >> (bit & 63) & 1;
}
