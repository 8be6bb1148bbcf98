# shellcheck shell=dash
# SPDX-License-Identifier: Apache-2.0
# The tries of a virtual machine on platd's network: by IPv6 alone, then with our CLAT.
# shellcheck source=tests/tests/vm/lib.sh
. /lib.sh

PREFIX=64:ff9b::/96
SERVER=198.51.100.1
SERVER6=64:ff9b::$SERVER
DNS=2001:db8:464::53
SUM=$(cat /sum)

configured() { says "2001:db8:464:" ip -6 addr show dev eth0 scope global -tentative; }
download() {
	curl -sS --max-time 120 "http://$1/megabyte" | sha256sum >/tmp/sum && says "$SUM" cat /tmp/sum
}
fetches() { says "Hello" curl -sS --max-time 30 "$1"; }
nothing_left() {
	is_not ip link show v4-eth0 && is_not pgrep -f '^clatd-' &&
		is_not says blackhole ip -6 route show table local &&
		is_not says clatd tc filter show dev eth0 ingress && is_not says default ip -4 route
}

# Both directions, packet by packet. (The module may already have created ifb0.)
impaired_link() {
	ethtool -K eth0 gso off gro off tso off
	netem="netem delay 10ms 5ms reorder 20% 50% loss 3%"
	# shellcheck disable=SC2086 # words
	ip link add down0 type ifb && ip link set down0 up && tc qdisc add dev eth0 clsact &&
		tc filter add dev eth0 ingress matchall action mirred egress redirect dev down0 &&
		tc qdisc add dev down0 root $netem && tc qdisc add dev eth0 root $netem
}
sound_link() {
	tc qdisc del dev eth0 root && tc qdisc del dev eth0 clsact && ip link del down0 &&
		ethtool -K eth0 gso on gro on
}
# The device counts it: netem has dropped some.
lost() { tc -s qdisc show dev "$1" | tee /tmp/lost | grep -A1 netem | grep -q 'dropped [1-9]'; }

ip link set eth0 up
try "an address by router advertisement" within configured
try "a default route" says "via fe80::1 dev eth0 proto ra" ip -6 route show default
try "the MTU" says 1400 cat /proc/sys/net/ipv6/conf/eth0/mtu
try "the DNS server is advertised" says "$DNS" rdisc6 -1 eth0
echo "nameserver $DNS" >/etc/resolv.conf

try "ping by IPv6" ping -c 2 -i 0.2 -W 10 $SERVER6
try "curl by IPv6" fetches "http://[$SERVER6]/"
try "DNS64" says 64:ff9b::c633:6401 dig +short +time=10 AAAA web.example
try "the prefix by RFC 7050" says 64:ff9b::c000:aa dig +short +time=10 AAAA ipv4only.arpa
try "curl by a name" fetches "http://web.example/"
try "1 MB by IPv6" download "[$SERVER6]"
try "a bad link" impaired_link
try "1 MB by a bad link" download "[$SERVER6]"
try "1 MB up by a bad link" says 1000000 curl -sS --max-time 120 -T /megabyte "http://[$SERVER6]/"
try "lost on the way up" lost eth0
try "lost on the way down" lost down0
try "a good link" sound_link
try "no IPv4" is_not ping -c 1 -W 2 $SERVER
try "no IPv4 by curl" is_not curl -sS --max-time 5 http://$SERVER/

clat_controller --socket /run/clat.sock >/tmp/controller.log 2>&1 &
controller=$!
clatctl() { command clatctl --socket /run/clat.sock "$@"; }
try "a controller" within clatctl status
try "start" says 2001:db8:464: clatctl start eth0 --prefix $PREFIX
try "ping by IPv4" ping -c 2 -i 0.2 -W 10 $SERVER
try "curl by IPv4" fetches "http://$SERVER/"
try "curl by a name and IPv4" says Hello curl -4 -sS --max-time 30 http://web.example/
try "1 MB by IPv4" download $SERVER
try "1 MB up by IPv4" says 1000000 curl -sS --max-time 120 -T /megabyte http://$SERVER/
try "ping of 4000 bytes" ping -c 1 -W 10 -s 4000 $SERVER
try "UDP by IPv4" says 198.51.100.1 dig +short +time=10 "@198.51.100.53" web.example
try "translated in the kernel" says '"offloaded":true' clatctl status --json
try "counted in the kernel" is_not says "eBPF egress 0 packets" clatctl dump
try "stop" clatctl stop eth0
kill $controller
wait $controller
try "SIGTERM ends the controller" test $? = 0
try "nothing left" nothing_left
try "no IPv4 any more" is_not ping -c 1 -W 2 $SERVER
