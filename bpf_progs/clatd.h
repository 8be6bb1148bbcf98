// SPDX-License-Identifier: Apache-2.0
/*
 * The layout of the maps, shared with the processes that fill them: native C layout and byte order,
 * addresses in network byte order, padding zero (the kernel hashes whole keys). src/offload has it
 * in Rust; a test compares every offset with the object's BTF.
 *
 * With CLAT_COUNT_IN_ENTRY, as in clatrs.o, keys and values of the first two maps are those of
 * AOSP's clatd.h: ClatCoordinator writes them, and shows their counters.
 */
#pragma once

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <stdbool.h>

/* The most entries of the egress map, and of the ingress map. */
#define CLAT_MAX_ENTRIES 16

/*
 * The IPv4 addresses of CLATs: 192.0.0.0/29 (RFC 7335). The last bits of a CLAT's address are its
 * index in the array maps below: their lookup is inlined, and much faster than that of a hash map.
 */
#define CLAT_POOL 0xc0000000
#define CLAT_SLOTS 8

/* map_clatd_clat_egress_map: HASH. */
struct clat_egress_key {
	__u32 iif; /* the interface of the program: v4iface, or the uplink for the direct one */
	struct in_addr local4; /* source; others are not translated */
};

struct clat_egress_value {
	__u32 oif; /* uplink; for the direct program v4iface, for packets left to the daemon */
	struct in6_addr local6; /* becomes the source */
	struct in6_addr pfx96; /* becomes the destination, its last 32 bits replaced */
	bool oifIsEthernet; /* the uplink wants an Ethernet header */
	__u8 pad[3];
#ifdef CLAT_COUNT_IN_ENTRY
	__u64 packets; /* translated and sent on; a super-packet counts once */
	__u64 bytes; /* of those, after translation */
#endif
};

/* map_clatd_clat_ingress_map: HASH. */
struct clat_ingress_key {
	__u32 iif; /* uplink, the interface of the program */
	struct in6_addr pfx96; /* source, its last 32 bits zero */
	struct in6_addr local6; /* destination */
};

struct clat_ingress_value {
	__u32 oif; /* v4iface, or the uplink itself if packets stay there as IPv4 */
	struct in_addr local4; /* becomes the destination */
#ifdef CLAT_COUNT_IN_ENTRY
	__u64 packets;
	__u64 bytes;
#endif
};

/*
 * map_clatd_clat_next_hop_map: ARRAY by slot; the next hop on an Ethernet uplink. The process that
 * adds the entries above keeps it in step with the routes. The kernel's own lookup is not used,
 * since its route could lead through another interface than the uplink.
 */
struct clat_next_hop {
	struct in6_addr router; /* "::" if every destination is a neighbour */
	__u32 known; /* zero if there is no route to the prefix */
};

/*
 * Why a packet was left to the daemon unchanged. The daemon may translate, answer or drop it, and
 * counts that itself.
 */
enum clat_reason {
	CLAT_FOREIGN_SOURCE, /* egress: no entry for this source */
	CLAT_HEADER, /* wrong lengths, version or checksum, or bytes after the packet */
	CLAT_ADDRESS, /* egress: a destination that is never forwarded */
	CLAT_MARTIAN, /* ingress: a source that no host has, or the CLAT's own address */
	CLAT_OPTIONS, /* IPv4 options, or extension headers other than one Fragment Header */
	CLAT_PROTOCOL, /* has no counterpart in the other family */
	CLAT_FRAGMENT, /* egress: any; ingress: of an ICMP message, or of an impossible packet */
	CLAT_ICMP, /* other than echo */
	CLAT_CHECKSUM, /* UDP without a checksum, too long to compute it */
	CLAT_SIZE, /* has to be fragmented, or answered by "too big" */
	CLAT_GSO, /* super-packet of other kinds than plain TCP or UDP */
	CLAT_ETHERNET, /* Ethernet uplink, and a kernel without bpf_redirect_neigh */
	CLAT_NEXT_HOP, /* Ethernet uplink without a known next hop */
	CLAT_KERNEL, /* the kernel refused to resize the packet */
	CLAT_REASONS
};

/*
 * map_clatd_clat_counters_map: PERCPU_ARRAY by slot for egress, by slot + CLAT_SLOTS for ingress.
 * The process that adds an entry above resets them.
 */
struct clat_counters {
	__u64 packets; /* translated and sent on; each segment of a super-packet counts */
	__u64 bytes; /* of those, before translation; headers of a super-packet once */
	__u64 super_packets; /* super-packets among them */
	__u64 neighbour; /* neighbour resolved by the kernel; super-packets count once */
	__u64 lost; /* dropped: a helper failed on the partly changed packet */
	__u64 passed[CLAT_REASONS]; /* left to the daemon; super-packets count once */
};
