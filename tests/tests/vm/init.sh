#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# First process of a virtual device.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root /var/run /var/lock /etc/rsbinder
/bin/busybox --install -s 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/net /run/netns /dev/binderfs
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
chmod 1777 /tmp
while read -r module; do
	# shellcheck disable=SC2086 # with its parameters
	insmod $module || echo "no module $module"
done </modules
if [ -e /dev/binder ]; then
	chmod 666 /dev/binder
	ln -s ../binder /dev/binderfs/binder
fi
ip link set lo up
echo 1 >/proc/sys/kernel/printk
sh /script.sh
echo "end" >/dev/ttyS1
poweroff -f
