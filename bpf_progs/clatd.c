// SPDX-License-Identifier: Apache-2.0
/*
 * The CLAT in the kernel: common traffic translated by tc programs (RFC 7915), without waking the
 * daemon.
 *
 *   egress   on v4iface (a TUN: no link header), protocol ip: IPv4 to IPv6, sent on to the uplink
 *   ingress  on the uplink, protocol ipv6: IPv6 to IPv4, redirected to v4iface's receive path
 *   direct   on the uplink, protocol ip: IPv4 to IPv6 in place, for packets of a direct route
 *   guard    on that route
 *
 * "rawip" and "ether" are the link header of the program's interface. A program translates a packet
 * to the same bytes as src/xlat (except for a made-up IPv4 identification), or leaves it to the
 * daemon unchanged.
 *
 * Needs Linux 5.7, for gso_size, and calls no helpers that only GPL programs may call, such as
 * bpf_check_mtu and bpf_fib_lookup. The loader switches bpf_redirect_neigh (5.10) off if the kernel
 * lacks it: the daemon then serves Ethernet uplinks. On an older kernel the programs do not load,
 * and the daemon does everything.
 *
 * Each program is a single function: Android's loader links no others, and loads no BTF.
 * docs/offload.md has the verifier's costs.
 */
#include "egress.h"
#include "ingress.h"

LICENSE("Apache 2.0");

PROGRAM(egress, rawip)(struct __sk_buff *skb)
{
	return egress(skb, false, false);
}

PROGRAM(egress, ether)(struct __sk_buff *skb)
{
	return egress(skb, true, false);
}

PROGRAM(ingress, rawip)(struct __sk_buff *skb)
{
	return ingress(skb, false);
}

PROGRAM(ingress, ether)(struct __sk_buff *skb)
{
	return ingress(skb, true);
}

#ifndef CLAT_SOONG
PROGRAM(direct, rawip)(struct __sk_buff *skb)
{
	return egress(skb, false, true);
}

PROGRAM(direct, ether)(struct __sk_buff *skb)
{
	return egress(skb, true, true);
}

/*
 * On the direct route: makes each packet an invalid IPv4 packet until the direct program restores
 * it. So nothing leaves as native IPv4 if somebody has removed that program.
 */
SEC("lwt_xmit") int lwt_xmit_clat_guard(struct __sk_buff *skb)
{
	struct iphdr *ip = pulled_bytes_at(skb, 0, sizeof(*ip));

	if (!ip)
		return BPF_DROP;
	ip->version = GUARDED;
	csum_update(skb, (__u16)~SUM_OF_VERSION);
	return BPF_OK;
}
#endif
