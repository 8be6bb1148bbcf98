// SPDX-License-Identifier: Apache-2.0
/* Declarations of the kernel, and the differences between the two builds and loaders. */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <stddef.h>

/* All differences between Soong's bpf module, for Android's network loader, and libbpf. */
#ifdef CLAT_SOONG
#include <bpf_helpers.h>
#define MAP(name, type, key, value, entries) \
	DEFINE_BPF_MAP_GRW(name, type, key, value, entries, AID_SYSTEM)
#define LOOKUP(map, key) bpf_##map##_lookup_elem(key)
/* OPTIONAL: if the verifier rejects a program, the device boots without it. */
#define PROGRAM(hook, link)                                                                  \
	DEFINE_OPTIONAL_BPF_PROG_KVER("schedcls/" #hook "/clat_" #link, AID_ROOT, AID_SYSTEM, \
				      schedcls_##hook##_clat_##link, KVER(5, 10, 0))
/* The loader supports no variables, and skips the programs on kernels that need the switch. */
#define SWITCH(name) enum { name = 1 }
/* netd's CLAT_MARK: bw_raw_PREROUTING drops such packets, since the daemon has received them. */
#define MARK_FOR_DAEMON(skb) ((skb)->mark = 0xdeadc1a7)
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
/* Read-only when the verifier runs, so that it skips code that is switched off. */
#define SWITCH(name) const volatile __u8 name = 1
#define LICENSE(text) char _license[] SEC("license") = text
/* The controller's rule to drop such packets needs no mark. */
#define MARK_FOR_DAEMON(skb) ((void)(skb))
static void *(*const map_lookup_elem)(const void *map, const void *key) =
	(void *)BPF_FUNC_map_lookup_elem;
#endif

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define net16(x) ((__be16)__builtin_bswap16(x))
#define net32(x) ((__be32)__builtin_bswap32(x))
#else
#define net16(x) ((__be16)(x))
#define net32(x) ((__be32)(x))
#endif

/* Not __inline of the kernel's headers, which does not force inlining. */
#define INLINE static inline __attribute__((always_inline))

/*
 * Makes the compiler reload a struct from the stack, so that the verifier drops what it knows of
 * its values. Otherwise it would verify the rest of the program for each kind of packet.
 */
#define FORGET(object) asm volatile("" : "+m"(object))

static long (*const skb_load)(const void *skb, __u32 at, void *to, __u32 len) =
	(void *)BPF_FUNC_skb_load_bytes;
static long (*const skb_store)(void *skb, __u32 at, const void *from, __u32 len, __u64 flags) =
	(void *)BPF_FUNC_skb_store_bytes;
static long (*const skb_pull_data)(void *skb, __u32 len) = (void *)BPF_FUNC_skb_pull_data;
static long (*const skb_change_proto)(void *skb, __be16 proto, __u64 flags) =
	(void *)BPF_FUNC_skb_change_proto;
static long (*const skb_adjust_room)(void *skb, __s32 by, __u32 mode, __u64 flags) =
	(void *)BPF_FUNC_skb_adjust_room;
static long (*const skb_change_head)(void *skb, __u32 by, __u64 flags) =
	(void *)BPF_FUNC_skb_change_head;
static __s64 (*const csum_diff)(const void *from, __u32 from_len, const void *to, __u32 to_len,
				__u32 seed) = (void *)BPF_FUNC_csum_diff;
static long (*const l4_csum_replace)(void *skb, __u32 at, __u64 from, __u64 to, __u64 flags) =
	(void *)BPF_FUNC_l4_csum_replace;
static long (*const csum_update)(void *skb, __u32 by) = (void *)BPF_FUNC_csum_update;
static void (*const set_hash)(void *skb, __u32 hash) = (void *)BPF_FUNC_set_hash;
static long (*const redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const redirect_neigh)(__u32 ifindex, void *params, int len, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

/*
 * Address of the `len` bytes at `at`, valid until a helper changes the packet. NULL if they are
 * not all in the linear part.
 */
INLINE void *bytes_at(const struct __sk_buff *skb, __u32 at, const __u32 len)
{
	void *bytes = (void *)(long)skb->data + at;

	return bytes + len <= (void *)(long)skb->data_end ? bytes : NULL;
}

/* The same, but pulls the bytes into the linear part. NULL if the packet is shorter. */
INLINE void *pulled_bytes_at(struct __sk_buff *skb, const __u32 at, const __u32 len)
{
	void *bytes = bytes_at(skb, at, len);

	if (!bytes && !skb_pull_data(skb, at + len))
		bytes = bytes_at(skb, at, len);
	return bytes;
}

/* Sets the EtherType before an IP header. skb->csum does not cover it. */
INLINE void set_ether_type(void *ip, __u16 type)
{
	struct ethhdr *ether = ip - sizeof(*ether);

	ether->h_proto = net16(type);
}

/* Restores the flow hash, which the kernel would otherwise compute again for the same flow. */
INLINE void keep_hash(struct __sk_buff *skb, __u32 hash)
{
	if (hash)
		set_hash(skb, hash);
}
