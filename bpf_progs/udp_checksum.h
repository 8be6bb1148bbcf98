// SPDX-License-Identifier: Apache-2.0
/* Computes missing UDP checksums (RFC 7915 §4.5), as of tunnels and IPsec. */
#pragma once

#include "transport.h"

/* The most bytes that bpf_csum_diff takes in a call. */
#define CHUNK 512
/* Enough for an Ethernet frame. */
#define CHUNKS 3

struct clat_scratch {
	__u8 bytes[CHUNK + 4];
};

/* Too large for the BPF stack of 512 bytes. */
MAP(clat_scratch_map, PERCPU_ARRAY, __u32, struct clat_scratch, 1);

/* `n`, from 1 to `most`, a power of two, in a form whose bounds every verifier understands. */
INLINE __u64 bounded(__u64 n, const __u64 most)
{
	n--;
	asm volatile("" : "+r"(n));
	return (n & (most - 1)) + 1;
}

/* Adds `len` bytes at `at` to `sum`. False if too many. bpf_loop would need Linux 5.17. */
INLINE bool sum_bytes(struct __sk_buff *skb, __u32 at, __u32 len, __u32 *sum)
{
	__u32 zero = 0;
	struct clat_scratch *scratch = LOOKUP(clat_scratch_map, &zero);

	if (!scratch)
		return false;
#pragma clang loop unroll(disable)
	for (int i = 0; i < CHUNKS && len; i++) {
		__u64 n = bounded(len < CHUNK ? len : CHUNK, CHUNK);

		if (skb_load(skb, at, scratch->bytes, n))
			return false;
		/* Padding to a multiple of four. */
		scratch->bytes[n] = 0;
		scratch->bytes[n + 1] = 0;
		scratch->bytes[n + 2] = 0;
		*sum = csum_diff(0, 0, scratch->bytes, (n + 3) & ~3U, *sum);
		at += n;
		len -= n;
	}
	return len == 0;
}

/* The checksum of the datagram at `at` with its new addresses; 0 if it is too long. */
INLINE __u16 udp_checksum(struct __sk_buff *skb, __u32 at, __u16 len, const struct ipv6hdr *ip)
{
	__u32 sum = fold(sum_words(&ip->saddr, 8) + net32(len) + net32(PROTO_UDP));

	if (!sum_bytes(skb, at, len, &sum))
		return 0;
	return ~fold(sum) ?: 0xffff;
}
