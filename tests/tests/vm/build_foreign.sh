#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# build_foreign.sh SOURCE: compiles a client of libgbinder in a root made by fetch_sid.sh.
set -e
mkdir -p usr/bin
# shellcheck disable=SC2046 # words
gcc -Wall -Werror -o usr/bin/foreign "$1" -Iusr/include -Iusr/include/gbinder -Iusr/include/gutil \
	$(pkg-config --cflags glib-2.0) -L"usr/lib/$(uname -m)-linux-gnu" -lgbinder \
	-Wl,--allow-shlib-undefined
