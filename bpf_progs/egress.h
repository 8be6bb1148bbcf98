// SPDX-License-Identifier: Apache-2.0
/* Outgoing packets, IPv4 to IPv6 (RFC 7915 §4). */
#pragma once

#include "transport.h"
#include "udp_checksum.h"

/* AF_INET6, whose header cannot be included here. */
#define FAMILY_INET6 10

/* RFC 8200 §5. Up to this size a packet without DF is not fragmented (RFC 7915 §4.1). */
#define IPV6_MIN_MTU 1280

/*
 * The version that the direct route sets: it invalidates the packet until the program on the uplink
 * restores it.
 */
#define GUARDED 0
/* The version 4 in a sum. */
#define SUM_OF_VERSION net16(4 << 12)

/* Whether the kernel has the helper; set by the loader. */
SWITCH(clat_has_redirect_neigh);

/*
 * Leaves the packet to the daemon: on v4iface it continues there; on the uplink, where it would
 * leave as IPv4, it is redirected to v4iface, whose program counts it.
 */
INLINE int leave(const struct clat_egress_value *clat, struct clat_counters *counters,
		 enum clat_reason reason, const bool direct)
{
	return direct ? redirect(clat->oif, 0) : pass(counters, reason);
}

/* A packet of no CLAT counts for the one that has v4iface. */
INLINE int leave_foreign_source(__u32 iif, const bool direct)
{
	struct clat_egress_key key = { .iif = iif };

	for (__u32 slot = 0; slot < CLAT_SLOTS; slot++) {
		const struct clat_egress_value *clat;
		struct clat_counters *counters;
		__u32 at = slot;

		key.local4.s_addr = net32(CLAT_POOL + slot);
		clat = LOOKUP(clat_egress_map, &key);
		if (!clat)
			continue;
		counters = LOOKUP(clat_counters_map, &at);
		if (counters)
			return leave(clat, counters, CLAT_FOREIGN_SOURCE, direct);
	}
	return direct ? TC_ACT_SHOT : TC_ACT_PIPE;
}

/* Whether the program can send through the uplink. */
INLINE enum clat_reason check_uplink(const struct clat_egress_value *clat,
				     const struct clat_next_hop *next_hop)
{
	if (!clat->oifIsEthernet)
		return NO_REASON;
	if (!clat_has_redirect_neigh)
		return CLAT_ETHERNET;
	return next_hop->known ? NO_REASON : CLAT_NEXT_HOP;
}

/* Checks the header of a packet of `len` bytes. */
INLINE enum clat_reason check_ipv4(const struct iphdr *ip, __u32 len)
{
	/* RFC 1812 §5.2.2. */
	if (ip->version != 4 || ip->ihl * 4 < sizeof(*ip) || ip->ihl * 4 > len ||
	    net16(ip->tot_len) != len)
		return CLAT_HEADER;
	if (ip->ihl * 4 > sizeof(*ip))
		return CLAT_OPTIONS;
	if (fold(sum_words(ip, sizeof(*ip) / 4)) != 0xffff)
		return CLAT_HEADER;

	/* The CLAT's own address is not reached through the prefix. */
	if (is_martian(net32(ip->daddr)) || ip->daddr == ip->saddr)
		return CLAT_ADDRESS;

	/* Extension headers in IPv6, or without a counterpart there. */
	if (is_in(ip->protocol, SET(PROTO_HOPOPTS) | SET(PROTO_IGMP) | SET(PROTO_ROUTING) |
					SET(PROTO_FRAGMENT) | SET(PROTO_AH) | SET(PROTO_ICMPV6) |
					SET(PROTO_DSTOPTS)))
		return CLAT_PROTOCOL;
	return NO_REASON;
}

/*
 * Reads the payload's properties. Fragments are left to the daemon: it has to fragment most again,
 * and all fragments of a datagram should take the same path.
 */
INLINE enum clat_reason check_whole(const struct iphdr *ip, __u32 len, struct transport *t)
{
	t->protocol = ip->protocol;
	t->payload = len - sizeof(*ip);
	t->first = true;
	t->whole = true;
	return net16(ip->frag_off) & (IPV4_MF | IPV4_OFFSET) ? CLAT_FRAGMENT : NO_REASON;
}

/* RFC 7915 §4.1; the flow label is zero. */
INLINE void make_ipv6(struct ipv6hdr *new, const struct iphdr *ip, const struct transport *t,
		      const struct clat_egress_value *clat)
{
	*new = (struct ipv6hdr){
		.version = 6,
		.priority = ip->tos >> 4,
		.flow_lbl = { ip->tos << 4 },
		.payload_len = net16((__u16)t->payload),
		.nexthdr = ip->protocol == PROTO_ICMP ? PROTO_ICMPV6 : ip->protocol,
		.hop_limit = ip->ttl,
		.saddr = clat->local6,
		.daddr = clat->pfx96,
	};
	new->daddr.in6_u.u6_addr32[3] = ip->daddr;
}

/* Checks the payload of a packet that gets the header `new`. */
INLINE enum clat_reason check_transport4(struct __sk_buff *skb, __u32 at, const struct ipv6hdr *new,
					 bool may_cut, struct transport *t)
{
	const enum clat_reason reason = inspect(skb, at, t);

	if (reason != NO_REASON)
		return reason;
	/*
	 * The daemon fragments. A packet with DF fits, since v4iface's MTU leaves room for the
	 * difference; only a GPL program could check the uplink's (bpf_check_mtu).
	 */
	if (may_cut && length(skb, t, sizeof(*new)) > IPV6_MIN_MTU)
		return CLAT_SIZE;
	if (skb->gso_size && t->protocol == PROTO_UDP && !is_left_to_device(skb, at + UDP_CHECKSUM))
		return CLAT_GSO;
	if (!t->no_checksum)
		return NO_REASON;
	if (!skb->gso_size)
		t->new_checksum = udp_checksum(skb, at, t->udp_len, new);
	return t->new_checksum ? NO_REASON : CLAT_CHECKSUM;
}

/* Writes the header in place of the IPv4 header and the added room. */
INLINE long write_ipv6(struct __sk_buff *skb, const __u32 link, const struct ipv6hdr *new)
{
	struct ipv6hdr *ip = bytes_at(skb, link, sizeof(*ip));

	if (!ip)
		return -1;
	if (link)
		set_ether_type(ip, ETH_P_IPV6);
	*ip = *new;
	/* The replaced zeros and valid IPv4 header add nothing to a sum. */
	csum_update(skb, fold(sum_words(new, sizeof(*new) / 4)));
	return 0;
}

/* Adjusts the transport header at `at` for addresses whose sums differ by `diff`. */
INLINE long write_transport6(struct __sk_buff *skb, __u32 at, const struct ipv6hdr *new,
			     const struct transport *t, __u16 diff)
{
	if (new->nexthdr == PROTO_ICMPV6) {
		const __u64 pseudo = sum_words(&new->saddr, 8) + net32(t->payload) +
				     net32(PROTO_ICMPV6);
		const bool is_request = t->icmp_type == ICMP_ECHO;

		return retype(skb, at, t->icmp_type, is_request ? ICMPV6_ECHO : ICMPV6_ECHO_REPLY,
			      fold(pseudo));
	}
	if (t->new_checksum)
		return skb_store(skb, at + UDP_CHECKSUM, &t->new_checksum,
				 sizeof(t->new_checksum), BPF_F_RECOMPUTE_CSUM);
	return readdress(skb, at, new->nexthdr, diff);
}

/* Sends through the uplink, on Ethernet to the next hop. */
INLINE int send(struct __sk_buff *skb, const struct clat_egress_value *clat,
		const struct clat_next_hop *next_hop, const struct in6_addr *dst,
		struct clat_counters *counters, const bool ether)
{
	const struct in6_addr *router = &next_hop->router;
	struct bpf_redir_neigh to = { .nh_family = FAMILY_INET6 };
	const __u8 zeros[2 * ETH_ALEN] = {};

	if (!clat->oifIsEthernet)
		return redirect(clat->oif, 0);
	if (!clat_has_redirect_neigh)
		return drop(counters); /* not reached, see check_uplink() */
	for (int i = 0; i < 4; i++)
		to.ipv6_nh[i] = router->in6_u.u6_addr32[i];
	if (!(to.ipv6_nh[0] | to.ipv6_nh[1] | to.ipv6_nh[2] | to.ipv6_nh[3]))
		for (int i = 0; i < 4; i++)
			to.ipv6_nh[i] = dst->in6_u.u6_addr32[i];
	/* bpf_redirect_neigh removes an Ethernet header, and refuses one of a multicast. */
	if (ether ? skb_store(skb, 0, zeros, sizeof(zeros), 0) : skb_change_head(skb, ETH_HLEN, 0))
		return drop(counters);
	counters->neighbour++;
	return redirect_neigh(clat->oif, &to, sizeof(to), 0);
}

/* Gives the packet the header `new`, whose addresses' sum differs by `diff`, and sends it. */
INLINE int translate_and_send(struct __sk_buff *skb, const struct ipv6hdr *new,
			      const struct transport *t, __u16 diff,
			      struct clat_egress_value *clat,
			      const struct clat_next_hop *next_hop, struct clat_counters *counters,
			      const bool ether, const bool direct)
{
	const __u32 link = ether ? ETH_HLEN : 0;
	const __u32 len = skb->len - link;
	const __u32 hash = skb->hash;

	/* Now it is [20 zeros][IPv4 header][payload]. */
	if (skb_change_proto(skb, net16(ETH_P_IPV6), 0))
		return leave(clat, counters, CLAT_KERNEL, direct);
	if (write_ipv6(skb, link, new) ||
	    write_transport6(skb, link + sizeof(*new), new, t, diff))
		return drop(counters);
	keep_hash(skb, hash);
	count(counters, skb, len, sizeof(struct iphdr) + t->header);
	COUNT_IN_ENTRY(clat, skb->len - link);
	return direct ? TC_ACT_PIPE :
			send(skb, clat, next_hop, &new->daddr, counters, ether);
}

/* `direct`: on the uplink itself, through which the packet is leaving. */
INLINE int egress(struct __sk_buff *skb, const bool ether, const bool direct)
{
	const __u32 link = ether ? ETH_HLEN : 0;
	struct iphdr *ip;
	struct ipv6hdr new;
	struct transport t = {};
	enum clat_reason reason;
	bool is_guarded = false;

	if (skb->protocol != net16(ETH_P_IP))
		return TC_ACT_PIPE;
	ip = pulled_bytes_at(skb, link, sizeof(*ip));
	if (!ip)
		return TC_ACT_PIPE;
	if (direct && ip->version == GUARDED) {
		is_guarded = true;
		ip->version = 4;
		csum_update(skb, SUM_OF_VERSION);
	}

	struct clat_egress_key key = { .iif = skb->ifindex, .local4.s_addr = ip->saddr };
	struct clat_egress_value *clat = LOOKUP(clat_egress_map, &key);

	/* Native IPv4 that other routes or sockets send through the uplink. */
	if (!clat && direct && !is_guarded)
		return TC_ACT_PIPE;
	if (!clat)
		return leave_foreign_source(key.iif, direct);

	__u32 slot = slot_of(ip->saddr);
	struct clat_counters *counters = LOOKUP(clat_counters_map, &slot);
	const struct clat_next_hop *next_hop = LOOKUP(clat_next_hop_map, &slot);

	if (!counters || !next_hop)
		return direct ? TC_ACT_SHOT : TC_ACT_PIPE; /* not reached: they are arrays */

	/* All checks come before the first change. */
	reason = direct ? NO_REASON : check_uplink(clat, next_hop);
	if (reason != NO_REASON)
		return pass(counters, reason);
	reason = check_ipv4(ip, skb->len - link);
	if (reason != NO_REASON)
		return leave(clat, counters, reason, direct);
	reason = check_whole(ip, skb->len - link, &t);
	if (reason != NO_REASON)
		return leave(clat, counters, reason, direct);
	make_ipv6(&new, ip, &t, clat);

	const __u64 sum4 = sum_words(&ip->saddr, 2), sum6 = sum_words(&new.saddr, 8);
	const __u16 diff = fold(sum6 + (__u16)~fold(sum4));
	const bool may_cut = !(ip->frag_off & net16(IPV4_DF));

	reason = check_transport4(skb, link + sizeof(*ip), &new, may_cut, &t);
	if (reason != NO_REASON)
		return leave(clat, counters, reason, direct);
	FORGET(t);
	FORGET(new);
	return translate_and_send(skb, &new, &t, diff, clat, next_hop, counters, ether, direct);
}
