// SPDX-License-Identifier: Apache-2.0
/*
 * What the programs share with whoever fills their maps: native C layout and byte order, addresses
 * in network byte order, padding zero (the kernel hashes keys whole). Derived once more in Rust; a
 * test compares every offset with the object's BTF.
 */
#pragma once

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <stdbool.h>

/* Entries of the egress and of the ingress map. */
#define CLAT_MAX_ENTRIES 16

/*
 * The addresses that CLATs have, one each: 192.0.0.0/29 (RFC 7335). The last bits of its own number
 * what a CLAT has in the arrays below: looking up in one is inlined, and takes a fraction of the
 * time of a hash.
 */
#define CLAT_POOL 0xc0000000
#define CLAT_SLOTS 8

/* map_clatd_clat_egress_map: HASH. */
struct clat_egress_key {
	__u32 iif; /* v4iface, which the program is attached to; the uplink, for the direct one */
	struct in_addr local4; /* the only source that may leave */
};

struct clat_egress_value {
	__u32 oif; /* uplink; v4iface, for what the direct program leaves to the daemon */
	struct in6_addr local6; /* becomes the source */
	struct in6_addr pfx96; /* becomes the destination, its last 32 bits replaced */
	bool oifIsEthernet; /* the uplink wants an Ethernet header */
	__u8 pad[3];
};

/* map_clatd_clat_ingress_map: HASH. */
struct clat_ingress_key {
	__u32 iif; /* uplink, which the program is attached to */
	struct in6_addr pfx96; /* source, its last 32 bits zero */
	struct in6_addr local6; /* destination */
};

struct clat_ingress_value {
	__u32 oif; /* v4iface; the uplink itself, where packets stay there as IPv4 */
	struct in_addr local4; /* becomes the destination */
};

/*
 * map_clatd_clat_next_hop_map: ARRAY by slot; who gets what leaves by an Ethernet uplink. Kept as
 * the routes are by who adds the entries above. The uplink is given, so the kernel's own choice of
 * a route, which could be by another, has no say.
 */
struct clat_next_hop {
	struct in6_addr router; /* "::" where every destination is a neighbour itself */
	__u32 known; /* zero where no route leads to the prefix */
};

/*
 * Why a packet was left to the daemon, untouched. Some the daemon translates, some it answers, some
 * it drops: that is for it to count.
 */
enum clat_reason {
	CLAT_FOREIGN_SOURCE, /* egress: no entry for this source */
	CLAT_HEADER, /* lengths, version or checksum that are wrong, bytes behind the packet */
	CLAT_ADDRESS, /* egress: a destination that is never forwarded */
	CLAT_MARTIAN, /* ingress: a source that nobody has, or the CLAT itself */
	CLAT_OPTIONS, /* IPv4 options, or extension headers other than one Fragment Header */
	CLAT_PROTOCOL, /* without a counterpart in the other family */
	CLAT_FRAGMENT, /* egress; of an ICMP message; one that cannot be part of a packet */
	CLAT_ICMP, /* other than echo */
	CLAT_CHECKSUM, /* UDP without one, too long to sum up */
	CLAT_SIZE, /* has to be cut, or answered with "too big" */
	CLAT_GSO, /* super-packet other than of plain TCP or UDP */
	CLAT_ETHERNET, /* Ethernet uplink, and a kernel without bpf_redirect_neigh */
	CLAT_NEXT_HOP, /* Ethernet uplink without a known way to the prefix */
	CLAT_KERNEL, /* the kernel refused to resize the packet */
	CLAT_REASONS
};

/*
 * map_clatd_clat_counters_map: PERCPU_ARRAY by slot for egress, by CLAT_SLOTS more for ingress. Who
 * adds an entry above begins with zeros here.
 */
struct clat_counters {
	__u64 packets; /* translated and sent on; each segment of a super-packet counts */
	__u64 bytes; /* of those, as they came; headers of a super-packet once */
	__u64 super_packets; /* how many super-packets were among them */
	__u64 neighbour; /* had their neighbour found by the kernel; super-packets count once */
	__u64 lost; /* dropped: the kernel failed when the packet had been changed already */
	__u64 passed[CLAT_REASONS]; /* left to the daemon; super-packets count once */
};
