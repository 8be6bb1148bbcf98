# shellcheck shell=dash
# SPDX-License-Identifier: Apache-2.0
# What is tried on a Debian 12 that has systemd as process 1, on platd's network: our package is
# installed, and nobody asks for a CLAT.
# shellcheck source=tests/tests/vm/lib.sh
. /lib.sh
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin

SERVER=198.51.100.1
udevadm settle
LINK=$(basename /sys/class/net/e*)

install() { apt-get install -y --no-install-recommends "/debs/clat_$1.deb"; }
pinged() { ping -c 1 -W 2 $SERVER; }
controller() { systemctl show --property MainPID --value clat.service; }
address() { clatctl status --json | grep -o '"v6":"[^"]*"'; }
no_clat() {
	is_not says v4- ip -o link && is_not pgrep -f '^clatd-' &&
		is_not says 192.0.0. ip -4 route && is_not says blackhole ip -6 route show table local &&
		is_not says clatd tc filter show dev "$LINK" ingress
}
nothing_left() {
	no_clat && is_not pgrep clat_controller && is_not test -e /run/clat &&
		is_not test -e /usr/sbin/clat_controller &&
		is_not says clat ls /sys/fs/bpf && is_not systemctl cat clat.service
}
# A download of zeros under which something happens. The server has the pace: told a rate, curl 7.88
# takes what is there, up to a hundred times as much, and then takes nothing for as long.
begin_download() {
	curl -sSN -o /tmp/got "http://$SERVER/slowly" &
	download=$!
	within test -s /tmp/got
}
more_than() { test "$(stat -c %s /tmp/got)" -gt "$1"; }
goes_on() { kill -0 $download && within more_than "$(stat -c %s /tmp/got)"; }
whole() { kill $download && test "$(tr -d '\0' </tmp/got | wc -c)" = 0; }
killed() {
	before=$(controller)
	kill -9 "$before"
	within another_than "$before"
}
another_than() { systemctl --quiet is-active clat.service && test "$(controller)" != "$1"; }
upgraded() {
	before=$(controller)
	install 9.9.9 && another_than "$before"
}

# Nobody manages the link, which is as the kernel has them, and the CLAT goes; then somebody does.
managed_by() {
	systemctl stop systemd-networkd.socket systemd-networkd.service NetworkManager.service
	ip link set "$LINK" down addrgenmode eui64
	ip -6 addr flush dev "$LINK"
	sysctl -q "net.ipv6.conf.$LINK.accept_ra=1"
	within no_clat && ip link set "$LINK" up && "$@" && within pinged
}

try "systemd" says running systemctl is-system-running --wait
try "install" install 0
try "the service is enabled" systemctl is-enabled clat.service
try "the service runs" systemctl is-active clat.service
try "its exposure is at most 3.0" systemd-analyze security --threshold=30 clat.service
try "nothing lacks" clatctl doctor
try "the manual" test -e /usr/share/man/man1/clatctl.1.gz
try "no network, no CLAT" no_clat

try "systemd-networkd" managed_by systemctl start systemd-networkd.service
try "status" says "$LINK" clatctl status
try "translated in the kernel" says '"offloaded":true' clatctl status --json
begin_download
try "upgrade" upgraded
try "a download goes on over an upgrade" goes_on
try "kill -9" killed
try "a download goes on over a crash" goes_on
try "restart" systemctl restart clat.service
try "a download goes on over a restart" goes_on
try "reload" systemctl reload clat.service
try "the download is whole" whole
ADDRESS=$(address)
try "stop" systemctl stop clat.service
try "a stop ends the CLAT" no_clat
try "start" systemctl start clat.service
try "the CLAT is back" within pinged
try "with its address" test "$(address)" = "$ADDRESS"

try "NetworkManager" managed_by systemctl start NetworkManager.service
try "dhcpcd" managed_by dhcpcd -q "$LINK"
dhcpcd -x "$LINK"
printf 'iface %s inet6 auto\n' "$LINK" >>/etc/network/interfaces
try "ifupdown" managed_by ifup "$LINK"

try "remove" apt-get remove -y clat
try "nothing left" nothing_left
try "the configuration is left" test -e /etc/clat/clat.toml
try "purge" apt-get purge -y clat
try "no configuration left" is_not test -e /etc/clat
try "no secret left" is_not test -e /var/lib/clat
journalctl --no-pager -o short-monotonic -u clat
