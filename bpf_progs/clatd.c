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
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <stddef.h>

#include "clatd.h"

/* All that differs between Soong's bpf module, loaded by bpfloader, and clang with libbpf. */
#ifdef CLAT_SOONG
#include <bpf_helpers.h>
#define MAP(name, type, key, value, entries) DEFINE_BPF_MAP_GRW(name, type, key, value, entries, AID_SYSTEM)
#define LOOKUP(map, key) bpf_##map##_lookup_elem(key)
#define PROGRAM(hook, link) \
	DEFINE_BPF_PROG_KVER("schedcls/" #hook "/clat_" #link, AID_ROOT, AID_SYSTEM, \
			     schedcls_##hook##_clat_##link, KVER(5, 10, 0))
/* No variables there; bpfloader passes over the programs on kernels that would need one. */
#define SWITCH(name) enum { name = 1 }
#else
#define SEC(name) __attribute__((section(name), used))
#define MAP(name, map_type, map_key, map_value, entries)  \
	struct {                                          \
		int(*type)[BPF_MAP_TYPE_##map_type];      \
		map_key *key;                             \
		map_value *value;                         \
		int(*max_entries)[entries];               \
	} name SEC(".maps")
#define LOOKUP(map, key) map_lookup_elem(&map, key)
#define PROGRAM(hook, link) SEC("tc") int schedcls_##hook##_clat_##link
/* Read-only by the time the program is verified, so that what is off is not even looked at. */
#define SWITCH(name) const volatile __u8 name = 1
#define LICENSE(text) char _license[] SEC("license") = text
#define CRITICAL(text) struct clat_no_marker
static void *(*const map_lookup_elem)(const void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
#endif

/* The kernel's headers have a name for it, which means less. */
#define INLINE static inline __attribute__((always_inline))

static long (*const skb_load)(const void *skb, __u32 at, void *to, __u32 len) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const skb_store)(void *skb, __u32 at, const void *from, __u32 len, __u64 flags) =
	(void *)BPF_FUNC_skb_store_bytes;
static long (*const skb_change_proto)(void *skb, __be16 proto, __u64 flags) = (void *)BPF_FUNC_skb_change_proto;
static long (*const skb_adjust_room)(void *skb, __s32 by, __u32 mode, __u64 flags) =
	(void *)BPF_FUNC_skb_adjust_room;
static long (*const skb_change_head)(void *skb, __u32 by, __u64 flags) = (void *)BPF_FUNC_skb_change_head;
static __s64 (*const csum_diff)(const void *from, __u32 from_len, const void *to, __u32 to_len, __u32 seed) =
	(void *)BPF_FUNC_csum_diff;
static long (*const l4_csum_replace)(void *skb, __u32 at, __u64 from, __u64 to, __u64 flags) =
	(void *)BPF_FUNC_l4_csum_replace;
static __u32 (*const prandom)(void) = (void *)BPF_FUNC_get_prandom_u32;
static long (*const redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const redirect_neigh)(__u32 ifindex, void *params, int len, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

/* What the kernel has; written by the loader. */
SWITCH(clat_has_redirect_neigh);

/* Most bytes that bpf_csum_diff takes at a time. */
#define CHUNK 512
/* Most chunks of a UDP datagram whose checksum is computed here: more than a jumbo frame. */
#define CHUNKS 18

struct clat_scratch {
	__u8 bytes[CHUNK + 4];
};

MAP(clat_egress_map, HASH, struct clat_egress_key, struct clat_egress_value, CLAT_MAX_ENTRIES);
MAP(clat_ingress_map, HASH, struct clat_ingress_key, struct clat_ingress_value, CLAT_MAX_ENTRIES);
/* An uplink and a v4iface for each CLAT. */
MAP(clat_counters_map, PERCPU_HASH, __u32, struct clat_counters, 2 * CLAT_MAX_ENTRIES);
/* Room to compute checksums in; the stack has too little. */
MAP(clat_scratch_map, PERCPU_ARRAY, __u32, struct clat_scratch, 1);

LICENSE("Apache 2.0");
CRITICAL("Connectivity (CLAT)");

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define net16(x) ((__be16)__builtin_bswap16(x))
#define net32(x) ((__be32)__builtin_bswap32(x))
#else
#define net16(x) ((__be16)(x))
#define net32(x) ((__be32)(x))
#endif

#define PROTO_HOPOPTS 0
#define PROTO_ICMP 1
#define PROTO_IGMP 2
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_DCCP 33
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_AH 51
#define PROTO_ICMPV6 58
#define PROTO_DSTOPTS 60
#define PROTO_UDPLITE 136

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8
#define ICMP_UNREACHABLE 3
#define ICMP_TIME_EXCEEDED 11
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_TIME_EXCEEDED 3
#define ICMPV6_ECHO 128
#define ICMPV6_ECHO_REPLY 129

#define IPV4_DF 0x4000
#define IPV4_MF 0x2000
#define IPV4_OFFSET 0x1fff

/* RFC 8200 §5. Up to this size a packet without DF leaves whole (RFC 7915 §4.1). */
#define IPV6_MIN_MTU 1280
/* Up to this size an IPv4 packet may be fragmented on its way (RFC 7915 §5.1). */
#define MOST_WITHOUT_DF 1260
/* RFC 1812 §4.3.2.3. */
#define MOST_OF_AN_ERROR 576
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

/* What the decision needs to know of a transport header, and what becomes of it. */
struct transport {
	__u32 payload; /* bytes behind the IP headers */
	__u32 header; /* its own length, known for super-packets only */
	__u16 checksum_at; /* 0: none that covers the addresses */
	bool zero_is_none; /* a checksum of zero means that there is none */
	bool no_checksum; /* UDP without one */
	__u16 udp_len;
	__u8 kind; /* of an ICMP message */
	bool odd_echo; /* one whose checksum could be 0 or 0xffff */
	bool whole; /* neither part of a packet */
	bool first; /* nor a later part */
};

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

/* A one's-complement sum as 16 bits; zero only if every word was. */
INLINE __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

INLINE __u32 sum_of(const void *bytes, __u32 len, __u32 seed)
{
	return csum_diff(0, 0, bytes, len, seed);
}

/*
 * Looks at the transport header at `at`. Fills in `t`, whose payload, whole and first are there already; returns
 * CLAT_REASONS where nothing speaks against translating it.
 */
INLINE enum clat_reason inspect(struct __sk_buff *skb, __u32 at, __u8 protocol, struct transport *t)
{
	__u8 head[8] = {};

	switch (protocol) {
	case PROTO_TCP:
		t->checksum_at = 16;
		break;
	case PROTO_UDP:
	case PROTO_UDPLITE:
		t->zero_is_none = true;
		t->checksum_at = 6;
		break;
	case PROTO_DCCP:
		t->checksum_at = 6;
		break;
	}
	if (skb->gso_size && (!t->whole || (protocol != PROTO_TCP && protocol != PROTO_UDP)))
		return CLAT_GSO;
	if (!t->first)
		return CLAT_REASONS;

	switch (protocol) {
	case PROTO_TCP:
		if (t->payload < 18)
			return CLAT_HEADER;
		if (skb->gso_size) {
			if (skb_load(skb, at + 12, head, 1))
				return CLAT_HEADER;
			t->header = head[0] >> 4 << 2;
			if (t->header > t->payload)
				return CLAT_HEADER;
		}
		break;
	case PROTO_UDP:
		if (t->payload < 8 || skb_load(skb, at, head, 8))
			return CLAT_HEADER;
		t->header = 8;
		t->udp_len = head[4] << 8 | head[5];
		t->no_checksum = !head[6] && !head[7];
		if (t->whole && (t->udp_len < 8 || t->udp_len > t->payload))
			return CLAT_HEADER;
		break;
	case PROTO_UDPLITE:
	case PROTO_DCCP:
		if (t->payload < 8)
			return CLAT_HEADER;
		break;
	case PROTO_ICMP:
	case PROTO_ICMPV6:
		if (t->payload < 8 || skb_load(skb, at, head, 8))
			return CLAT_HEADER;
		t->kind = head[0];
		/* Impossible, or of a message of zeros. */
		t->odd_echo = (head[2] == 0xff && head[3] == 0xff) || (!head[4] && !head[5] && !head[6] && !head[7]);
		break;
	}
	return CLAT_REASONS;
}

/* Length of the packet, of a super-packet's largest segment, behind an IP header of `header` bytes. */
INLINE __u32 length(struct __sk_buff *skb, const struct transport *t, __u32 header)
{
	return header + (skb->gso_size ? t->header + skb->gso_size : t->payload);
}

/*
 * Makes the transport checksum at `at` follow addresses whose sums differ by `diff`. Knows of checksums that are yet to
 * be finished (CHECKSUM_PARTIAL), and mends the packet's own sum (CHECKSUM_COMPLETE).
 */
INLINE long readdress(struct __sk_buff *skb, __u32 at, const struct transport *t, __u32 diff)
{
	__u16 folded = fold(diff);

	/* Neutral addresses. */
	if (!t->checksum_at || !t->first || folded == 0 || folded == 0xffff)
		return 0;
	return l4_csum_replace(skb, at + t->checksum_at, 0, diff,
			       BPF_F_PSEUDO_HDR | (t->zero_is_none ? BPF_F_MARK_MANGLED_0 : 0));
}

/*
 * Whether the checksum at `at` is left to a device (CHECKSUM_PARTIAL), as that of every sound super-packet is. Of UDP
 * there are others: those that left a device without checksum offload since 6.11, with half a checksum that only that
 * device's segmentation would complete, and those that are a list of packets with headers of their own
 * (NETIF_F_GRO_FRAGLIST). No field tells, but one kind of checksum goes up where the other goes down. It is put back.
 */
INLINE bool is_left_to_device(struct __sk_buff *skb, __u32 at)
{
	__u16 was = 0, is = 0;

	return !skb_load(skb, at, &was, sizeof(was)) && !l4_csum_replace(skb, at, 0, 1, BPF_F_PSEUDO_HDR) &&
	       !skb_load(skb, at, &is, sizeof(is)) && !l4_csum_replace(skb, at, 0, ~1U, BPF_F_PSEUDO_HDR) &&
	       !skb_store(skb, at, &was, sizeof(was), 0) && is == fold((__u64)was + 1);
}

/* Turns the echo message at `at` into that of the other family; `pseudo` is what the pseudo-header adds to its sum. */
INLINE long retype(struct __sk_buff *skb, __u32 at, __u8 from, __u8 to, __u32 pseudo)
{
	return l4_csum_replace(skb, at + 2, net16((__u16)(from << 8)), net16((__u16)(to << 8)), 2) ||
	       skb_store(skb, at, &to, 1, 0) || l4_csum_replace(skb, at + 2, 0, pseudo, BPF_F_PSEUDO_HDR);
}

/*
 * `n`, which lies between one and `most`, a power of two, in a form in which every verifier sees that it does: some
 * learn nothing from a comparison with zero, or with a copy of 32 bits.
 */
INLINE __u64 one_to(__u64 most, __u64 n)
{
	n--;
	asm volatile("" : "+r"(n));
	return (n & (most - 1)) + 1;
}

/* Adds `len` bytes at `at` to `sum`. False where they are too many. In chunks, and not by bpf_loop (5.17). */
INLINE bool sum_bytes(struct __sk_buff *skb, __u32 at, __u32 len, __u32 *sum)
{
	__u32 zero = 0;
	struct clat_scratch *scratch = LOOKUP(clat_scratch_map, &zero);

	if (!scratch)
		return false;
#pragma clang loop unroll(disable)
	for (int i = 0; i < CHUNKS; i++) {
		if (len == 0)
			return true;

		__u64 n = one_to(CHUNK, len < CHUNK ? len : CHUNK);

		if (skb_load(skb, at, scratch->bytes, n))
			return false;
		/* Up to a multiple of four. */
		scratch->bytes[n] = 0;
		scratch->bytes[n + 1] = 0;
		scratch->bytes[n + 2] = 0;
		*sum = sum_of(scratch->bytes, (n + 3) & ~3U, *sum);
		at += n;
		len -= n;
	}
	return len == 0;
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

/* What has been translated to IPv6 leaves by the uplink. */
INLINE int leave(struct __sk_buff *skb, const struct clat_egress_value *clat,
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
	return redirect_neigh(clat->oif, 0, 0, 0);
}

INLINE int egress(struct __sk_buff *skb, const bool ether)
{
	const __u32 link = ether ? ETH_HLEN : 0;
	struct ipv6_headers new = {};
	struct transport t = {};
	struct iphdr ip;

	if (skb->protocol != net16(ETH_P_IP) || skb_load(skb, link, &ip, sizeof(ip)))
		return TC_ACT_PIPE;

	__u32 ifindex = skb->ifindex;
	struct clat_counters *counters = LOOKUP(clat_counters_map, &ifindex);
	struct clat_egress_key key = { .iif = ifindex, .local4.s_addr = ip.saddr };
	struct clat_egress_value *clat = LOOKUP(clat_egress_map, &key);

	if (!clat)
		return pass(counters, CLAT_FOREIGN_SOURCE);
	if (clat->oifIsEthernet && !clat_has_redirect_neigh)
		return pass(counters, CLAT_ETHERNET);

	/* The header, as RFC 1812 §5.2.2 wants it. */
	__u32 len = net16(ip.tot_len);
	__u32 header = ip.ihl * 4;

	if (ip.version != 4 || header < sizeof(ip) || len < header || skb->len - link != len)
		return pass(counters, CLAT_HEADER);

	__u32 sum = sum_of(&ip, sizeof(ip), 0);
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

	enum clat_reason reason = inspect(skb, link + header, ip.protocol, &t);

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
		if (!t.whole || skb->gso_size || !sum_bytes(skb, link + header, t.udp_len, &sum))
			return pass(counters, CLAT_CHECKSUM);
		computed = ~fold(sum);
		if (!computed)
			computed = 0xffff;
	} else {
		diff = csum_diff(&ip.saddr, 8, &new.ip.saddr, 32, 0);
	}

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

	if (t.whole)
		failed = skb_store(skb, link, &new, sizeof(new.ip), BPF_F_RECOMPUTE_CSUM);
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
	if (!failed && ether) {
		__be16 proto = net16(ETH_P_IPV6);

		failed = skb_store(skb, offsetof(struct ethhdr, h_proto), &proto, sizeof(proto), 0);
	}
	if (failed)
		return lose(counters);
	count(counters, skb, &t, len);
	return leave(skb, clat, counters, ether);
}

/* The checksum `field` when words that summed to `old` become words that sum to `new` (RFC 1624 §3). */
INLINE __u16 adjust(__u16 field, __u32 old, __u32 new)
{
	__u16 from = fold(old), to = fold(new);

	/* The same number, which has two forms if it is zero. */
	if (from % 0xffff == to % 0xffff)
		return field;
	return ~fold((__u64)(__u16)~field + (__u16)~from + to);
}

/*
 * An ICMPv6 error about a packet of ours, from a source that has an IPv4 form (RFC 7915 §5.2, §5.3): the plain ones,
 * which say "unreachable" and "time exceeded". Left to the daemon are those with extensions, those to be cut, those
 * about fragments, "packet too big", which depends on MTUs that are not known here, and those of routers without an
 * IPv4 form, which find no entry and gain an extension.
 */
INLINE int ingress_error(struct __sk_buff *skb, __u32 link, const struct ipv6hdr *ip,
					 const struct transport *t, const struct clat_ingress_value *clat,
					 struct clat_counters *counters)
{
	struct icmpv6_error was;
	struct icmp_error new = {};
	__u32 quoted = t->payload - sizeof(was);

	if (t->payload < sizeof(was) + 8 || sizeof(new) + quoted > MOST_OF_AN_ERROR ||
	    skb_load(skb, link + sizeof(*ip), &was, sizeof(was)))
		return pass(counters, CLAT_ICMP);

	new.icmp.kind = ICMP_UNREACHABLE;
	if (was.icmp.kind == ICMPV6_TIME_EXCEEDED) {
		new.icmp.kind = ICMP_TIME_EXCEEDED;
		new.icmp.code = was.icmp.code;
	} else if (was.icmp.code == 0 || was.icmp.code == 2 || was.icmp.code == 3) {
		new.icmp.code = 1; /* host */
	} else if (was.icmp.code == 1) {
		new.icmp.code = 10; /* host prohibited */
	} else if (was.icmp.code == 4) {
		new.icmp.code = 3; /* port */
	} else {
		return pass(counters, CLAT_ICMP);
	}

	/* It went the other way. */
	const __u32 *own = ip->daddr.in6_u.u6_addr32, *src = was.ip.saddr.in6_u.u6_addr32;
	const __u32 *prefix = ip->saddr.in6_u.u6_addr32, *dst = was.ip.daddr.in6_u.u6_addr32;
	__u32 len = net16(was.ip.payload_len);
	__u8 protocol = was.ip.nexthdr;

	/* Any length of extensions (RFC 4884) is in the first byte. */
	if (was.icmp.rest & net32(0xff000000) || was.ip.version != 6 || quoted > len || len > 0xffff - sizeof(new.ip) ||
	    src[0] != own[0] || src[1] != own[1] || src[2] != own[2] || src[3] != own[3] || dst[0] != prefix[0] ||
	    dst[1] != prefix[1] || dst[2] != prefix[2] || protocol == PROTO_HOPOPTS || protocol == PROTO_ROUTING ||
	    protocol == PROTO_FRAGMENT || protocol == PROTO_DSTOPTS)
		return pass(counters, CLAT_ICMP);

	new.ip.version = 4;
	new.ip.ihl = sizeof(new.ip) / 4;
	new.ip.tos = was.ip.priority << 4 | was.ip.flow_lbl[0] >> 4;
	new.ip.tot_len = net16((__u16)(sizeof(new.ip) + len));
	new.ip.frag_off = sizeof(new.ip) + len > MOST_WITHOUT_DF ? net16(IPV4_DF) : 0;
	new.ip.ttl = was.ip.hop_limit;
	new.ip.protocol = protocol == PROTO_ICMPV6 ? PROTO_ICMP : protocol;
	new.ip.saddr = clat->local4.s_addr;
	new.ip.daddr = dst[3];
	new.ip.check = ~fold(sum_of(&new.ip, sizeof(new.ip), 0));

	new.outer.version = 4;
	new.outer.ihl = sizeof(new.outer) / 4;
	new.outer.tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	new.outer.tot_len = net16((__u16)(sizeof(new) + quoted));
	new.outer.id = (__be16)prandom() ?: net16(1);
	new.outer.ttl = ip->hop_limit;
	new.outer.protocol = PROTO_ICMP;
	new.outer.saddr = ip->saddr.in6_u.u6_addr32[3];
	new.outer.daddr = clat->local4.s_addr;
	new.outer.check = ~fold(sum_of(&new.outer, sizeof(new.outer), 0));

	/* A wrong checksum is to stay as wrong; few are. */
	__u32 quote_at = link + sizeof(*ip) + sizeof(was);
	__u32 quote = 0;

	if (!sum_bytes(skb, quote_at, quoted, &quote))
		return pass(counters, CLAT_CHECKSUM);

	__u32 sum = sum_of(&ip->saddr, 32, fold((__u64)net32(t->payload) + net32(PROTO_ICMPV6)));

	if (fold((__u64)sum_of(&was, sizeof(was), quote) + sum) != 0xffff)
		return pass(counters, CLAT_CHECKSUM);

	/* The quoted packet's own checksum, and its type if it is an echo. */
	__u32 field_at = 0;
	__u16 field = 0, new_field = 0;
	__u8 kind = 0, new_kind = 0;
	__u32 old_sum = sum_of(&was.ip.saddr, 32, 0);
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
	new.icmp.check = ~fold(sum_of(&new.icmp, sizeof(new.icmp) + sizeof(new.ip), quote));

	/* From here on the packet changes. First to [48 bytes][quoted payload], which `new` fills. */
	if (skb_change_proto(skb, net16(ETH_P_IP), 0))
		return pass(counters, CLAT_KERNEL);

	__u32 at = link + sizeof(new);
	__be16 proto = net16(ETH_P_IP);

	if (skb_adjust_room(skb, -(__s32)(sizeof(was) - sizeof(new.icmp) - sizeof(new.ip)), BPF_ADJ_ROOM_NET, 0) ||
	    skb_store(skb, link, &new, sizeof(new), BPF_F_RECOMPUTE_CSUM) ||
	    (field_at && skb_store(skb, at + field_at, &new_field, sizeof(new_field), BPF_F_RECOMPUTE_CSUM)) ||
	    (new_kind != kind && skb_store(skb, at, &new_kind, sizeof(new_kind), BPF_F_RECOMPUTE_CSUM)) ||
	    (link && skb_store(skb, offsetof(struct ethhdr, h_proto), &proto, sizeof(proto), 0)))
		return lose(counters);
	count(counters, skb, t, sizeof(*ip) + t->payload);
	return redirect(clat->oif, BPF_F_INGRESS);
}

INLINE int ingress(struct __sk_buff *skb, const bool ether)
{
	const __u32 link = ether ? ETH_HLEN : 0;
	struct fragment_header fragment = {};
	struct transport t = {};
	struct ipv6hdr ip;

	/* Another host's, or another VLAN's. */
	if (skb->protocol != net16(ETH_P_IPV6) || skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_PIPE;
	if (skb_load(skb, link, &ip, sizeof(ip)) || ip.version != 6)
		return TC_ACT_PIPE;

	__u32 ifindex = skb->ifindex;
	struct clat_ingress_key key = { .iif = ifindex, .pfx96 = ip.saddr, .local6 = ip.daddr };

	key.pfx96.in6_u.u6_addr32[3] = 0;

	struct clat_ingress_value *clat = LOOKUP(clat_ingress_map, &key);

	/* Mostly native IPv6, which is no business of ours. */
	if (!clat)
		return TC_ACT_PIPE;

	struct clat_counters *counters = LOOKUP(clat_counters_map, &ifindex);
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

	enum clat_reason reason = inspect(skb, link + header, protocol, &t);

	if (reason != CLAT_REASONS)
		return pass(counters, reason);
	if (protocol == PROTO_ICMPV6 && header == sizeof(ip) &&
	    (t.kind == ICMPV6_UNREACHABLE || t.kind == ICMPV6_TIME_EXCEEDED))
		return ingress_error(skb, link, &ip, &t, clat, counters);
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
		/* May be fragmented further on; zero would read as "none". */
		new.id = (__be16)prandom() ?: net16(1);
	}
	new.check = ~fold(sum_of(&new, sizeof(new), 0));

	__u32 diff;

	if (protocol == PROTO_ICMPV6) {
		diff = sum_of(&ip.saddr, 32, net32(t.payload));
		diff = (__u16)~fold((__u64)diff + net32(PROTO_ICMPV6));
	} else {
		diff = csum_diff(&ip.saddr, 32, &new.saddr, 8, 0);
	}

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
	long failed = skb_store(skb, link, &new, sizeof(new), BPF_F_RECOMPUTE_CSUM);

	if (!failed) {
		if (protocol == PROTO_ICMPV6)
			failed = retype(skb, at, t.kind, t.kind == ICMPV6_ECHO ? ICMP_ECHO : ICMP_ECHO_REPLY,
					diff);
		else
			failed = readdress(skb, at, &t, diff);
	}
	if (!failed && ether) {
		__be16 proto = net16(ETH_P_IP);

		failed = skb_store(skb, offsetof(struct ethhdr, h_proto), &proto, sizeof(proto), 0);
	}
	if (failed)
		return lose(counters);
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
