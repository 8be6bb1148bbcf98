#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# fetch_suite_kernel.sh SUITE: unpacks the stock kernel of another Debian suite into this directory.
set -e
root=$PWD
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] http://deb.debian.org/debian $1 main" >sources.list
# With a separate apt state, so that the suite does not affect this machine's packages. The Release
# file of an old suite has expired.
apt=(-q -o APT::Sandbox::User=root -o Dir::Etc::sourcelist="$root/sources.list"
	-o Dir::Etc::sourceparts=- -o Dir::State="$root/state" -o Dir::State::status="$root/status"
	-o Dir::Cache="$root/cache" -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none)
mkdir -p state/lists/partial cache/archives/partial
: >status
apt-get "${apt[@]}" update
package=$(apt-cache "${apt[@]}" depends linux-image-amd64 |
	sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
apt-get "${apt[@]}" download "$package"
dpkg-deb -x "$package"_*.deb .
# Debian 13 and newer have modules there.
[ -e lib ] || ln -s usr/lib lib
rm -r "$package"_*.deb cache state status sources.list
depmod -b . "${package#linux-image-}"
