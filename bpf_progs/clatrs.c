// SPDX-License-Identifier: Apache-2.0
/*
 * The same programs for Android's network loader, which pins maps and programs under this file's
 * name: /sys/fs/bpf/net_shared/{map,prog}_clatrs_*. AOSP's own clatd.o remains installed.
 */
#define CLAT_SOONG
#define CLAT_COUNT_IN_ENTRY
#include "clatd.c"
