#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# fetch_kernel.sh PACKAGE RELEASE: unpacks a kernel of Debian's into this folder.
set -e
package=$1
# An index of yesterday may name what the mirror no longer has.
apt-get download -q "$package" || {
	apt-get update -qq
	apt-get download -q "$package"
}
dpkg-deb -x "$package"_*.deb .
rm "$package"_*.deb
depmod -b . "$2"
