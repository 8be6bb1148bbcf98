# shellcheck shell=sh
# SPDX-License-Identifier: Apache-2.0
# as_anybody.sh DIR ARGS...: runs DIR/platd ARGS as an unprivileged user, with /dev/net/tun open to
# everybody, as on an ordinary system.
dir=$1
shift
[ -e "$dir/tun" ] || {
	mknod "$dir/tun.new" c 10 200 && chmod 666 "$dir/tun.new" && mv "$dir/tun.new" "$dir/tun"
}
mount --bind "$dir/tun" /dev/net/tun &&
	exec setpriv --reuid 65534 --regid 65534 --clear-groups "$dir/platd" "$@"
