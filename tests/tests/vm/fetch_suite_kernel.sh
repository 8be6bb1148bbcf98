#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# fetch_suite_kernel.sh SUITE: unpacks the stock kernel of another suite of Debian's into this
# folder.
set -e
root=$PWD
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] http://deb.debian.org/debian $1 main" >sources.list
# An apt of its own: nothing of the suite gets near this machine's packages. The Release file of one
# that is no longer looked after has expired.
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
# Where modules are since Debian 13.
[ -e lib ] || ln -s usr/lib lib
rm -r "$package"_*.deb cache state status sources.list
depmod -b . "${package#linux-image-}"
