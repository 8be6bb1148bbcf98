# shellcheck shell=dash
# SPDX-License-Identifier: Apache-2.0
# For the scripts in a virtual device. Each try writes a line "OK NAME" or "FAILED NAME" to the
# test, on the second serial port.

# try NAME COMMAND...: the command has to succeed.
try() {
	name=$1
	shift
	if "$@" >/tmp/said 2>&1; then
		echo "OK $name" >/dev/ttyS1
	else
		echo "FAILED $name" >/dev/ttyS1
		echo "--- $name: $*"
		cat /tmp/said
	fi
}

# says TEXT COMMAND...: the command's output, whatever its end, has to contain the text.
says() {
	text=$1
	shift
	"$@" >/tmp/output 2>&1
	cat /tmp/output
	grep -qF -- "$text" /tmp/output
}

# within COMMAND...: repeated until it succeeds.
within() {
	for _ in $(seq 300); do
		"$@" && return
		sleep 0.1
	done
	return 1
}

is_not() { ! "$@"; }
