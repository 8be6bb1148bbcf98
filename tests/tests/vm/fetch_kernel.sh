#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# fetch_kernel.sh PACKAGE RELEASE: unpacks a Debian kernel into this directory.
set -e
package=$1
# An old index may name files that the mirror no longer has.
apt-get download -q "$package" || {
	apt-get update -qq
	apt-get download -q "$package"
}
dpkg-deb -x "$package"_*.deb .
rm "$package"_*.deb
depmod -b . "$2"
