// SPDX-License-Identifier: Apache-2.0
/* Incoming packets, IPv6 to IPv4 (RFC 7915 §5). */
#pragma once

#include "transport.h"

/* Up to this size DF is not set (RFC 7915 §5.1). */
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
 * Packets from outside the prefix are native IPv6, except for ICMPv6 errors about packets to the
 * prefix, which are left to the daemon.
 */
INLINE int pass_unknown(struct __sk_buff *skb, const __u32 at, struct clat_ingress_key *key)
{
	const __u32 quoted = at + sizeof(struct icmp_header);
	const struct clat_ingress_value *clat;
	struct clat_counters *counters;
	__u8 type;

	/* RFC 4443 §2.1: errors have types up to 127. */
	if (skb_load(skb, at, &type, sizeof(type)) || type > 127 ||
	    skb_load(skb, quoted + offsetof(struct ipv6hdr, daddr), &key->pfx96, 12))
		return TC_ACT_PIPE;
	clat = LOOKUP(clat_ingress_map, key);
	if (!clat)
		return TC_ACT_PIPE;
	counters = ingress_counters(clat);
	return counters ? pass_up(skb, counters, CLAT_ICMP) : TC_ACT_PIPE;
}

/* Reads a Fragment Header, the only common extension header. */
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
	/* Without a counterpart in IPv4. */
	if (is_in(t->protocol, SET(PROTO_ICMP) | SET(PROTO_IGMP) | SET(PROTO_AH)))
		return CLAT_PROTOCOL;
	return NO_REASON;
}

/* Reads the payload's length, and its place in a fragmented packet. */
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
	/* The checksum covers the whole message. */
	if (!t->whole && t->protocol == PROTO_ICMPV6)
		return CLAT_FRAGMENT;
	return NO_REASON;
}

/* Checks the payload. */
INLINE enum clat_reason check_transport6(struct __sk_buff *skb, __u32 at, struct transport *t)
{
	const enum clat_reason reason = inspect(skb, at, t);

	if (reason != NO_REASON)
		return reason;
	if (skb->gso_size && t->protocol == PROTO_UDP && !is_left_to_device(skb, at + UDP_CHECKSUM))
		return CLAT_GSO;
	/* The largest IPv4 packet. */
	return sizeof(struct iphdr) + t->payload > 0xffff ? CLAT_SIZE : NO_REASON;
}

/* RFC 7915 §5.1, without the fragmentation fields and the checksum. */
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

/* RFC 7915 §5.1.1: from the Fragment Header, with the low half of its identification. */
INLINE void set_fragment(struct iphdr *new, const struct fragment_header *fragment)
{
	const __u16 offset_more = net16(fragment->offset_more);

	new->id = net16((__u16)net32(fragment->id));
	new->frag_off = net16((__u16)(offset_more >> 3 | (offset_more & 1 ? IPV4_MF : 0)));
}

/*
 * RFC 7915 §5.1, without a Fragment Header. A packet that may be fragmented later gets a new
 * identification, but not zero.
 */
INLINE void set_no_fragment(struct iphdr *new, __u32 length, __u16 id)
{
	if (length > MOST_WITHOUT_DF)
		new->frag_off = net16(IPV4_DF);
	else
		new->id = net16(id) ?: net16(1);
}

/* Writes the header in place of the second half of the IPv6 header, whose sum is `old`. */
INLINE long write_ipv4(struct __sk_buff *skb, const __u32 link, const struct iphdr *new, __u16 old)
{
	struct iphdr *ip = bytes_at(skb, link, sizeof(*ip));

	if (!ip)
		return -1;
	if (link)
		set_ether_type(ip, ETH_P_IP);
	*ip = *new;
	/* A valid IPv4 header adds nothing to a sum. */
	csum_update(skb, (__u16)~old);
	return 0;
}

/* Adjusts the transport header at `at`; the old addresses have the sum `old`. */
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
 * Gives the packet the header `new`; `addresses` is the sum of the old addresses.
 */
INLINE int translate_and_receive(struct __sk_buff *skb, const struct iphdr *new,
				 const struct transport *t, __u64 addresses, __u16 second_half,
				 struct clat_ingress_value *clat,
				 struct clat_counters *counters, const __u32 link)
{
	const __u32 headers = sizeof(struct ipv6hdr) + fragment_len(t);
	const __u32 len = skb->len - link;
	const __u32 hash = skb->hash;

	/* Now it is [second half of the IPv6 header][payload]. */
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
	COUNT_IN_ENTRY(clat, skb->len - link);
	/* The direct way: the stack, which reads the protocol after tc, receives IPv4. */
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

	/* Packets to another host, or of another VLAN, pass. */
	if (skb->protocol != net16(ETH_P_IPV6) || skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_PIPE;
	ip = pulled_bytes_at(skb, link, sizeof(*ip));
	if (!ip || ip->version != 6)
		return TC_ACT_PIPE;

	struct clat_ingress_key key = { .iif = skb->ifindex, .local6 = ip->daddr };

	__builtin_memcpy(&key.pfx96, &ip->saddr, 12);

	struct clat_ingress_value *clat = LOOKUP(clat_ingress_map, &key);

	if (!clat)
		return ip->nexthdr == PROTO_ICMPV6 ? pass_unknown(skb, link + sizeof(*ip), &key) :
						     TC_ACT_PIPE;

	struct clat_counters *counters = ingress_counters(clat);

	if (!counters)
		return TC_ACT_PIPE; /* not reached: it is an array */

	/* All checks come before the first change. */
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
	/* The CLAT's own address is not in the prefix either. */
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
