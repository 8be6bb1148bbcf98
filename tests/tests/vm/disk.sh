#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# First process of a machine with a disk: copies the test's files there and starts its init.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox --install -s 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do
	# shellcheck disable=SC2086 # with its parameters
	insmod $module || echo "no module $module"
done </modules
mount -t ext4 /dev/vda /root
cp -a /brought/. /root/
exec switch_root /root /sbin/init
