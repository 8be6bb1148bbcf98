#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Unpacks Debian sid's libgbinder, and all that it needs, into this folder.
set -e
root=$PWD
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] http://deb.debian.org/debian sid main" >sources.list
# An apt of its own: nothing of sid gets near this machine's packages. A mirror may keep a Release
# file for longer than it is valid.
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
