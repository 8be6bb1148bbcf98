#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs the NetworkManager of a root in this network namespace, on up0, and again when it dies, as
# systemd does: networkmanager.sh ROOT [IPV6-ADDRESS]. The root stays as it is.
set -e
if [ -z "${MOUNTED:-}" ]; then
	MOUNTED=1 exec unshare --mount "$0" "$@"
fi
root=$1
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
# NetworkManager waits for udev where it may write here.
mount -t sysfs -o ro sysfs "$root/sys"
mount --rbind /dev "$root/dev"
for folder in run etc/NetworkManager var/lib/NetworkManager; do
	mount -t tmpfs tmpfs "$root/$folder"
done
mkdir -p "$root/run/dbus" "$root/etc/NetworkManager/system-connections"
cat >"$root/etc/NetworkManager/NetworkManager.conf" <<-END
	[main]
	plugins=keyfile
	dns=none
	rc-manager=unmanaged
	no-auto-default=*
	[device]
	match-device=interface-name:up0
	managed=1
END
profile=$root/etc/NetworkManager/system-connections/up0.nmconnection
cat >"$profile" <<-END
	[connection]
	id=up0
	type=ethernet
	interface-name=up0
	[ipv4]
	method=auto
	clat=1
	[ipv6]
	method=auto
	addr-gen-mode=eui64
	${2:+address1=$2}
END
chmod 600 "$profile"
chroot "$root" dbus-daemon --system --fork --nopidfile
until chroot "$root" NetworkManager --debug; do sleep 0.1; done
