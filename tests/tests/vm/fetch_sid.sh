#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Unpacks Debian sid's libgbinder and its dependencies into this directory.
set -e
root=$PWD
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] http://deb.debian.org/debian sid main" >sources.list
# With a separate apt state, so that sid does not affect this machine's packages. A mirror's Release
# file may have expired.
apt=(-q -o APT::Sandbox::User=root -o Dir::Etc::sourcelist="$root/sources.list"
	-o Dir::Etc::sourceparts=- -o Dir::State="$root/state" -o Dir::State::status="$root/status"
	-o Dir::Cache="$root/cache" -o Acquire::Check-Valid-Until=false)
mkdir -p state/lists/partial cache/archives/partial
: >status
apt-get "${apt[@]}" update
apt-get "${apt[@]}" install -y --download-only --no-install-recommends libgbinder1
cd cache/archives
apt-get "${apt[@]}" download libgbinder-dev libglibutil-dev
cd "$root"
mkdir usr
for top in bin lib lib64 sbin; do ln -s "usr/$top" "$top"; done
for package in cache/archives/*.deb; do
	dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink
done
rm -r cache state
mkdir -p etc
# The service manager's interface of Android 16; look-ups fail without.
printf '[General]\nApiLevel=36\n' >etc/gbinder.conf
