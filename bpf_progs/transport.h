// SPDX-License-Identifier: Apache-2.0
/* Transport headers and their checksums. */
#pragma once

#include "maps.h"

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
#define ICMPV6_ECHO 128
#define ICMPV6_ECHO_REPLY 129

#define IPV4_DF 0x4000
#define IPV4_MF 0x2000
#define IPV4_OFFSET 0x1fff

/* Where the checksums are. */
#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6
#define DCCP_CHECKSUM 6
#define ICMP_CHECKSUM 2

/* RFC 8200 §4.5. */
struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset_more;
	__be32 id;
};

struct udp_header {
	__be32 ports;
	__be16 len;
	__u16 checksum;
};

/* Of an echo: its identifier and sequence number are the rest. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u32 rest;
};

/* RFC 1812 §5.3.7, RFC 3927 §2.7: no packet on its way has such an address. */
INLINE bool is_martian(__u32 addr)
{
	return addr >> 24 == 0 || addr >> 24 == 127 || addr >> 16 == 0xa9fe || addr >> 28 == 14 ||
	       addr == 0xffffffff;
}

/* What is behind the IP headers. */
struct transport {
	__u32 payload; /* bytes */
	__u8 protocol; /* as the packet that arrived has it */
	bool has_fragment; /* the IPv6 packet has a Fragment Header */
	bool whole; /* no fragment */
	bool first; /* whole, or the first fragment */
	bool no_checksum; /* UDP without one */
	__u16 new_checksum; /* the one that it gets */
	__u8 icmp_type;
	__u16 udp_len;
	__u32 header; /* length of a super-packet's transport header */
};

/* Of the Fragment Header. */
INLINE __u32 fragment_len(const struct transport *t)
{
	return t->has_fragment ? sizeof(struct fragment_header) : 0;
}

/*
 * Whether `protocol` is one of a set, all below 64. Two branches for the verifier, not one for
 * each.
 */
#define SET(protocol) (1ULL << (protocol))
INLINE bool is_in(__u8 protocol, const __u64 set)
{
	return protocol < 64 && set >> protocol & 1;
}

/* A one's-complement sum as 16 bits; zero only if every word was. */
INLINE __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The sum of `count` words of 32 bits: too few to be worth a call of bpf_csum_diff. */
INLINE __u64 sum_words(const void *words, const __u32 count)
{
	const __u32 *word = words;
	__u64 sum = 0;

#pragma clang loop unroll(full)
	for (__u32 i = 0; i < count; i++)
		sum += word[i];
	return sum;
}

/* Up to the checksum, and for a super-packet the length of its header. */
INLINE enum clat_reason inspect_tcp(const struct __sk_buff *skb, __u32 at, struct transport *t)
{
	__u8 data_offset;

	if (t->payload < TCP_CHECKSUM + 2)
		return CLAT_HEADER;
	if (!skb->gso_size)
		return NO_REASON;
	if (skb_load(skb, at + 12, &data_offset, sizeof(data_offset)))
		return CLAT_HEADER;
	t->header = data_offset >> 4 << 2;
	return t->header > t->payload ? CLAT_HEADER : NO_REASON;
}

INLINE enum clat_reason inspect_udp(const struct __sk_buff *skb, __u32 at, struct transport *t)
{
	const struct udp_header *udp = bytes_at(skb, at, sizeof(*udp));
	struct udp_header copy;

	if (t->payload < sizeof(*udp))
		return CLAT_HEADER;
	if (udp) {
		t->udp_len = net16(udp->len);
		t->no_checksum = !udp->checksum;
	} else {
		if (skb_load(skb, at, &copy, sizeof(copy)))
			return CLAT_HEADER;
		t->udp_len = net16(copy.len);
		t->no_checksum = !copy.checksum;
	}
	t->header = sizeof(*udp);
	if (t->whole && (t->udp_len < sizeof(*udp) || t->udp_len > t->payload))
		return CLAT_HEADER;
	return NO_REASON;
}

/* An echo message; `request` is the type of one family's, and `reply`. */
INLINE enum clat_reason inspect_icmp(const struct __sk_buff *skb, __u32 at, struct transport *t,
				     __u8 request, __u8 reply)
{
	struct icmp_header icmp;

	if (t->payload < sizeof(icmp) || skb_load(skb, at, &icmp, sizeof(icmp)))
		return CLAT_HEADER;
	if (icmp.type != request && icmp.type != reply)
		return CLAT_ICMP;
	/* A checksum that is impossible, or that of a message of zeros: zero has two forms. */
	if (icmp.checksum == 0xffff || !icmp.rest)
		return CLAT_ICMP;
	t->icmp_type = icmp.type;
	return NO_REASON;
}

/* Looks at the transport header at `at`, and at what the kernel says of the packet. */
INLINE enum clat_reason inspect(const struct __sk_buff *skb, __u32 at, struct transport *t)
{
	if (skb->gso_size &&
	    (!t->whole || (t->protocol != PROTO_TCP && t->protocol != PROTO_UDP)))
		return CLAT_GSO;
	if (!t->first)
		return NO_REASON;
	switch (t->protocol) {
	case PROTO_TCP:
		return inspect_tcp(skb, at, t);
	case PROTO_UDP:
		return inspect_udp(skb, at, t);
	case PROTO_UDPLITE:
	case PROTO_DCCP:
		return t->payload < UDP_CHECKSUM + 2 ? CLAT_HEADER : NO_REASON;
	case PROTO_ICMP:
		return inspect_icmp(skb, at, t, ICMP_ECHO, ICMP_ECHO_REPLY);
	case PROTO_ICMPV6:
		return inspect_icmp(skb, at, t, ICMPV6_ECHO, ICMPV6_ECHO_REPLY);
	}
	return NO_REASON;
}

/*
 * Length of the packet, of a super-packet's largest segment, behind IP headers of `headers` bytes.
 */
INLINE __u32 length(const struct __sk_buff *skb, const struct transport *t, __u32 headers)
{
	return headers + (skb->gso_size ? t->header + skb->gso_size : t->payload);
}

/*
 * Whether the UDP checksum at `at` is left to a device (CHECKSUM_PARTIAL), as that of every sound
 * super-packet is. There are others: those that left a device without checksum offload since 6.11,
 * with half a checksum that only that device's segmentation would complete, and those that are a
 * list of packets with headers of their own (NETIF_F_GRO_FRAGLIST). No field tells, but one kind of
 * checksum goes up where the other goes down. It is put back.
 */
INLINE bool is_left_to_device(struct __sk_buff *skb, __u32 at)
{
	__u16 was = 0, is = 0;

	return !skb_load(skb, at, &was, sizeof(was)) &&
	       !l4_csum_replace(skb, at, 0, 1, BPF_F_PSEUDO_HDR) &&
	       !skb_load(skb, at, &is, sizeof(is)) &&
	       !l4_csum_replace(skb, at, 0, ~1U, BPF_F_PSEUDO_HDR) &&
	       !skb_store(skb, at, &was, sizeof(was), 0) && is == fold((__u64)was + 1);
}

/*
 * Makes the transport header at `at` follow addresses whose sums differ by `diff`. The kernel knows
 * of checksums that are yet to be finished (CHECKSUM_PARTIAL), and mends its own sum of the packet
 * (CHECKSUM_COMPLETE).
 */
INLINE long readdress(struct __sk_buff *skb, __u32 at, __u8 protocol, __u16 diff)
{
	/* Neutral addresses. */
	if (diff == 0 || diff == 0xffff)
		return 0;
	switch (protocol) {
	case PROTO_TCP:
		return l4_csum_replace(skb, at + TCP_CHECKSUM, 0, diff, BPF_F_PSEUDO_HDR);
	case PROTO_UDP:
	case PROTO_UDPLITE:
		/* Zero says that there is none: it stays, and does not come about. */
		return l4_csum_replace(skb, at + UDP_CHECKSUM, 0, diff,
				       BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
	case PROTO_DCCP:
		return l4_csum_replace(skb, at + DCCP_CHECKSUM, 0, diff, BPF_F_PSEUDO_HDR);
	}
	return 0;
}

/* Makes the echo message at `at` one of the other family, whose sum has `pseudo` more in it. */
INLINE long retype(struct __sk_buff *skb, __u32 at, __u8 from, __u8 to, __u16 pseudo)
{
	const __u32 checksum = at + ICMP_CHECKSUM;
	const __u16 old = net16((__u16)(from << 8)), new = net16((__u16)(to << 8));

	return l4_csum_replace(skb, checksum, old, new, sizeof(old)) ||
	       skb_store(skb, at, &to, sizeof(to), 0) ||
	       l4_csum_replace(skb, checksum, 0, pseudo, BPF_F_PSEUDO_HDR);
}
