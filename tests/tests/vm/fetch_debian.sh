#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes disk.ext4 in this directory: Debian 12 with systemd and several network managers.
set -e
root=$PWD/root
# The network managers. NetworkManager's polkitd needs logind.
packages=systemd-sysv,libpam-systemd,dbus,network-manager,dhcpcd-base,ifupdown,isc-dhcp-client
# Programs of the tests, and dependencies of our package.
packages=$packages,iproute2,iputils-ping,curl,procps,libelf1
debootstrap --variant=minbase --include=$packages bookworm "$root" http://deb.debian.org/debian
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
# No network manager is enabled, nor any slow service.
for unit in systemd-networkd.service systemd-networkd.socket NetworkManager.service \
	NetworkManager-wait-online.service networking.service apt-daily.timer apt-daily-upgrade.timer \
	dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer; do
	chroot "$root" systemctl --quiet disable $unit
done
chroot "$root" systemctl --quiet mask serial-getty@ttyS0.service getty@tty1.service
: >"$root/etc/machine-id"
echo "/dev/vda / ext4 defaults 0 0" >"$root/etc/fstab"
mke2fs -q -t ext4 -d "$root" disk.ext4 1500M
rm -rf --one-file-system "$root"
