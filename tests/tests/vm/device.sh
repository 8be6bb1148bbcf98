# shellcheck shell=dash
# SPDX-License-Identifier: Apache-2.0
# The tries on the virtual device.
# shellcheck source=tests/tests/vm/lib.sh
. /lib.sh

PREFIX=64:ff9b::/96
SERVER=198.51.100.1
export RUST_BACKTRACE=0

clatd_pid() { clatctl status --json | sed -n 's/.*"clats":\[{[^}]*"pid":\([0-9]*\).*/\1/p'; }

# Parts of a CLAT, of which nothing may be left.
nothing_left() {
	is_not ip link show v4-up0 && is_not pgrep -f '^clatd-' &&
		is_not says blackhole ip -6 route show table local &&
		is_not says clatd tc filter show dev up0 ingress && is_not says default ip -4 route
}

start_controller() {
	clat_controller >>/tmp/controller.log 2>&1 &
	controller=$!
}

registered() { rsb_service check clatd_controller; }
answers() { clatctl --binder status; }

echo "=== $(uname -r)"
rsb_hub --insecure-allow-all >/tmp/hub.log 2>&1 &
try "a service manager" within rsb_service list

# An uplink to a network that has the server's address in its IPv6 form.
ip netns add net
ip link add up0 type veth peer name net0 netns net
ip netns exec net sh -ec 'ip link set lo up; ip link set net0 up
	ip addr add 2001:db8:1::1/64 dev net0 nodad
	ip addr add 64:ff9b::c633:6401/128 dev lo'
ip link set up0 up
ip addr add 2001:db8:1::2/64 dev up0 nodad
ip -6 route add default via 2001:db8:1::1 dev up0

# No transport is given: there is a service manager.
start_controller
try "registers with it" within registered
try "not on a socket" is_not test -e /run/clat/controller.sock
try "start" says 2001:db8:1: clatctl start up0 --prefix $PREFIX
try "ping through the CLAT" ping -c 3 -i 0.2 -W 10 $SERVER
try "drop rule" says "blackhole 2001:db8:1:" ip -6 route show table local
try "egress program" says prog_clatd_schedcls_egress_clat_rawip tc filter show dev v4-up0 egress
try "ingress program" says prog_clatd_schedcls_ingress_clat_ether tc filter show dev up0 ingress
try "status" says '"v4iface":"v4-up0"' clatctl status --json
try "translated in the kernel" says '"offloaded":true' clatctl status --json
try "counted in the kernel" is_not says "eBPF egress 0 packets" clatctl dump
try "dump" says "[v4-up0] [0xf" clatctl dump
try "dump by its transaction" says "[v4-up0] [0xf" rsb_service dump clatd_controller
try "dump as JSON by its transaction" says '"v4iface":"v4-up0"' \
	rsb_service dump clatd_controller --json
try "EBUSY" says "(EBUSY)" clatctl start up0 --prefix $PREFIX

as() {
	uid=$1
	shift
	setpriv --reuid "$uid" --regid "$uid" --clear-groups "$@"
}
try "status refused to uid 10123" says "uid 10123 may not use" as 10123 clatctl status
try "start refused to uid 10123" says "uid 10123 may not use" \
	as 10123 clatctl start up1 --prefix $PREFIX
try "stop refused to uid 10123" says "uid 10123 may not use" as 10123 clatctl stop up0
try "events refused to uid 10123" says "uid 10123 may not use" as 10123 clatctl events
try "dump refused to uid 10123" says "Permission Denial" as 10123 rsb_service dump clatd_controller
try "still there" ping -c 1 -W 10 $SERVER
try "status for uid 1000" as 1000 clatctl status
try "status for uid 1073" as 1073 clatctl status

clatctl events --json >/tmp/events 2>&1 &
events=$!
try "listens" within says "listeners: 1" clatctl dump
pid=$(clatd_pid)
kill -9 "$pid"
try "restart is told" within says '"event":"restarted"' cat /tmp/events
try "ping after a restart" within ping -c 1 -W 2 $SERVER
kill -9 $events
try "a listener that died is dropped" within says "listeners: 0" clatctl dump
try "stop" clatctl stop up0
try "nothing left after stop" nothing_left
try "ENODEV" says "(ENODEV)" clatctl stop up0

mkdir -p /sid/dev
mount --bind /dev /sid/dev
foreign() { chroot /sid /usr/bin/foreign "$@"; }
try "libgbinder: start" says 2001:db8:1: foreign start up0 $PREFIX
try "libgbinder: ping" ping -c 1 -W 10 $SERVER
try "libgbinder: EBUSY" says "exception -8 code 16: up0: cannot start a CLAT" \
	foreign start up0 $PREFIX
try "libgbinder: dump" says "[v4-up0] [0xf" foreign dump
try "libgbinder: dump as JSON" says '"v4iface":"v4-up0"' foreign dump --json
try "libgbinder: stop" foreign stop up0
try "libgbinder: nothing left" nothing_left

clatctl start up0 --prefix $PREFIX >/dev/null
kill -9 $controller
wait $controller 2>/dev/null
try "a killed controller leaves things" is_not nothing_left
try "and is not reachable" is_not clatctl --binder status
start_controller
try "a new one registers" within answers
try "and cleans up" nothing_left
try "start after that" says 2001:db8:1: clatctl start up0 --prefix $PREFIX
try "ping after that" ping -c 1 -W 10 $SERVER
kill $controller
wait $controller
try "SIGTERM ends it cleanly" test $? = 0
try "nothing left at the end" nothing_left
cat /tmp/controller.log

ip link del up0
# The same over RPC binder. Only one controller at a time can have the name.
export CLAT_TEST_TRANSPORT=binder CLAT_TEST_PROGRAM=/usr/local/bin/clat_controller CI=true
try "the contract over kernel binder" service --test-threads 1 --skip socket::
grep "^test result" /tmp/said
# Compares the programs in this kernel with the translator.
export CLAT_BPF_OBJECTS=/
try "the rulebook" rulebook --show-output
grep -E "^(test result|verified)" /tmp/said
