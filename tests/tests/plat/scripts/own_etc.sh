# shellcheck shell=sh
# SPDX-License-Identifier: Apache-2.0
# own_etc.sh NAMESERVER COMMAND...: the command where /etc has a resolv.conf with this name server,
# and nothing else.
mount -t tmpfs none /etc && echo "nameserver $1" > /etc/resolv.conf && shift && exec "$@"
