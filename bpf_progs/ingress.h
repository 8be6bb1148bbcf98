// SPDX-License-Identifier: Apache-2.0
/* IPv6 to IPv4 (RFC 7915 §5), on its way in. */
#pragma once

#include "transport.h"

/* Up to this size an IPv4 packet may be fragmented further on (RFC 7915 §5.1). */
#define MOST_WITHOUT_DF 1260

/* Leaves the packet to the daemon. */
INLINE int pass_up(struct __sk_buff *skb, struct clat_counters *counters, enum clat_reason reason)
{
	MARK_FOR_DAEMON(skb);
	return pass(counters, reason);
}

INLINE struct clat_counters *ingress_counters(const struct clat_ingress_value *clat)
{
	__u32 slot = CLAT_SLOTS + slot_of(clat->local4.s_addr);

	return LOOKUP(clat_counters_map, &slot);
}

/*
 * What comes from outside the prefix is mostly native IPv6, which is no business of ours; but an
 * ICMPv6 error about a packet that was sent to the prefix is the daemon's.
 */
INLINE int pass_unknown(struct __sk_buff *skb, const __u32 at, struct clat_ingress_key *key)
{
	const __u32 quoted = at + sizeof(struct icmp_header);
	const struct clat_ingress_value *clat;
	struct clat_counters *counters;
	__u8 type;

	/* RFC 4443 §2.1. */
	if (skb_load(skb, at, &type, sizeof(type)) || type > 127 ||
	    skb_load(skb, quoted + offsetof(struct ipv6hdr, daddr), &key->pfx96, 12))
		return TC_ACT_PIPE;
	clat = LOOKUP(clat_ingress_map, key);
	if (!clat)
		return TC_ACT_PIPE;
	counters = ingress_counters(clat);
	return counters ? pass_up(skb, counters, CLAT_ICMP) : TC_ACT_PIPE;
}

/* Steps over a Fragment Header, the only extension header that is common. */
INLINE enum clat_reason check_extensions(const struct __sk_buff *skb, __u32 at, __u8 next,
					 struct fragment_header *fragment, struct transport *t)
{
	t->protocol = next;
	if (next == PROTO_FRAGMENT) {
		if (skb_load(skb, at, fragment, sizeof(*fragment)))
			return CLAT_HEADER;
		t->has_fragment = true;
		t->protocol = fragment->next;
	}
	if (is_in(t->protocol, SET(PROTO_HOPOPTS) | SET(PROTO_ROUTING) | SET(PROTO_FRAGMENT) |
				       SET(PROTO_DSTOPTS)))
		return CLAT_OPTIONS;
	/* Without a counterpart. */
	if (is_in(t->protocol, SET(PROTO_ICMP) | SET(PROTO_IGMP) | SET(PROTO_AH)))
		return CLAT_PROTOCOL;
	return NO_REASON;
}

/* What is behind the headers, and which part of a packet it is. */
INLINE enum clat_reason check_ipv6_fragment(const struct fragment_header *fragment, __u32 payload,
					    struct transport *t)
{
	const __u16 offset_more = net16(fragment->offset_more);
	const __u32 offset = offset_more & ~7;

	t->payload = payload;
	t->first = !offset;
	t->whole = !(offset_more & ~6);
	if (offset + payload > 0xffff)
		return CLAT_FRAGMENT;
	/* Its checksum takes all of the message. */
	if (!t->whole && t->protocol == PROTO_ICMPV6)
		return CLAT_FRAGMENT;
	return NO_REASON;
}

/* What takes a look into the packet. */
INLINE enum clat_reason check_transport6(struct __sk_buff *skb, __u32 at, struct transport *t)
{
	const enum clat_reason reason = inspect(skb, at, t);

	if (reason != NO_REASON)
		return reason;
	if (skb->gso_size && t->protocol == PROTO_UDP && !is_left_to_device(skb, at + UDP_CHECKSUM))
		return CLAT_GSO;
	/* The most that the length of an IPv4 packet can say. */
	return sizeof(struct iphdr) + t->payload > 0xffff ? CLAT_SIZE : NO_REASON;
}

/* RFC 7915 §5.1; without what says which fragment it is, and the checksum. */
INLINE void make_ipv4(struct iphdr *new, const struct ipv6hdr *ip, const struct transport *t,
		      const struct clat_ingress_value *clat)
{
	*new = (struct iphdr){
		.version = 4,
		.ihl = sizeof(*new) / 4,
		.tos = ip->priority << 4 | ip->flow_lbl[0] >> 4,
		.tot_len = net16((__u16)(sizeof(*new) + t->payload)),
		.ttl = ip->hop_limit,
		.protocol = t->protocol == PROTO_ICMPV6 ? PROTO_ICMP : t->protocol,
		.saddr = ip->saddr.in6_u.u6_addr32[3],
		.daddr = clat->local4.s_addr,
	};
}

/* RFC 7915 §5.1.1: as in the Fragment Header, the low half of its identification. */
INLINE void set_fragment(struct iphdr *new, const struct fragment_header *fragment)
{
	const __u16 offset_more = net16(fragment->offset_more);

	new->id = net16((__u16)net32(fragment->id));
	new->frag_off = net16((__u16)(offset_more >> 3 | (offset_more & 1 ? IPV4_MF : 0)));
}

/*
 * RFC 7915 §5.1, without one. What may be fragmented further on takes another identification each
 * time; zero would read as "none".
 */
INLINE void set_no_fragment(struct iphdr *new, __u32 length, __u16 id)
{
	if (length > MOST_WITHOUT_DF)
		new->frag_off = net16(IPV4_DF);
	else
		new->id = net16(id) ?: net16(1);
}

/* Writes the header where the second half of the IPv6 header was, which had the sum `old`. */
INLINE long write_ipv4(struct __sk_buff *skb, const __u32 link, const struct iphdr *new, __u16 old)
{
	struct iphdr *ip = bytes_at(skb, link, sizeof(*ip));

	if (!ip)
		return -1;
	if (link)
		set_ether_type(ip, ETH_P_IP);
	*ip = *new;
	/* A sound IPv4 header adds nothing to a sum. */
	csum_update(skb, (__u16)~old);
	return 0;
}

/* The transport header at `at`, for addresses that had the sum `old`. */
INLINE long write_transport4(struct __sk_buff *skb, __u32 at, const struct iphdr *new,
			     const struct transport *t, __u64 old)
{
	if (new->protocol == PROTO_ICMP) {
		const __u16 pseudo = ~fold(old + net32(t->payload) + net32(PROTO_ICMPV6));
		const bool is_request = t->icmp_type == ICMPV6_ECHO;

		return retype(skb, at, t->icmp_type, is_request ? ICMP_ECHO : ICMP_ECHO_REPLY,
			      pseudo);
	}
	if (!t->first)
		return 0;
	return readdress(skb, at, new->protocol,
			 fold(sum_words(&new->saddr, 2) + (__u16)~fold(old)));
}

/*
 * Makes the packet one with the header `new`; the old one had addresses with the sum `addresses`.
 */
INLINE int translate_and_receive(struct __sk_buff *skb, const struct iphdr *new,
				 const struct transport *t, __u64 addresses, __u16 second_half,
				 const struct clat_ingress_value *clat,
				 struct clat_counters *counters, const __u32 link)
{
	const __u32 headers = sizeof(struct ipv6hdr) + fragment_len(t);
	const __u32 len = skb->len - link;
	const __u32 hash = skb->hash;

	/* To [second half of the IPv6 header][payload]. */
	if (skb_change_proto(skb, net16(ETH_P_IP), 0))
		return pass_up(skb, counters, CLAT_KERNEL);
	if (t->has_fragment && skb_adjust_room(skb, -(__s32)sizeof(struct fragment_header),
					       BPF_ADJ_ROOM_NET, 0))
		return drop(counters);
	if (write_ipv4(skb, link, new, second_half) ||
	    write_transport4(skb, link + sizeof(*new), new, t, addresses))
		return drop(counters);
	keep_hash(skb, hash);
	count(counters, skb, len, headers + t->header);
	/* The direct way: as IPv4 up the stack, which looks at the protocol only now. */
	if (clat->oif == skb->ifindex)
		return TC_ACT_PIPE;
	return redirect(clat->oif, BPF_F_INGRESS);
}

INLINE int ingress(struct __sk_buff *skb, const bool ether)
{
	const __u32 link = ether ? ETH_HLEN : 0;
	struct fragment_header fragment = {};
	const struct ipv6hdr *ip;
	struct transport t = {};
	enum clat_reason reason;
	struct iphdr new;

	/* Another host's, or another VLAN's. */
	if (skb->protocol != net16(ETH_P_IPV6) || skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_PIPE;
	ip = pulled_bytes_at(skb, link, sizeof(*ip));
	if (!ip || ip->version != 6)
		return TC_ACT_PIPE;

	struct clat_ingress_key key = { .iif = skb->ifindex, .local6 = ip->daddr };

	__builtin_memcpy(&key.pfx96, &ip->saddr, 12);

	const struct clat_ingress_value *clat = LOOKUP(clat_ingress_map, &key);

	if (!clat)
		return ip->nexthdr == PROTO_ICMPV6 ? pass_unknown(skb, link + sizeof(*ip), &key) :
						     TC_ACT_PIPE;

	struct clat_counters *counters = ingress_counters(clat);

	if (!counters)
		return TC_ACT_PIPE; /* not reached: it is an array */

	/* Every check comes before the first change. */
	const __u32 len = skb->len - link;

	if (len != sizeof(*ip) + net16(ip->payload_len))
		return pass_up(skb, counters, CLAT_HEADER);
	reason = check_extensions(skb, link + sizeof(*ip), ip->nexthdr, &fragment, &t);
	if (reason != NO_REASON)
		return pass_up(skb, counters, reason);
	FORGET(t);
	FORGET(fragment);

	const __u32 headers = sizeof(*ip) + fragment_len(&t);

	reason = check_ipv6_fragment(&fragment, len - headers, &t);
	if (reason != NO_REASON)
		return pass_up(skb, counters, reason);
	make_ipv4(&new, ip, &t, clat);
	/* Nor does the CLAT's own address come from inside the prefix. */
	if (is_martian(net32(new.saddr)) || new.saddr == new.daddr)
		return pass_up(skb, counters, CLAT_MARTIAN);

	const __u64 addresses = sum_words(&ip->saddr, 8);
	const __u16 second_half = fold(sum_words(&ip->saddr.in6_u.u6_addr32[3], 5));

	reason = check_transport6(skb, link + headers, &t);
	if (reason != NO_REASON)
		return pass_up(skb, counters, reason);
	FORGET(t);
	FORGET(new);
	if (t.has_fragment)
		set_fragment(&new, &fragment);
	else
		set_no_fragment(&new, length(skb, &t, sizeof(new)), counters->packets);
	new.check = ~fold(sum_words(&new, sizeof(new) / 4));
	return translate_and_receive(skb, &new, &t, addresses, second_half, clat, counters, link);
}
