# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=dash
# Compares the programs in this kernel with the translator.
# shellcheck source=tests/tests/vm/lib.sh
. /lib.sh

echo "=== $(uname -r)"
export CI=true RUST_BACKTRACE=0 CLAT_BPF_OBJECTS=/
try "the rulebook" rulebook --show-output
grep -E "^(test|verified) " /tmp/said
