/*
 * Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
 * the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software distributed under the License is distributed on
 * an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the
 * specific language governing permissions and limitations under the License.
 */

/* ICMPv6 errors on their way in. Included by clatd.c, where it has what it needs. */
#pragma once

#define ICMP_PARAMETER_PROBLEM 12
#define ICMPV6_TOO_BIG 2
#define ICMPV6_PARAMETER_PROBLEM 4

/* RFC 791 §3.1. */
#define IPV4_MIN_MTU 68

struct icmp_header {
	__u8 kind;
	__u8 code;
	__be16 check;
	__be32 rest;
};

/* An ICMPv6 error and the header that it quotes. */
struct icmpv6_error {
	struct icmp_header icmp;
	struct ipv6hdr ip;
};

/* The same in IPv4, with the header in front. */
struct icmp_error {
	struct iphdr outer;
	struct icmp_header icmp;
	struct iphdr ip;
};

/* The extensions (RFC 4884 §7) that carry a router's address, as src/xlat makes them: a Node Identification Object. */
struct node_id {
	__u8 version;
	__u8 reserved;
	__u16 check;
	__be16 length;
	__u8 class;
	__u8 kind;
	__be16 family;
	__be16 unused;
	struct in6_addr address;
};

/* The most that an error quotes, extensions included: it is no longer than 576 bytes (RFC 1812 §4.3.2.3). */
#define MOST_QUOTED (576 - sizeof(struct iphdr) - sizeof(struct icmp_header))
/* An error with extensions quotes at least this much, padded if need be (RFC 4884 §5). */
#define LEAST_BEFORE_EXTENSIONS 128

/* Whose address stands for that of a router without an IPv4 form: 192.0.0.8 (RFC 7600 §4.8). */
#define NOBODY net32(0xc0000008)

/*
 * Whether a packet that found no entry is an error about one that has one. What it quotes was sent to the prefix, so
 * the key is made from that.
 */
INLINE bool quotes_ours(const struct __sk_buff *skb, const __u32 link, const struct ipv6hdr *ip,
			struct clat_ingress_key *key)
{
	struct icmpv6_error error;
	__u32 first = net32(ip->saddr.in6_u.u6_addr32[0]);

	/* 128 and up are no errors; nobody may be called ::, ::1 or by a multicast address. */
	if (ip->nexthdr != PROTO_ICMPV6 || load(skb, link + sizeof(*ip), &error, sizeof(error)) ||
	    error.icmp.kind > 127 || first >> 24 == 0xff || (!first && !key->pfx96.in6_u.u6_addr32[1] &&
	    !key->pfx96.in6_u.u6_addr32[2]))
		return false;
	key->pfx96 = error.ip.daddr;
	key->pfx96.in6_u.u6_addr32[3] = 0;
	return true;
}

/* Type, code and rest of the error that `was` becomes (RFC 7915 §5.2). False: none, or one that the daemon makes. */
INLINE bool translate_head(const struct icmpv6_error *was, struct icmp_header *to)
{
	__u32 rest = net32(was->icmp.rest);

	switch (was->icmp.kind) {
	case ICMPV6_UNREACHABLE:
		to->kind = ICMP_UNREACHABLE;
		if (was->icmp.code == 0 || was->icmp.code == 2 || was->icmp.code == 3)
			to->code = 1; /* host */
		else if (was->icmp.code == 1)
			to->code = 10; /* host prohibited */
		else if (was->icmp.code == 4)
			to->code = 3; /* port */
		else
			return false;
		break;
	case ICMPV6_TIME_EXCEEDED:
		to->kind = ICMP_TIME_EXCEEDED;
		to->code = was->icmp.code;
		break;
	case ICMPV6_TOO_BIG:
		/*
		 * What left by the uplink was no longer than its MTU: one below that length is the least of both. Where
		 * it is not, the uplink's has to be known, which the daemon does.
		 */
		if (rest >= sizeof(was->ip) + net16(was->ip.payload_len))
			return false;
		to->kind = ICMP_UNREACHABLE;
		to->code = 4; /* fragmentation needed */
		to->rest = net32(rest < 20 + IPV4_MIN_MTU ? IPV4_MIN_MTU : rest - 20);
		return true;
	case ICMPV6_PARAMETER_PROBLEM:
		if (was->icmp.code == 1) {
			to->kind = ICMP_UNREACHABLE;
			to->code = 2; /* protocol */
			return true;
		}
		to->kind = ICMP_PARAMETER_PROBLEM;
		if (rest == 4 || rest == 5)
			rest = 2; /* length */
		else if (rest == 6)
			rest = 9; /* protocol */
		else if (rest == 7)
			rest = 8; /* hop limit */
		else if (rest >= 8 && rest < 24)
			rest = 12; /* source */
		else if (rest >= 24 && rest < 40)
			rest = 16; /* destination */
		else if (rest > 1) /* version, traffic class */
			return false;
		to->rest = net32(rest << 24);
		return !was->icmp.code;
	default:
		return false;
	}
	/* Any length of extensions (RFC 4884) is in the first byte. */
	return !(rest >> 24);
}

/*
 * An ICMPv6 error about a packet of ours (RFC 7915 §5.2, §5.3), right behind the IPv6 header. Those of routers that
 * have no IPv4 form gain an extension. Left to the daemon are those that have extensions already, and those about
 * fragments and about errors.
 */
INLINE int ingress_error(struct __sk_buff *skb, const __u32 link, struct clat_counters *counters)
{
	struct {
		struct ipv6hdr outer;
		struct icmpv6_error error;
	} old;
	struct icmp_error new = {};
	struct node_id node = {};

	if (skb_load(skb, link, &old, sizeof(old)))
		return pass(counters, CLAT_ICMP);

	const struct ipv6hdr *ip = &old.outer;
	const struct icmpv6_error *was = &old.error;
	const __u32 *own = ip->daddr.in6_u.u6_addr32, *src = was->ip.saddr.in6_u.u6_addr32;
	const __u32 *dst = was->ip.daddr.in6_u.u6_addr32;
	struct clat_ingress_key key = { .iif = skb->ifindex, .pfx96 = was->ip.daddr, .local6 = ip->daddr };

	/* What it quotes went the other way. */
	key.pfx96.in6_u.u6_addr32[3] = 0;

	const struct clat_ingress_value *clat = LOOKUP(clat_ingress_map, &key);
	__u32 payload = net16(ip->payload_len);
	__u32 len = net16(was->ip.payload_len);
	__u8 protocol = was->ip.nexthdr;
	__u32 quoted = payload - sizeof(*was);

	if (!clat || payload < sizeof(*was) + 8 || !translate_head(was, &new.icmp) || was->ip.version != 6 ||
	    quoted > len || len > 0xffff - sizeof(new.ip) || src[0] != own[0] || src[1] != own[1] ||
	    src[2] != own[2] || src[3] != own[3] || protocol == PROTO_HOPOPTS || protocol == PROTO_ROUTING ||
	    protocol == PROTO_FRAGMENT || protocol == PROTO_DSTOPTS)
		return pass(counters, CLAT_ICMP);

	const __u32 *router = ip->saddr.in6_u.u6_addr32;
	const bool is_mapped = router[0] == dst[0] && router[1] == dst[1] && router[2] == dst[2];
	__u32 padded = sizeof(new.ip) + quoted;

	/* Padding, cutting, extensions: as src/xlat does. */
	if (is_mapped) {
		if (padded > MOST_QUOTED)
			padded = MOST_QUOTED;
	} else {
		padded = (padded + 3) & ~3;
		if (padded < LEAST_BEFORE_EXTENSIONS)
			padded = LEAST_BEFORE_EXTENSIONS;
		if (padded > MOST_QUOTED - sizeof(node))
			padded = MOST_QUOTED - sizeof(node);
		new.icmp.rest |= net32(padded / 4 << 16);
	}
	padded -= sizeof(new.ip);

	__u32 kept = quoted < padded ? quoted : padded;
	__u32 body = padded + (is_mapped ? 0 : sizeof(node));

	new.ip.version = 4;
	new.ip.ihl = sizeof(new.ip) / 4;
	new.ip.tos = was->ip.priority << 4 | was->ip.flow_lbl[0] >> 4;
	new.ip.tot_len = net16((__u16)(sizeof(new.ip) + len));
	new.ip.frag_off = sizeof(new.ip) + len > MOST_WITHOUT_DF ? net16(IPV4_DF) : 0;
	new.ip.ttl = was->ip.hop_limit;
	new.ip.protocol = protocol == PROTO_ICMPV6 ? PROTO_ICMP : protocol;
	new.ip.saddr = clat->local4.s_addr;
	new.ip.daddr = dst[3];
	new.ip.check = ~fold(sum_of(&new.ip, sizeof(new.ip), 0));

	new.outer.version = 4;
	new.outer.ihl = sizeof(new.outer) / 4;
	new.outer.tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	new.outer.tot_len = net16((__u16)(sizeof(new) + body));
	new.outer.id = (__be16)prandom() ?: net16(1);
	new.outer.ttl = ip->hop_limit;
	new.outer.protocol = PROTO_ICMP;
	new.outer.saddr = is_mapped ? router[3] : NOBODY;
	new.outer.daddr = clat->local4.s_addr;
	new.outer.check = ~fold(sum_of(&new.outer, sizeof(new.outer), 0));

	/* A wrong checksum is to stay as wrong; few are. What is cut off begins at an even byte. */
	__u32 quote_at = link + sizeof(old);
	__u32 quote = 0, rest = 0;

	if (!sum_bytes(skb, quote_at, kept, &quote, 2) || !sum_bytes(skb, quote_at + kept, quoted - kept, &rest, 2))
		return pass(counters, CLAT_CHECKSUM);

	__u32 whole = sum_of(was, sizeof(*was), fold((__u64)quote + rest));

	whole = sum_of(&ip->saddr, 32, fold((__u64)whole + net32(payload) + net32(PROTO_ICMPV6)));
	if (fold(whole) != 0xffff)
		return pass(counters, CLAT_CHECKSUM);

	/* The quoted packet's own checksum, and its type if it is an echo. */
	__u32 field_at = 0;
	__u16 field = 0, new_field = 0;
	__u8 kind = 0, new_kind = 0;
	__u32 old_sum = sum_of(&was->ip.saddr, 32, 0);
	__u32 new_sum = sum_of(&new.ip.saddr, 8, 0);

	switch (protocol) {
	case PROTO_TCP:
		field_at = 16;
		break;
	case PROTO_UDP:
	case PROTO_UDPLITE:
	case PROTO_DCCP:
		field_at = 6;
		break;
	case PROTO_ICMPV6:
		field_at = 2;
		if (skb_load(skb, quote_at, &kind, 1) || (kind != ICMPV6_ECHO && kind != ICMPV6_ECHO_REPLY))
			return pass(counters, CLAT_ICMP);
		new_kind = kind == ICMPV6_ECHO ? ICMP_ECHO : ICMP_ECHO_REPLY;
		old_sum = fold((__u64)old_sum + net32(len) + net32(PROTO_ICMPV6) + net16((__u16)(kind << 8)));
		new_sum = net16((__u16)(new_kind << 8));
		break;
	}
	if (field_at) {
		if (skb_load(skb, quote_at + field_at, &field, sizeof(field)) || quoted < field_at + 2)
			return pass(counters, CLAT_ICMP);
		new_field = adjust(field, old_sum, new_sum);
		if (protocol == PROTO_UDP || protocol == PROTO_UDPLITE) {
			if (!field)
				new_field = 0;
			else if (!new_field)
				new_field = 0xffff;
		} else if (protocol == PROTO_ICMPV6 && !new_field) {
			/* Of a message of zeros, perhaps. */
			return pass(counters, CLAT_ICMP);
		}
		quote = fold((__u64)quote + (__u16)~field + new_field);
		quote = fold((__u64)quote + (__u16)~net16((__u16)(kind << 8)) + net16((__u16)(new_kind << 8)));
	}
	if (!is_mapped) {
		node.version = 2 << 4;
		node.length = net16(sizeof(node) - 4);
		node.class = 5;
		node.kind = 4; /* there is an address */
		node.family = net16(2); /* of IPv6 */
		node.address = ip->saddr;
		node.check = ~fold(sum_words(&node, sizeof(node) / 4));
		quote = fold(quote + sum_words(&node, sizeof(node) / 4));
	}
	new.icmp.check = ~fold(sum_of(&new.icmp, sizeof(new.icmp) + sizeof(new.ip), quote));

	/* From here on the packet changes. First to [48 bytes][quoted payload], which `new` fills. */
	if (skb_change_proto(skb, net16(ETH_P_IP), 0))
		return pass(counters, CLAT_KERNEL);

	__u32 at = link + sizeof(new);

	if (skb_adjust_room(skb, -(__s32)(sizeof(*was) - sizeof(new.icmp) - sizeof(new.ip)), BPF_ADJ_ROOM_NET, 0) ||
	    skb_store(skb, link, &new, sizeof(new), BPF_F_RECOMPUTE_CSUM) ||
	    (field_at && skb_store(skb, at + field_at, &new_field, sizeof(new_field), BPF_F_RECOMPUTE_CSUM)) ||
	    (new_kind != kind && skb_store(skb, at, &new_kind, sizeof(new_kind), BPF_F_RECOMPUTE_CSUM)) ||
	    (body != quoted && skb_change_tail(skb, at + body, 0)) ||
	    (!is_mapped && skb_store(skb, at + padded, &node, sizeof(node), BPF_F_RECOMPUTE_CSUM)) ||
	    (link && set_ether_type(skb, net16(ETH_P_IP))))
		return lose(counters);
	if (counters) {
		counters->packets++;
		counters->bytes += sizeof(*ip) + payload;
	}
	return redirect(clat->oif, BPF_F_INGRESS);
}
