// SPDX-License-Identifier: Apache-2.0
/*
 * The CLAT in the kernel: common traffic translated by tc programs (RFC 7915), without waking the
 * daemon.
 *
 *   egress   on v4iface (a TUN: no link header), protocol ip: IPv4 to IPv6, sent on to the uplink
 *   ingress  on the uplink, protocol ipv6: IPv6 to IPv4, received once more by v4iface
 *   direct   on the uplink, protocol ip: IPv4 to IPv6 in place, where a route leads there
 *   guard    on that route
 *
 * "rawip" and "ether" say which link header the interface has that a program is attached to. What
 * leaves a program translated is, byte for byte, what src/xlat makes of it (the IPv4 identification
 * apart, where one is made up). Everything else passes on as it came: the daemon behind decides.
 *
 * Needs Linux 5.7, for gso_size, and only what programs of any licence may call (bpf_check_mtu and
 * bpf_fib_lookup are for the GPL's). bpf_redirect_neigh (5.10) is behind a switch, which the loader
 * turns off where the kernel has none: then Ethernet uplinks are the daemon's. On an older kernel
 * the programs do not load, and all is.
 *
 * Each program is one function to the kernel: Android's loader links no other, and tells the kernel
 * nothing of types. How little there is to verify, docs/offload.md says.
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
 * On the direct route: whatever it sends is marked, and is no IPv4 packet until the direct program
 * has seen it. So nothing leaves as native IPv4 when that has gone, by whoever's hand.
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
