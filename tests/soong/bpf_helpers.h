// SPDX-License-Identifier: Apache-2.0

/*
 * What bpf_progs uses of the bpf_helpers.h that Soong's bpf modules are compiled with, as far as its users can tell: the same
 * names, sections and types. It only shows that the programs compile; nobody loads them.
 */
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>

#define AID_ROOT 0
#define AID_SYSTEM 1000
#define KVER(a, b, c) (((a) << 24) + ((b) << 16) + (c))

#define SECTION(name) __attribute__((section(name), used))
#define LICENSE(name) char _license[] SECTION("license") = (name)
#define CRITICAL(reason) char _critical[] SECTION("critical") = (reason)

struct bpf_map_def {
	unsigned int type, key_size, value_size, max_entries, gid;
};

struct bpf_prog_def {
	unsigned int uid, gid, min_kver;
};

static void *(*const bpf_map_lookup_elem_unsafe)(const struct bpf_map_def *map, const void *key) =
	(void *)BPF_FUNC_map_lookup_elem;

#define DEFINE_BPF_MAP_GRW(the_map, TYPE, KeyType, ValueType, num_entries, grp)                                \
	const struct bpf_map_def SECTION("maps") the_map = {                                                   \
		BPF_MAP_TYPE_##TYPE, sizeof(KeyType), sizeof(ValueType), (num_entries), (grp)                  \
	};                                                                                                     \
	static inline __attribute__((unused)) ValueType *bpf_##the_map##_lookup_elem(const KeyType *key)       \
	{                                                                                                      \
		return bpf_map_lookup_elem_unsafe(&the_map, key);                                              \
	}

#define DEFINE_BPF_PROG_KVER(name, prog_uid, prog_gid, the_prog, kver)                                         \
	const struct bpf_prog_def SECTION("progs") the_prog##_def = { (prog_uid), (prog_gid), (kver) };        \
	SECTION(name) int the_prog
