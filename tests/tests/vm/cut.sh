# shellcheck shell=dash
# SPDX-License-Identifier: Apache-2.0
# A virtual machine on platd's network that is switched off in the middle of a download.
# shellcheck source=tests/tests/vm/lib.sh
. /lib.sh

configured() { says "2001:db8:464:" ip -6 addr show dev eth0 scope global -tentative; }

ip link set eth0 up
try "an address by router advertisement" within configured
curl -sS "http://[64:ff9b::198.51.100.1]/endless" >/tmp/endless &
downloading() { [ "$(stat -c %s /tmp/endless)" -gt 100000 ]; }
try "a download under way" within downloading
# The test switches the machine off here.
wait
