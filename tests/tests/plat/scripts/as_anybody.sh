# shellcheck shell=sh
# SPDX-License-Identifier: Apache-2.0
# as_anybody.sh FOLDER ARGS...: platd ARGS of that folder by a user that owns nothing, as they are
# anywhere: with a /dev/net/tun for everybody.
dir=$1
shift
[ -e "$dir/tun" ] || {
	mknod "$dir/tun.new" c 10 200 && chmod 666 "$dir/tun.new" && mv "$dir/tun.new" "$dir/tun"
}
mount --bind "$dir/tun" /dev/net/tun &&
	exec setpriv --reuid 65534 --regid 65534 --clear-groups "$dir/platd" "$@"
