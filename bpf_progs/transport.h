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

/* Offsets of the checksums. */
#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6
#define DCCP_CHECKSUM 6
#define ICMP_CHECKSUM 2

/* RFC 8200 §4.5 */
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

/* Of an echo message: `rest` is its identifier and sequence number. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u32 rest;
};

/* RFC 1812 §5.3.7, RFC 3927 §2.7: packets with such an address are not forwarded. */
INLINE bool is_martian(__u32 addr)
{
	return addr >> 24 == 0 || addr >> 24 == 127 || addr >> 16 == 0xa9fe || addr >> 28 == 14 ||
	       addr == 0xffffffff;
}

/* The properties of a packet's payload. */
struct transport {
	__u32 payload; /* bytes */
	__u8 protocol; /* of the packet as received */
	bool has_fragment; /* the IPv6 packet has a Fragment Header */
	bool whole; /* no fragment */
	bool first; /* whole, or the first fragment */
	bool no_checksum; /* UDP without a checksum */
	__u16 new_checksum; /* the UDP checksum to set then */
	__u8 icmp_type;
	__u16 udp_len;
	__u32 header; /* length of a super-packet's transport header */
};

/* Length of the Fragment Header, in bytes. */
INLINE __u32 fragment_len(const struct transport *t)
{
	return t->has_fragment ? sizeof(struct fragment_header) : 0;
}

/*
 * Whether `protocol` is in a set of protocols below 64. The verifier sees two branches, not one
 * per member.
 */
#define SET(protocol) (1ULL << (protocol))
INLINE bool is_in(__u8 protocol, const __u64 set)
{
	return protocol < 64 && set >> protocol & 1;
}

/* Folds a one's-complement sum to 16 bits; zero only if every word was. */
INLINE __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The sum of `count` 32-bit words: too few to be worth a call of bpf_csum_diff. */
INLINE __u64 sum_words(const void *words, const __u32 count)
{
	const __u32 *word = words;
	__u64 sum = 0;

#pragma clang loop unroll(full)
	for (__u32 i = 0; i < count; i++)
		sum += word[i];
	return sum;
}

/* Checks that the header reaches the checksum; for a super-packet, finds the header's length. */
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

/* Accepts echo messages only; `request` and `reply` are the family's types. */
INLINE enum clat_reason inspect_icmp(const struct __sk_buff *skb, __u32 at, struct transport *t,
				     __u8 request, __u8 reply)
{
	struct icmp_header icmp;

	if (t->payload < sizeof(icmp) || skb_load(skb, at, &icmp, sizeof(icmp)))
		return CLAT_HEADER;
	if (icmp.type != request && icmp.type != reply)
		return CLAT_ICMP;
	/* An invalid checksum, or one of a message that may be all zeros: zero has two forms. */
	if (icmp.checksum == 0xffff || !icmp.rest)
		return CLAT_ICMP;
	t->icmp_type = icmp.type;
	return NO_REASON;
}

/* Whether the transport header at `at`, and the skb's GSO fields, allow a translation. */
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
 * Length of the packet, or of a super-packet's largest segment, with IP headers of `headers`
 * bytes.
 */
INLINE __u32 length(const struct __sk_buff *skb, const struct transport *t, __u32 headers)
{
	return headers + (skb->gso_size ? t->header + skb->gso_size : t->payload);
}

/*
 * Whether the UDP checksum at `at` is left to a device (CHECKSUM_PARTIAL), as in valid
 * super-packets. Two other kinds exist: since Linux 6.11, those sent by a device without checksum
 * offload, with a partial checksum that only that device's segmentation would complete; and lists
 * of packets with headers of their own (NETIF_F_GRO_FRAGLIST). No field of __sk_buff tells, but
 * bpf_l4_csum_replace adds to a partial checksum, and subtracts from a complete one. The checksum
 * is restored.
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
 * Adjusts the checksum of the transport header at `at` for addresses whose sums differ by `diff`.
 * The helper handles partial checksums (CHECKSUM_PARTIAL), and updates the kernel's sum of the
 * packet (CHECKSUM_COMPLETE).
 */
INLINE long readdress(struct __sk_buff *skb, __u32 at, __u8 protocol, __u16 diff)
{
	/* The addresses are checksum-neutral. */
	if (diff == 0 || diff == 0xffff)
		return 0;
	switch (protocol) {
	case PROTO_TCP:
		return l4_csum_replace(skb, at + TCP_CHECKSUM, 0, diff, BPF_F_PSEUDO_HDR);
	case PROTO_UDP:
	case PROTO_UDPLITE:
		/* Zero means no checksum: it is kept, and a result of zero becomes 0xffff. */
		return l4_csum_replace(skb, at + UDP_CHECKSUM, 0, diff,
				       BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
	case PROTO_DCCP:
		return l4_csum_replace(skb, at + DCCP_CHECKSUM, 0, diff, BPF_F_PSEUDO_HDR);
	}
	return 0;
}

/*
 * Translates the type of the echo message at `at`. `pseudo` is the sum to add for the pseudo-header,
 * which ICMPv6 has and ICMP has not.
 */
INLINE long retype(struct __sk_buff *skb, __u32 at, __u8 from, __u8 to, __u16 pseudo)
{
	const __u32 checksum = at + ICMP_CHECKSUM;
	const __u16 old = net16((__u16)(from << 8)), new = net16((__u16)(to << 8));

	return l4_csum_replace(skb, checksum, old, new, sizeof(old)) ||
	       skb_store(skb, at, &to, sizeof(to), 0) ||
	       l4_csum_replace(skb, checksum, 0, pseudo, BPF_F_PSEUDO_HDR);
}
