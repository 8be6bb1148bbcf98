# shellcheck shell=bash
# What ./demo and ./test share: messages, and a machine made ready. Sourced from the root of the repository.

# The oldest rustc that the crates under Cargo accept.
RUST_NEEDED=1.86

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
	BOLD=$'\e[1m' RED=$'\e[31m' GREEN=$'\e[32m' PLAIN=$'\e[0m'
else
	BOLD='' RED='' GREEN='' PLAIN=''
fi

heading() { printf '\n%s== %s%s\n' "$BOLD" "$*" "$PLAIN"; }
good() { printf '%s%s%s\n' "$GREEN" "$*" "$PLAIN"; }
bad() { printf '%s%s%s\n' "$RED" "$*" "$PLAIN" >&2; }
die() {
	bad "$(basename "$0"): $*"
	exit 1
}

need_root() {
	[ "$(id -u)" = 0 ] || die "needs root for network namespaces and TUN devices: run it with sudo"
}

# need_packages THING=PACKAGE...: installs the Debian packages of the programs, and of the files by path, that are missing.
need_packages() {
	local pair thing missing=()
	for pair in "$@"; do
		thing=${pair%%=*}
		{ [[ $thing == /* ]] && [ -e "$thing" ]; } || command -v "$thing" >/dev/null || missing+=("${pair#*=}")
	done
	[ ${#missing[@]} = 0 ] && return
	command -v apt-get >/dev/null || die "missing, and there is no apt-get here: ${missing[*]}"
	echo "installing ${missing[*]}"
	{ apt-get update -qq &&
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"; } \
		>/dev/null || die "could not install ${missing[*]}"
}

# What the build needs. Debian 12's own rustc is too old, so where there is none that will do, rustup brings one.
need_rust() {
	# In front of a distribution's older one.
	PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
	need_packages cc=gcc ld=binutils /usr/include/stdio.h=libc6-dev curl=curl \
		/etc/ssl/certs/ca-certificates.crt=ca-certificates clang=clang make=make pkg-config=pkg-config \
		/usr/include/bpf/bpf_helpers.h=libbpf-dev /usr/include/libelf.h=libelf-dev /usr/include/zlib.h=zlib1g-dev
	local version
	version=$(rustc --version 2>/dev/null | cut -d' ' -f2)
	if [ -n "$version" ] && printf '%s\n%s\n' "$RUST_NEEDED" "$version" | sort -CV; then
		return
	fi
	echo "installing Rust with rustup (found ${version:-none}, needs $RUST_NEEDED)"
	curl -sSf https://sh.rustup.rs | sh -s -- -y -q --no-modify-path --profile default ||
		die "could not install Rust; see https://rustup.rs"
}
