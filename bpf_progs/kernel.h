/*
 * Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
 * the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0
 *
 * Unless required by applicable law or agreed to in writing, software distributed under the License is distributed on
 * an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the
 * specific language governing permissions and limitations under the License.
 */

/* What the programs use of the kernel, under names of their own, and what depends on who builds and loads them. */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <stddef.h>

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
/*
 * The same for a constant `at`, where a header of 32-bit words begins; without a call where the bytes are in one piece.
 * Of what is not said to be aligned, the compiler would fetch each byte by itself.
 */
INLINE long load(const struct __sk_buff *skb, const __u32 at, void *to, const __u32 len)
{
	const void *from = (void *)(long)skb->data + at;

	if (from + len > (void *)(long)skb->data_end)
		return skb_load(skb, at, to, len);
	__builtin_memcpy(to, __builtin_assume_aligned(from, sizeof(__u32)), len);
	return 0;
}
static long (*const skb_store)(void *skb, __u32 at, const void *from, __u32 len, __u64 flags) =
	(void *)BPF_FUNC_skb_store_bytes;
static long (*const skb_change_proto)(void *skb, __be16 proto, __u64 flags) = (void *)BPF_FUNC_skb_change_proto;
static long (*const skb_adjust_room)(void *skb, __s32 by, __u32 mode, __u64 flags) =
	(void *)BPF_FUNC_skb_adjust_room;
/* What it adds is zero. */
static long (*const skb_change_tail)(void *skb, __u32 len, __u64 flags) = (void *)BPF_FUNC_skb_change_tail;
static long (*const skb_change_head)(void *skb, __u32 by, __u64 flags) = (void *)BPF_FUNC_skb_change_head;
static __s64 (*const csum_diff)(const void *from, __u32 from_len, const void *to, __u32 to_len, __u32 seed) =
	(void *)BPF_FUNC_csum_diff;
static long (*const l4_csum_replace)(void *skb, __u32 at, __u64 from, __u64 to, __u64 flags) =
	(void *)BPF_FUNC_l4_csum_replace;
static long (*const csum_update)(void *skb, __u32 by) = (void *)BPF_FUNC_csum_update;
static void (*const set_hash)(void *skb, __u32 hash) = (void *)BPF_FUNC_set_hash;
static __u32 (*const prandom)(void) = (void *)BPF_FUNC_get_prandom_u32;
static long (*const redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const redirect_neigh)(__u32 ifindex, void *params, int len, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

/*
 * Has `header` take the place of bytes of another sum, by which the packet's own (CHECKSUM_COMPLETE) grows; for a constant
 * `at`, and without a call for each where the bytes are in one piece.
 */
INLINE long replace(struct __sk_buff *skb, const __u32 at, const void *header, const __u32 len, __u32 grows)
{
	void *to = (void *)(long)skb->data + at;

	if (to + len > (void *)(long)skb->data_end)
		return skb_store(skb, at, header, len, BPF_F_RECOMPUTE_CSUM);
	__builtin_memcpy(__builtin_assume_aligned(to, sizeof(__u32)), header, len);
	/* Does nothing where there is no such sum. */
	csum_update(skb, grows);
	return 0;
}

/* Sums begin behind it. */
INLINE long set_ether_type(struct __sk_buff *skb, __be16 type)
{
	struct ethhdr *header = (void *)(long)skb->data;

	if ((void *)(header + 1) > (void *)(long)skb->data_end)
		return skb_store(skb, offsetof(struct ethhdr, h_proto), &type, sizeof(type), 0);
	header->h_proto = type;
	return 0;
}

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define net16(x) ((__be16)__builtin_bswap16(x))
#define net32(x) ((__be32)__builtin_bswap32(x))
#else
#define net16(x) ((__be16)(x))
#define net32(x) ((__be32)(x))
#endif
