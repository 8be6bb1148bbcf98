// SPDX-License-Identifier: Apache-2.0
/*
 * The same programs for Android's network loader, which names what it pins after this file:
 * /sys/fs/bpf/net_shared/{map,prog}_clatrs_*. AOSP's own clatd.o stays beside it.
 */
#define CLAT_SOONG
#include "clatd.c"
