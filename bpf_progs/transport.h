/*
 * Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
 * the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software distributed under the License is distributed on
 * an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the
 * specific language governing permissions and limitations under the License.
 */

/* Transport headers and their checksums. */
#pragma once

#include "clatd.h"
#include "kernel.h"

#define PROTO_HOPOPTS 0
#define PROTO_ICMP 1
#define PROTO_IGMP 2
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_DCCP 33
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_AH 51
#define PROTO_ICMPV6 58
#define PROTO_DSTOPTS 60
#define PROTO_UDPLITE 136

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8
#define ICMP_UNREACHABLE 3
#define ICMP_TIME_EXCEEDED 11
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_TIME_EXCEEDED 3
#define ICMPV6_ECHO 128
#define ICMPV6_ECHO_REPLY 129

/* Most bytes that bpf_csum_diff takes at a time. */
#define CHUNK 512
/* So many make more than a jumbo frame. */
#define JUMBO_CHUNKS 18

struct clat_scratch {
	__u8 bytes[CHUNK + 4];
};

/* Room to compute checksums in; the stack has too little. */
MAP(clat_scratch_map, PERCPU_ARRAY, __u32, struct clat_scratch, 1);

/* What the decision needs to know of a transport header, and what becomes of it. */
struct transport {
	__u32 payload; /* bytes behind the IP headers */
	__u32 header; /* its own length, known for super-packets only */
	__u16 checksum_at; /* 0: none that covers the addresses */
	bool zero_is_none; /* a checksum of zero means that there is none */
	bool no_checksum; /* UDP without one */
	__u16 udp_len;
	__u8 kind; /* of an ICMP message */
	bool odd_echo; /* one whose checksum could be 0 or 0xffff */
	bool whole; /* neither part of a packet */
	bool first; /* nor a later part */
};

/* A one's-complement sum as 16 bits; zero only if every word was. */
INLINE __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

INLINE __u32 sum_of(const void *bytes, __u32 len, __u32 seed)
{
	return csum_diff(0, 0, bytes, len, seed);
}

/* The same of so many words of 32 bits, where they are too few to be worth a call. */
INLINE __u64 sum_words(const void *words, const __u32 count)
{
	const __u32 *word = words;
	__u64 sum = 0;

#pragma clang loop unroll(full)
	for (__u32 i = 0; i < count; i++)
		sum += word[i];
	return sum;
}

/* The same as load() where the header is where it mostly is. */
INLINE long load_at(const struct __sk_buff *skb, __u32 at, const __u32 mostly, void *to, const __u32 len)
{
	return at == mostly ? load(skb, mostly, to, len) : skb_load(skb, at, to, len);
}

/*
 * Looks at the transport header at `at`, which mostly is behind an IP header without more. Fills in `t`, whose payload,
 * whole and first are there already; returns CLAT_REASONS where nothing speaks against translating it.
 */
INLINE enum clat_reason inspect(struct __sk_buff *skb, __u32 at, const __u32 mostly, __u8 protocol,
				struct transport *t)
{
	__u8 head[8] __attribute__((aligned(4))) = {};

	switch (protocol) {
	case PROTO_TCP:
		t->checksum_at = 16;
		break;
	case PROTO_UDP:
	case PROTO_UDPLITE:
		t->zero_is_none = true;
		t->checksum_at = 6;
		break;
	case PROTO_DCCP:
		t->checksum_at = 6;
		break;
	}
	if (skb->gso_size && (!t->whole || (protocol != PROTO_TCP && protocol != PROTO_UDP)))
		return CLAT_GSO;
	if (!t->first)
		return CLAT_REASONS;

	switch (protocol) {
	case PROTO_TCP:
		if (t->payload < 18)
			return CLAT_HEADER;
		if (skb->gso_size) {
			if (skb_load(skb, at + 12, head, 1))
				return CLAT_HEADER;
			t->header = head[0] >> 4 << 2;
			if (t->header > t->payload)
				return CLAT_HEADER;
		}
		break;
	case PROTO_UDP:
		if (t->payload < 8 || load_at(skb, at, mostly, head, 8))
			return CLAT_HEADER;
		t->header = 8;
		t->udp_len = head[4] << 8 | head[5];
		t->no_checksum = !head[6] && !head[7];
		if (t->whole && (t->udp_len < 8 || t->udp_len > t->payload))
			return CLAT_HEADER;
		break;
	case PROTO_UDPLITE:
	case PROTO_DCCP:
		if (t->payload < 8)
			return CLAT_HEADER;
		break;
	case PROTO_ICMP:
	case PROTO_ICMPV6:
		if (t->payload < 8 || load_at(skb, at, mostly, head, 8))
			return CLAT_HEADER;
		t->kind = head[0];
		/* Impossible, or of a message of zeros. */
		t->odd_echo = (head[2] == 0xff && head[3] == 0xff) || (!head[4] && !head[5] && !head[6] && !head[7]);
		break;
	}
	return CLAT_REASONS;
}

/* Length of the packet, of a super-packet's largest segment, behind an IP header of `header` bytes. */
INLINE __u32 length(struct __sk_buff *skb, const struct transport *t, __u32 header)
{
	return header + (skb->gso_size ? t->header + skb->gso_size : t->payload);
}

/*
 * Makes the transport checksum at `at` follow addresses whose sums differ by `diff`. Knows of checksums that are yet to
 * be finished (CHECKSUM_PARTIAL), and mends the packet's own sum (CHECKSUM_COMPLETE).
 */
INLINE long readdress(struct __sk_buff *skb, __u32 at, const struct transport *t, __u32 diff)
{
	__u16 folded = fold(diff);

	/* Neutral addresses. */
	if (!t->checksum_at || !t->first || folded == 0 || folded == 0xffff)
		return 0;
	return l4_csum_replace(skb, at + t->checksum_at, 0, diff,
			       BPF_F_PSEUDO_HDR | (t->zero_is_none ? BPF_F_MARK_MANGLED_0 : 0));
}

/*
 * Whether the checksum at `at` is left to a device (CHECKSUM_PARTIAL), as that of every sound super-packet is. Of UDP
 * there are others: those that left a device without checksum offload since 6.11, with half a checksum that only that
 * device's segmentation would complete, and those that are a list of packets with headers of their own
 * (NETIF_F_GRO_FRAGLIST). No field tells, but one kind of checksum goes up where the other goes down. It is put back.
 */
INLINE bool is_left_to_device(struct __sk_buff *skb, __u32 at)
{
	__u16 was = 0, is = 0;

	return !skb_load(skb, at, &was, sizeof(was)) && !l4_csum_replace(skb, at, 0, 1, BPF_F_PSEUDO_HDR) &&
	       !skb_load(skb, at, &is, sizeof(is)) && !l4_csum_replace(skb, at, 0, ~1U, BPF_F_PSEUDO_HDR) &&
	       !skb_store(skb, at, &was, sizeof(was), 0) && is == fold((__u64)was + 1);
}

/* Turns the echo message at `at` into that of the other family; `pseudo` is what the pseudo-header adds to its sum. */
INLINE long retype(struct __sk_buff *skb, __u32 at, __u8 from, __u8 to, __u32 pseudo)
{
	return l4_csum_replace(skb, at + 2, net16((__u16)(from << 8)), net16((__u16)(to << 8)), 2) ||
	       skb_store(skb, at, &to, 1, 0) || l4_csum_replace(skb, at + 2, 0, pseudo, BPF_F_PSEUDO_HDR);
}

/*
 * `n`, which lies between one and `most`, a power of two, in a form in which every verifier sees that it does: some
 * learn nothing from a comparison with zero, or with a copy of 32 bits.
 */
INLINE __u64 one_to(__u64 most, __u64 n)
{
	n--;
	asm volatile("" : "+r"(n));
	return (n & (most - 1)) + 1;
}

/* Adds `len` bytes at `at` to `sum`. False if they are more than so many chunks. Not by bpf_loop (5.17). */
INLINE bool sum_bytes(struct __sk_buff *skb, __u32 at, __u32 len, __u32 *sum, const int chunks)
{
	__u32 zero = 0;
	struct clat_scratch *scratch = LOOKUP(clat_scratch_map, &zero);

	if (!scratch)
		return false;
#pragma clang loop unroll(disable)
	for (int i = 0; i < chunks; i++) {
		if (len == 0)
			return true;

		__u64 n = one_to(CHUNK, len < CHUNK ? len : CHUNK);

		if (skb_load(skb, at, scratch->bytes, n))
			return false;
		/* Up to a multiple of four. */
		scratch->bytes[n] = 0;
		scratch->bytes[n + 1] = 0;
		scratch->bytes[n + 2] = 0;
		*sum = sum_of(scratch->bytes, (n + 3) & ~3U, *sum);
		at += n;
		len -= n;
	}
	return len == 0;
}

/* The checksum `field` when words that summed to `old` become words that sum to `new` (RFC 1624 §3). */
INLINE __u16 adjust(__u16 field, __u32 old, __u32 new)
{
	__u16 from = fold(old), to = fold(new);

	/* The same number, which has two forms if it is zero. */
	if (from % 0xffff == to % 0xffff)
		return field;
	return ~fold((__u64)(__u16)~field + (__u16)~from + to);
}
