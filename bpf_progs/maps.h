// SPDX-License-Identifier: Apache-2.0
/* The maps and the counters in them. */
#pragma once

#include "clatd.h"
#include "kernel.h"

MAP(clat_egress_map, HASH, struct clat_egress_key, struct clat_egress_value, CLAT_MAX_ENTRIES);
MAP(clat_ingress_map, HASH, struct clat_ingress_key, struct clat_ingress_value, CLAT_MAX_ENTRIES);
MAP(clat_next_hop_map, ARRAY, __u32, struct clat_next_hop, CLAT_SLOTS);
MAP(clat_counters_map, PERCPU_ARRAY, __u32, struct clat_counters, 2 * CLAT_SLOTS);

/* The packet can be translated. */
#define NO_REASON CLAT_REASONS

INLINE __u32 slot_of(__be32 local4)
{
	return net32(local4) % CLAT_SLOTS;
}

/*
 * Leaves the packet to the next filter, and to the daemon if no filter takes it: it goes up the
 * stack, or out of v4iface.
 */
INLINE int pass(struct clat_counters *counters, enum clat_reason reason)
{
	counters->passed[reason]++;
	return TC_ACT_PIPE;
}

/* Drops a packet that is only partly translated. */
INLINE int drop(struct clat_counters *counters)
{
	counters->lost++;
	return TC_ACT_SHOT;
}

/* Counts a packet that has this length now in its entry, too. */
#ifdef CLAT_COUNT_IN_ENTRY
#define COUNT_IN_ENTRY(entry, len)                      \
	do {                                            \
		__sync_fetch_and_add(&(entry)->packets, 1); \
		__sync_fetch_and_add(&(entry)->bytes, len); \
	} while (0)
#else
#define COUNT_IN_ENTRY(entry, len) ((void)(entry))
#endif

/*
 * `len` is the length of the packet as received, `headers` that of the headers that each segment
 * of a super-packet has.
 */
INLINE void count(struct clat_counters *counters, const struct __sk_buff *skb, __u32 len,
		  __u32 headers)
{
	__u32 size = skb->gso_size;

	counters->bytes += len;
	if (!size) {
		counters->packets++;
		return;
	}
	/* gso_segs is zero for packets from a virtual machine or a TUN device. */
	counters->packets += (len - headers + size - 1) / size;
	counters->super_packets++;
}
