# shellcheck shell=sh
# SPDX-License-Identifier: Apache-2.0
# own_etc.sh NAMESERVER COMMAND...: runs the command with an /etc that has only a resolv.conf with
# this name server.
mount -t tmpfs none /etc && echo "nameserver $1" > /etc/resolv.conf && shift && exec "$@"
