/*
 * Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
 * the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software distributed under the License is distributed on
 * an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the
 * specific language governing permissions and limitations under the License.
 */

/*
 * The CLAT in the kernel: common traffic translated by tc programs (RFC 7915), without waking the daemon.
 *
 *   egress   on v4iface (a TUN: no link header), protocol ip: IPv4 to IPv6, sent on to the uplink
 *   ingress  on the uplink, protocol ipv6: IPv6 to IPv4, received once more by v4iface
 *
 * "rawip" and "ether" say which link header the interface has that a program is attached to. What leaves a program
 * translated is, byte for byte, what src/xlat makes of it (the IPv4 identification apart, where one is made up).
 * Everything else passes on as it came, and the daemon behind decides: every check comes before the first change.
 *
 * Needs Linux 5.7, for gso_size, and only what programs of any licence may call (bpf_check_mtu and bpf_fib_lookup are
 * for the GPL's). bpf_redirect_neigh (5.10) is behind a switch, which the loader turns off where the kernel has none:
 * then Ethernet uplinks are the daemon's. On an older kernel the programs do not load, and all is.
 */
#include "clatd.h"
#include "kernel.h"
#include "transport.h"

/* What the kernel has; written by the loader. */
SWITCH(clat_has_redirect_neigh);

MAP(clat_egress_map, HASH, struct clat_egress_key, struct clat_egress_value, CLAT_MAX_ENTRIES);
MAP(clat_ingress_map, HASH, struct clat_ingress_key, struct clat_ingress_value, CLAT_MAX_ENTRIES);
MAP(clat_next_hop_map, ARRAY, __u32, struct clat_next_hop, CLAT_SLOTS);
MAP(clat_counters_map, PERCPU_ARRAY, __u32, struct clat_counters, 2 * CLAT_SLOTS);

LICENSE("Apache 2.0");
CRITICAL("Connectivity (CLAT)");

/* AF_INET6, whose header is not one for BPF. */
#define FAMILY_INET6 10

#define IPV4_DF 0x4000
#define IPV4_MF 0x2000
#define IPV4_OFFSET 0x1fff

/* RFC 8200 §5. Up to this size a packet without DF leaves whole (RFC 7915 §4.1). */
#define IPV6_MIN_MTU 1280
/* Up to this size an IPv4 packet may be fragmented on its way (RFC 7915 §5.1). */
#define MOST_WITHOUT_DF 1260
/* Most extension headers that are walked. */
#define MOST_EXTENSIONS 4

struct fragment_header {
	__u8 next;
	__u8 reserved;
	__be16 offset_more;
	__be32 id;
};

struct ipv6_headers {
	struct ipv6hdr ip;
	struct fragment_header fragment;
};

INLINE __u32 slot_of(__be32 local4)
{
	return net32(local4) % CLAT_SLOTS;
}

/* Of the CLAT that has v4iface, for what is of no CLAT: few packets, which are not worth a map of their own. */
INLINE struct clat_counters *counters_of(__u32 v4iface)
{
	struct clat_egress_key key = { .iif = v4iface };

	for (__u32 slot = 0; slot < CLAT_SLOTS; slot++) {
		__u32 at = slot;

		key.local4.s_addr = net32(CLAT_POOL + slot);
		if (LOOKUP(clat_egress_map, &key))
			return LOOKUP(clat_counters_map, &at);
	}
	return NULL;
}

INLINE int pass(struct clat_counters *counters, enum clat_reason reason)
{
	if (counters)
		counters->passed[reason]++;
	/* To the next filter, and at last up the stack or out of the device. */
	return TC_ACT_PIPE;
}

/* The packet is neither what it was nor what it should be. */
INLINE int lose(struct clat_counters *counters)
{
	if (counters)
		counters->lost++;
	return TC_ACT_SHOT;
}

INLINE void count(struct clat_counters *counters, struct __sk_buff *skb, const struct transport *t,
				  __u32 len)
{
	__u32 size = skb->gso_size;

	if (!counters)
		return;
	/* What the kernel has counted is zero where the packet comes from a virtual machine or a TUN. */
	counters->packets += size ? (t->payload - t->header + size - 1) / size : 1;
	counters->bytes += len;
	if (size)
		counters->super_packets++;
}

/* Whether any byte of the options could be the type of a source route; those are rare enough for a coarse sieve. */
INLINE bool may_have_source_route(const __u64 options[5])
{
	const __u64 ones = 0x0101010101010101;
	bool found = false;

	for (int i = 0; i < 5; i++) {
		__u64 loose = options[i] ^ ones * 0x83;
		__u64 strict = options[i] ^ ones * 0x89;

		found |= (((loose - ones) & ~loose) | ((strict - ones) & ~strict)) & ones * 0x80;
	}
	return found;
}

/* It is still the same flow, which the kernel would else have to find out again. */
INLINE void keep_hash(struct __sk_buff *skb, __u32 hash)
{
	if (hash)
		set_hash(skb, hash);
}

/* What has been translated to IPv6 leaves by the uplink, on Ethernet to a neighbour. */
INLINE int leave(struct __sk_buff *skb, const struct clat_egress_value *clat, struct bpf_redir_neigh *to,
				 struct clat_counters *counters, const bool ether)
{
	if (!clat->oifIsEthernet)
		return redirect(clat->oif, 0);
	if (!clat_has_redirect_neigh)
		return lose(counters); /* not reached, see egress() */
	if (ether) {
		const __u8 nobody[2 * ETH_ALEN] = {};

		/* It refuses multicast, and writes both in the end. */
		if (skb_store(skb, 0, nobody, sizeof(nobody), 0))
			return lose(counters);
	} else if (skb_change_head(skb, ETH_HLEN, 0)) {
		/* It takes an Ethernet header away, and drops what has none. */
		return lose(counters);
	}
	if (counters)
		counters->neighbour++;
	return redirect_neigh(clat->oif, to, sizeof(*to), 0);
}

INLINE int egress(struct __sk_buff *skb, const bool ether)
{
	const __u32 link = ether ? ETH_HLEN : 0;
	struct bpf_redir_neigh to = {};
	struct ipv6_headers new = {};
	struct transport t = {};
	struct iphdr ip;

	if (skb->protocol != net16(ETH_P_IP) || load(skb, link, &ip, sizeof(ip)))
		return TC_ACT_PIPE;

	struct clat_egress_key key = { .iif = skb->ifindex, .local4.s_addr = ip.saddr };
	struct clat_egress_value *clat = LOOKUP(clat_egress_map, &key);

	if (!clat)
		return pass(counters_of(key.iif), CLAT_FOREIGN_SOURCE);

	__u32 slot = slot_of(ip.saddr);
	struct clat_counters *counters = LOOKUP(clat_counters_map, &slot);

	if (clat->oifIsEthernet) {
		if (!clat_has_redirect_neigh)
			return pass(counters, CLAT_ETHERNET);

		const struct clat_next_hop *next_hop = LOOKUP(clat_next_hop_map, &slot);

		if (!next_hop || !next_hop->known)
			return pass(counters, CLAT_NEXT_HOP);

		const __u32 *router = next_hop->router.in6_u.u6_addr32;
		bool on_link = !(router[0] | router[1] | router[2] | router[3]);

		to.nh_family = FAMILY_INET6;
		for (int i = 0; i < 3; i++)
			to.ipv6_nh[i] = (on_link ? clat->pfx96.in6_u.u6_addr32 : router)[i];
		to.ipv6_nh[3] = on_link ? ip.daddr : router[3];
	}

	/* The header, as RFC 1812 §5.2.2 wants it. */
	__u32 len = net16(ip.tot_len);
	__u32 header = ip.ihl * 4;

	if (ip.version != 4 || header < sizeof(ip) || len < header || skb->len - link != len)
		return pass(counters, CLAT_HEADER);

	__u32 sum = fold(sum_words(&ip, sizeof(ip) / 4));
	__u32 options_len = header - sizeof(ip);

	if (options_len > 0) {
		__u64 options[5] = {};
		__u64 n = one_to(64, options_len);

		if (n > sizeof(options) || skb_load(skb, link + sizeof(ip), options, n))
			return pass(counters, CLAT_HEADER);
		sum = sum_of(options, sizeof(options), sum);
		if (may_have_source_route(options))
			return pass(counters, CLAT_ROUTE);
	}
	if (fold(sum) != 0xffff)
		return pass(counters, CLAT_HEADER);

	/* RFC 1812 §5.3.7; one's own address is not for the prefix. */
	__u32 dst = net32(ip.daddr);

	if (dst >> 28 == 14 || dst >> 24 == 0 || dst >> 24 == 127 || dst == 0xffffffff || ip.daddr == ip.saddr)
		return pass(counters, CLAT_ADDRESS);

	switch (ip.protocol) {
	case PROTO_HOPOPTS:
	case PROTO_IGMP:
	case PROTO_ROUTING:
	case PROTO_FRAGMENT:
	case PROTO_AH:
	case PROTO_ICMPV6:
	case PROTO_DSTOPTS:
		return pass(counters, CLAT_PROTOCOL);
	}

	__u16 flags = net16(ip.frag_off);
	__u32 offset = (flags & IPV4_OFFSET) * 8;

	t.payload = len - header;
	t.first = offset == 0;
	t.whole = t.first && !(flags & IPV4_MF);
	if (offset + t.payload > 0xffff || (!t.whole && ip.protocol == PROTO_ICMP))
		return pass(counters, CLAT_FRAGMENT);

	enum clat_reason reason = inspect(skb, link + header, link + sizeof(ip), ip.protocol, &t);

	if (reason != CLAT_REASONS)
		return pass(counters, reason);
	if (ip.protocol == PROTO_ICMP && ((t.kind != ICMP_ECHO && t.kind != ICMP_ECHO_REPLY) || t.odd_echo))
		return pass(counters, CLAT_ICMP);

	/*
	 * Whole, or not at all: what may be cut, the daemon cuts. What may not is no longer than v4iface's MTU, which
	 * leaves room for the difference; to ask for the uplink's (bpf_check_mtu) takes a GPL program.
	 */
	const __u32 new_header = sizeof(new.ip) + (t.whole ? 0 : sizeof(new.fragment));

	if (!(flags & IPV4_DF) && length(skb, &t, new_header) > IPV6_MIN_MTU)
		return pass(counters, CLAT_SIZE);
	if (skb->gso_size && (options_len || (t.zero_is_none && !is_left_to_device(skb, link + header + 6))))
		return pass(counters, CLAT_GSO);

	/* RFC 7915 §4.1; the flow label is zero. */
	new.ip.version = 6;
	new.ip.priority = ip.tos >> 4;
	new.ip.flow_lbl[0] = ip.tos << 4;
	new.ip.payload_len = net16((__u16)(t.payload + new_header - sizeof(new.ip)));
	new.ip.nexthdr = ip.protocol == PROTO_ICMP ? PROTO_ICMPV6 : ip.protocol;
	new.ip.hop_limit = ip.ttl;
	new.ip.saddr = clat->local6;
	new.ip.daddr = clat->pfx96;
	new.ip.daddr.in6_u.u6_addr32[3] = ip.daddr;
	if (!t.whole) {
		new.fragment.next = new.ip.nexthdr;
		new.fragment.offset_more = net16((__u16)(offset | (flags & IPV4_MF ? 1 : 0)));
		new.fragment.id = net32((__u32)net16(ip.id));
		new.ip.nexthdr = PROTO_FRAGMENT;
	}

	/* What the transport's checksum is to follow: the addresses, or a pseudo-header where there was none. */
	__u16 computed = 0;
	__u32 diff;

	if (ip.protocol == PROTO_ICMP) {
		diff = sum_of(&new.ip.saddr, 32, net32(t.payload));
		diff = fold((__u64)diff + net32(PROTO_ICMPV6));
	} else if (t.no_checksum) {
		__u32 sum = sum_of(&new.ip.saddr, 32, fold((__u64)net32(t.udp_len) + net32(PROTO_UDP)));

		/* RFC 7915 §4.5. */
		if (!t.whole || skb->gso_size || !sum_bytes(skb, link + header, t.udp_len, &sum, JUMBO_CHUNKS))
			return pass(counters, CLAT_CHECKSUM);
		computed = ~fold(sum);
		if (!computed)
			computed = 0xffff;
	} else {
		diff = fold(sum_words(&new.ip.saddr, 8) + (__u16)~fold(sum_words(&ip.saddr, 2)));
	}

	const __u32 hash = skb->hash;

	/* From here on the packet changes. First to [20 zeros][IPv4 header][options][payload]. */
	if (skb_change_proto(skb, net16(ETH_P_IPV6), 0))
		return pass(counters, CLAT_KERNEL);

	__s32 grow = (__s32)(new_header - sizeof(new.ip)) - (__s32)options_len;

	if (grow && skb_adjust_room(skb, grow, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO)) {
		/* Back to what it was. */
		if (skb_change_proto(skb, net16(ETH_P_IP), 0))
			return lose(counters);
		return pass(counters, CLAT_KERNEL);
	}

	__u32 at = link + new_header;
	long failed;

	/* A sound header without options adds nothing to a sum, nor do zeros. */
	if (t.whole && !options_len)
		failed = replace(skb, link, &new.ip, sizeof(new.ip), fold(sum_words(&new.ip, sizeof(new.ip) / 4)));
	else if (t.whole)
		failed = skb_store(skb, link, &new.ip, sizeof(new.ip), BPF_F_RECOMPUTE_CSUM);
	else
		failed = skb_store(skb, link, &new, sizeof(new), BPF_F_RECOMPUTE_CSUM);
	if (!failed) {
		if (ip.protocol == PROTO_ICMP)
			failed = retype(skb, at, t.kind, t.kind == ICMP_ECHO ? ICMPV6_ECHO : ICMPV6_ECHO_REPLY,
					diff);
		else if (t.no_checksum)
			failed = skb_store(skb, at + 6, &computed, sizeof(computed), BPF_F_RECOMPUTE_CSUM);
		else
			failed = readdress(skb, at, &t, diff);
	}
	if (!failed && ether)
		failed = set_ether_type(skb, net16(ETH_P_IPV6));
	if (failed)
		return lose(counters);
	keep_hash(skb, hash);
	count(counters, skb, &t, len);
	return leave(skb, clat, &to, counters, ether);
}

#include "icmp_error.h"

INLINE int ingress(struct __sk_buff *skb, const bool ether)
{
	const __u32 link = ether ? ETH_HLEN : 0;
	struct fragment_header fragment = {};
	struct transport t = {};
	struct ipv6hdr ip;

	/* Another host's, or another VLAN's. */
	if (skb->protocol != net16(ETH_P_IPV6) || skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_PIPE;
	if (load(skb, link, &ip, sizeof(ip)) || ip.version != 6)
		return TC_ACT_PIPE;

	struct clat_ingress_key key = { .iif = skb->ifindex, .pfx96 = ip.saddr, .local6 = ip.daddr };

	key.pfx96.in6_u.u6_addr32[3] = 0;

	struct clat_ingress_value *clat = LOOKUP(clat_ingress_map, &key);

	if (!clat && quotes_ours(skb, link, &ip, &key))
		clat = LOOKUP(clat_ingress_map, &key);
	/* Mostly native IPv6, which is no business of ours. */
	if (!clat)
		return TC_ACT_PIPE;

	__u32 slot = CLAT_SLOTS + slot_of(clat->local4.s_addr);
	struct clat_counters *counters = LOOKUP(clat_counters_map, &slot);
	__u32 len = sizeof(ip) + net16(ip.payload_len);

	if (skb->len - link != len)
		return pass(counters, CLAT_HEADER);

	/* Extension headers, up to the transport (RFC 8200 §4). */
	__u32 header = sizeof(ip);
	__u8 protocol = ip.nexthdr;
	bool has_fragment = false;

	for (int i = 0; i < MOST_EXTENSIONS; i++) {
		if (protocol == PROTO_HOPOPTS || protocol == PROTO_ROUTING || protocol == PROTO_DSTOPTS) {
			__u8 extension[4];

			if (has_fragment || skb_load(skb, link + header, extension, sizeof(extension)))
				return pass(counters, CLAT_HEADER);
			if (protocol == PROTO_ROUTING && extension[3])
				return pass(counters, CLAT_ROUTE);
			protocol = extension[0];
			header += (extension[1] + 1) * 8;
		} else if (protocol == PROTO_FRAGMENT) {
			if (has_fragment || skb_load(skb, link + header, &fragment, sizeof(fragment)))
				return pass(counters, CLAT_HEADER);
			has_fragment = true;
			protocol = fragment.next;
			header += sizeof(fragment);
		} else {
			break;
		}
	}
	if (header > len)
		return pass(counters, CLAT_HEADER);

	switch (protocol) {
	case PROTO_HOPOPTS:
	case PROTO_ROUTING:
	case PROTO_FRAGMENT:
	case PROTO_DSTOPTS:
		/* Too many, or behind a Fragment Header. */
		return pass(counters, CLAT_HEADER);
	case PROTO_ICMP:
	case PROTO_IGMP:
	case PROTO_AH:
		return pass(counters, CLAT_PROTOCOL);
	}

	__u16 offset_more = net16(fragment.offset_more);
	__u32 offset = offset_more & ~7;

	t.payload = len - header;
	t.first = offset == 0;
	t.whole = t.first && !(offset_more & 1);
	if (offset + t.payload > 0xffff || (!t.whole && protocol == PROTO_ICMPV6))
		return pass(counters, CLAT_FRAGMENT);

	enum clat_reason reason = inspect(skb, link + header, link + sizeof(ip), protocol, &t);

	if (reason != CLAT_REASONS)
		return pass(counters, reason);
	if (protocol == PROTO_ICMPV6 && header == sizeof(ip) && t.kind < ICMPV6_ECHO)
		return ingress_error(skb, link, counters);
	if (protocol == PROTO_ICMPV6 && ((t.kind != ICMPV6_ECHO && t.kind != ICMPV6_ECHO_REPLY) || t.odd_echo))
		return pass(counters, CLAT_ICMP);
	if (skb->gso_size && (header != sizeof(ip) || (t.zero_is_none && !is_left_to_device(skb, link + header + 6))))
		return pass(counters, CLAT_GSO);

	struct iphdr new = {
		.version = 4,
		.ihl = sizeof(new) / 4,
		.tos = ip.priority << 4 | ip.flow_lbl[0] >> 4,
		.ttl = ip.hop_limit,
		.protocol = protocol == PROTO_ICMPV6 ? PROTO_ICMP : protocol,
		.saddr = ip.saddr.in6_u.u6_addr32[3],
		.daddr = clat->local4.s_addr,
	};

	if (sizeof(new) + t.payload > 0xffff)
		return pass(counters, CLAT_SIZE);
	new.tot_len = net16((__u16)(sizeof(new) + t.payload));
	if (has_fragment) {
		/* RFC 7915 §5.1.1: the low half of the identification. */
		new.id = net16((__u16)net32(fragment.id));
		new.frag_off = net16((__u16)(offset >> 3 | (offset_more & 1 ? IPV4_MF : 0)));
	} else if (length(skb, &t, sizeof(new)) > MOST_WITHOUT_DF) {
		new.frag_off = net16(IPV4_DF);
	} else {
		/* May be fragmented further on: another one for each; zero would read as "none". */
		new.id = net16((__u16)(counters ? counters->packets : prandom())) ?: net16(1);
	}
	new.check = ~fold(sum_words(&new, sizeof(new) / 4));

	__u32 diff;

	if (protocol == PROTO_ICMPV6) {
		diff = sum_of(&ip.saddr, 32, net32(t.payload));
		diff = (__u16)~fold((__u64)diff + net32(PROTO_ICMPV6));
	} else {
		diff = fold(sum_words(&new.saddr, 2) + (__u16)~fold(sum_words(&ip.saddr, 8)));
	}

	const __u32 hash = skb->hash;

	/* From here on the packet changes. First to [half an IPv6 header][extension headers][payload]. */
	if (skb_change_proto(skb, net16(ETH_P_IP), 0))
		return pass(counters, CLAT_KERNEL);
	if (header != sizeof(ip) && skb_adjust_room(skb, -(__s32)(header - sizeof(ip)), BPF_ADJ_ROOM_NET, 0)) {
		/* Back to what it was. */
		if (skb_change_proto(skb, net16(ETH_P_IPV6), 0) ||
		    skb_store(skb, link, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM))
			return lose(counters);
		return pass(counters, CLAT_KERNEL);
	}

	__u32 at = link + sizeof(new);
	/* What a sound header adds to a sum is nothing; what was there is the rest of the other. */
	__u32 less = fold(sum_words(&ip.saddr.in6_u.u6_addr32[3], 5));
	long failed = replace(skb, link, &new, sizeof(new), ~less);

	if (!failed) {
		if (protocol == PROTO_ICMPV6)
			failed = retype(skb, at, t.kind, t.kind == ICMPV6_ECHO ? ICMP_ECHO : ICMP_ECHO_REPLY,
					diff);
		else
			failed = readdress(skb, at, &t, diff);
	}
	if (!failed && ether)
		failed = set_ether_type(skb, net16(ETH_P_IP));
	if (failed)
		return lose(counters);
	keep_hash(skb, hash);
	count(counters, skb, &t, len);
	return redirect(clat->oif, BPF_F_INGRESS);
}

PROGRAM(egress, rawip)(struct __sk_buff *skb)
{
	return egress(skb, false);
}

PROGRAM(egress, ether)(struct __sk_buff *skb)
{
	return egress(skb, true);
}

PROGRAM(ingress, rawip)(struct __sk_buff *skb)
{
	return ingress(skb, false);
}

PROGRAM(ingress, ether)(struct __sk_buff *skb)
{
	return ingress(skb, true);
}
