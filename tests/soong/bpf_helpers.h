// SPDX-License-Identifier: Apache-2.0

/*
 * What bpf_progs uses of the bpf_helpers.h that Soong's bpf modules are compiled with: the same
 * names, types and sections, so that what compiles here compiles there, and
 * tests/tests/bpf_object.rs reads what the network loader would. Taken from
 * packages/modules/Connectivity, android15-qpr2 and main of 2025-03, by reading.
 */
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>
#include <stddef.h>

#define AID_ROOT 0
#define AID_SYSTEM 1000

/* A struct each, so that one cannot be taken for another, or for a number. */
struct kver_uint {
	unsigned int kver;
};
struct optional_bool {
	bool optional;
};
#define KVER_(v) ((struct kver_uint){ .kver = (v) })
#define KVER(a, b, c) KVER_(((a) << 24) + ((b) << 16) + (c))
#define KVER_NONE KVER_(0)
#define KVER_INF KVER_(0xffffffffu)
#define MANDATORY ((struct optional_bool){ .optional = false })
#define OPTIONAL ((struct optional_bool){ .optional = true })

/* That of Android 14 QPR2; the network loader is 42 and more. */
#define BPFLOADER_MIN_VER 41u
#define BPFLOADER_MAX_VER 0x10000u

#define SECTION(name) __attribute__((section(name), used))

#define LICENSE(name)                                                                           \
	unsigned int _bpfloader_min_ver SECTION("bpfloader_min_ver") = BPFLOADER_MIN_VER;       \
	unsigned int _bpfloader_max_ver SECTION("bpfloader_max_ver") = BPFLOADER_MAX_VER;       \
	size_t _size_of_bpf_map_def SECTION("size_of_bpf_map_def") = sizeof(struct bpf_map_def); \
	size_t _size_of_bpf_prog_def SECTION("size_of_bpf_prog_def") =                          \
		sizeof(struct bpf_prog_def);                                                    \
	char _license[] SECTION("license") = (name)

/* An object with it has to load, or the device does not boot. */
#define CRITICAL(reason) char _critical[] SECTION("critical") = (reason)

struct bpf_map_def {
	enum bpf_map_type type;
	unsigned int key_size, value_size, max_entries, map_flags;
	unsigned int zero, gid, mode;
	unsigned int bpfloader_min_ver, bpfloader_max_ver;
	unsigned int min_kver, max_kver;
	char selinux_context[32], pin_subdir[32];
	bool shared;
	unsigned char ignored_on;
	char pad[2];
	unsigned int uid;
};
_Static_assert(sizeof(struct bpf_map_def) == 120, "struct bpf_map_def");

struct bpf_prog_def {
	unsigned int uid, gid;
	unsigned int min_kver, max_kver;
	bool optional;
	unsigned char ignored_on;
	char pad[2];
	unsigned int bpfloader_min_ver, bpfloader_max_ver;
	char selinux_context[32], pin_subdir[32];
};
_Static_assert(sizeof(struct bpf_prog_def) == 92, "struct bpf_prog_def");

static void *(*bpf_map_lookup_elem_unsafe)(const struct bpf_map_def *map, const void *key) =
	(void *)BPF_FUNC_map_lookup_elem;

/* The loader takes the types of key and value from the BTF of this struct, by its name. */
#define DEFINE_BPF_MAP_GRW(the_map, TYPE, KeyType, ValueType, num_entries, grp)                 \
	const struct bpf_map_def SECTION("maps") the_map = {                                    \
		.type = BPF_MAP_TYPE_##TYPE,                                                    \
		.key_size = sizeof(KeyType),                                                    \
		.value_size = sizeof(ValueType),                                                \
		.max_entries = (num_entries),                                                   \
		.gid = (grp),                                                                   \
		.mode = 0660,                                                                   \
		.bpfloader_min_ver = BPFLOADER_MIN_VER,                                         \
		.bpfloader_max_ver = BPFLOADER_MAX_VER,                                         \
		.min_kver = KVER_NONE.kver,                                                     \
		.max_kver = KVER_INF.kver,                                                      \
	};                                                                                      \
	struct ____btf_map_##the_map {                                                          \
		KeyType key;                                                                    \
		ValueType value;                                                                \
	};                                                                                      \
	struct ____btf_map_##the_map SECTION(".maps." #the_map) ____btf_map_##the_map = {};     \
	static inline __attribute__((always_inline, unused)) ValueType                          \
		*bpf_##the_map##_lookup_elem(const KeyType *key)                                \
	{                                                                                       \
		return bpf_map_lookup_elem_unsafe(&the_map, key);                               \
	}

#define DEFINE_BPF_PROG_OPT(name, prog_uid, prog_gid, the_prog, min_kv, opt)                    \
	const struct bpf_prog_def SECTION("progs") the_prog##_def = {                           \
		.uid = (prog_uid),                                                              \
		.gid = (prog_gid),                                                              \
		.min_kver = (min_kv).kver,                                                      \
		.max_kver = KVER_INF.kver,                                                      \
		.optional = (opt).optional,                                                     \
		.bpfloader_min_ver = BPFLOADER_MIN_VER,                                         \
		.bpfloader_max_ver = BPFLOADER_MAX_VER,                                         \
	};                                                                                      \
	SECTION(name) int the_prog

#define DEFINE_BPF_PROG_KVER(name, prog_uid, prog_gid, the_prog, min_kv) \
	DEFINE_BPF_PROG_OPT(name, prog_uid, prog_gid, the_prog, min_kv, MANDATORY)
#define DEFINE_OPTIONAL_BPF_PROG_KVER(name, prog_uid, prog_gid, the_prog, min_kv) \
	DEFINE_BPF_PROG_OPT(name, prog_uid, prog_gid, the_prog, min_kv, OPTIONAL)
