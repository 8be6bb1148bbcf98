// SPDX-License-Identifier: Apache-2.0
/*
 * The least that translates TCP and UDP on an uplink: no lookup, no check, no counter, headers of
 * constants. What it reaches, any translator on the uplink could reach at best. The configuration
 * and the names are those of NetworkManager's programs, so that both are loaded alike.
 */
#include <linux/in.h>

#include "kernel.h"

struct {
	struct in6_addr v6;
	struct in6_addr prefix;
	__be32 v4;
	__u32 prefix_len;
} config;

INLINE int to_ipv6(struct __sk_buff *skb, const __u32 link)
{
	struct iphdr *ip = bytes_at(skb, link, sizeof(*ip));

	if (skb->protocol != net16(ETH_P_IP) || !ip || ip->saddr != config.v4)
		return TC_ACT_UNSPEC;
	struct ipv6hdr ip6 = {
		.version = 6,
		.payload_len = net16(net16(ip->tot_len) - sizeof(*ip)),
		.nexthdr = ip->protocol,
		.hop_limit = ip->ttl,
		.saddr = config.v6,
		.daddr = config.prefix,
	};
	ip6.daddr.s6_addr32[3] = ip->daddr;
	if (skb_change_proto(skb, net16(ETH_P_IPV6), 0))
		return TC_ACT_SHOT;
	struct ipv6hdr *to = bytes_at(skb, link, sizeof(*to));

	if (!to)
		return TC_ACT_SHOT;
	*to = ip6;
	if (link)
		set_ether_type(to, ETH_P_IPV6);
	return TC_ACT_UNSPEC;
}

INLINE int to_ipv4(struct __sk_buff *skb, const __u32 link)
{
	struct ipv6hdr *ip6 = bytes_at(skb, link, sizeof(*ip6));

	if (skb->protocol != net16(ETH_P_IPV6) || !ip6 ||
	    ip6->daddr.s6_addr32[3] != config.v6.s6_addr32[3] ||
	    ip6->daddr.s6_addr32[2] != config.v6.s6_addr32[2] ||
	    (ip6->nexthdr != IPPROTO_TCP && ip6->nexthdr != IPPROTO_UDP))
		return TC_ACT_UNSPEC;
	struct iphdr ip = {
		.version = 4,
		.ihl = sizeof(ip) / 4,
		.tot_len = net16(net16(ip6->payload_len) + sizeof(ip)),
		.frag_off = net16(0x4000),
		.ttl = ip6->hop_limit,
		.protocol = ip6->nexthdr,
		.saddr = ip6->saddr.s6_addr32[3],
		.daddr = config.v4,
	};
	__u32 sum = csum_diff(NULL, 0, &ip, sizeof(ip), 0);

	sum = (sum & 0xffff) + (sum >> 16);
	ip.check = ~((sum & 0xffff) + (sum >> 16));
	if (skb_change_proto(skb, net16(ETH_P_IP), 0))
		return TC_ACT_SHOT;
	struct iphdr *to = bytes_at(skb, link, sizeof(*to));

	if (!to)
		return TC_ACT_SHOT;
	*to = ip;
	if (link)
		set_ether_type(to, ETH_P_IP);
	return TC_ACT_UNSPEC;
}

SEC("tc") int nm_clat_egress_eth(struct __sk_buff *skb)
{
	return to_ipv6(skb, ETH_HLEN);
}

SEC("tc") int nm_clat_egress_rawip(struct __sk_buff *skb)
{
	return to_ipv6(skb, 0);
}

SEC("tc") int nm_clat_ingress_eth(struct __sk_buff *skb)
{
	return to_ipv4(skb, ETH_HLEN);
}

SEC("tc") int nm_clat_ingress_rawip(struct __sk_buff *skb)
{
	return to_ipv4(skb, 0);
}

LICENSE("GPL");
