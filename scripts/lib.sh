# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Messages and installation of dependencies, for ./demo and ./test. Sourced from the root of the
# repository, with `set -o pipefail`.

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

# quietly COMMAND...: shows its output only if it fails; on a terminal, the newest line meanwhile.
quietly() {
	local log width line status=0
	log=$(mktemp)
	if [ -t 1 ]; then
		width=$(tput cols 2>/dev/null || echo 80)
		"$@" 2>&1 </dev/null | tee "$log" | while IFS= read -r line; do
			printf '\r\e[K    %.*s' $((width - 5)) "$line"
		done || status=$?
		printf '\r\e[K'
	else
		"$@" >"$log" 2>&1 </dev/null || status=$?
	fi
	[ "$status" = 0 ] || tail -n 40 "$log" >&2
	rm -f "$log"
	return "$status"
}

# apt_install PACKAGE...: does not remove packages that conflict, except in CI: Debian's QEMU
# conflicts with the tools of a newer QEMU.
apt_install() {
	local options=(--no-remove)
	[ "${CI:-}" != true ] || options=()
	if [ -z "${APT_UPDATED:-}" ]; then
		quietly apt-get update || bad "apt-get update failed; going on with the lists there are"
		APT_UPDATED=1
	fi
	# Services are left alone: only their programs are wanted.
	DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 \
		quietly apt-get install -y --no-install-recommends "${options[@]}" "$@"
}

# need_packages THING=PACKAGE...: installs the Debian packages of missing things, which are programs
# or absolute paths.
need_packages() {
	local pair thing package begin=$SECONDS missing=()
	for pair in "$@"; do
		thing=${pair%%=*} package=${pair#*=}
		[[ " ${missing[*]} " == *" $package "* ]] && continue
		if [[ $thing == /* ]]; then [ -e "$thing" ]; else command -v "$thing" >/dev/null; fi ||
			missing+=("$package")
	done
	[ ${#missing[@]} = 0 ] && return
	command -v apt-get >/dev/null || die "missing, and there is no apt-get here: ${missing[*]}"
	echo "installing by apt, a minute or two: ${missing[*]}"
	apt_install "${missing[@]}" || die "could not install ${missing[*]}"
	for package in "${missing[@]}"; do
		systemctl --quiet disable "$package" 2>/dev/null || true
	done
	echo "installed in $((SECONDS - begin)) s"
}

# The version of the rustc in PATH, if any.
rust_version() { rustc --version 2>/dev/null | cut -d' ' -f2 || true; }

rust_is_new_enough() {
	local version
	version=$(rust_version)
	[ -n "$version" ] && command -v cargo >/dev/null &&
		printf '%s\n%s\n' "$RUST_NEEDED" "$version" | sort -CV
}

# The Debian package of a rustc that is new enough. Debian 12's `rustc` is too old; its `rustc-web`,
# for building browsers, is updated by its security updates.
apt_rustc() {
	local package candidate
	command -v apt-get >/dev/null || return
	for package in rustc rustc-web; do
		candidate=$(apt-cache policy "$package" | sed -n 's/^  Candidate: //p')
		if dpkg --compare-versions "${candidate/(none)/}" ge "$RUST_NEEDED"; then
			echo "$package"
			return
		fi
	done
	return 1
}

# Debian packages for the build.
# shellcheck disable=SC2034 # used by the scripts that source this
BUILD=(cc=gcc ld=binutils /usr/include/stdio.h=libc6-dev clang=clang make=make pkg-config=pkg-config
	/etc/ssl/certs/ca-certificates.crt=ca-certificates /usr/include/bpf/bpf_helpers.h=libbpf-dev
	/usr/include/libelf.h=libelf-dev /usr/include/zlib.h=zlib1g-dev)

# Installs Rust unless it is new enough: by rustup if that is installed, else the distribution's if
# new enough, else rustup.
need_rust() {
	# Before the distribution's in PATH.
	PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
	rust_is_new_enough && return
	local found rustc
	found=$(rust_version)
	echo "needs Rust $RUST_NEEDED or newer, found ${found:-none}"
	if command -v rustup >/dev/null; then
		echo "installing Rust by rustup"
		rustup toolchain install stable --profile default || die "rustup could not install Rust"
		export RUSTUP_TOOLCHAIN=stable
	elif rustc=$(apt_rustc); then
		echo "installing by apt: $rustc ${rustc/rustc/cargo}"
		apt_install "$rustc" "${rustc/rustc/cargo}" || bad "could not install $rustc by apt"
		hash -r
	fi
	rust_is_new_enough && return
	need_packages curl=curl
	echo "installing Rust by rustup"
	curl -sSf https://sh.rustup.rs | sh -s -- -y -q --no-modify-path --profile default ||
		die "could not install Rust; install $RUST_NEEDED or newer by hand, see https://rustup.rs"
	rust_is_new_enough || die "Rust $(rust_version) is what runs, and $RUST_NEEDED is needed"
}

# need_component NAME PROGRAM DEBIAN: installs a tool of Rust from the same source as Rust itself.
need_component() {
	local suffix
	"$2" --version >/dev/null 2>&1 && return
	if command -v rustup >/dev/null; then
		rustup component add "$1"
	else
		suffix=$(dpkg -S "$(command -v rustc)" | sed -n 's/^rustc\(-web\)\{0,1\}:.*/\1/p')
		apt_install "${3/SUFFIX/$suffix}"
	fi
	"$2" --version >/dev/null 2>&1
}

# The packages of the release programs.
PROGRAMS=(-p clatd -p clat_controller -p clatctl -p clat_plat)

# Builds the release programs in target/release.
build_programs() {
	[ -x target/release/platd ] ||
		echo "building, which takes some four minutes on two cores the first time"
	cargo build --release --locked "${PROGRAMS[@]}" --bins
}
