/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starts and stops a CLAT by the C ABI, as ClatCoordinator does it, in a network namespace of the
 * lab; then what fails.
 */
#include <clat_natives.h>

#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PREFIX "2001:db8:64::"

static struct clat_error error;

#define CHECK(is_so)                                                                     \
	do {                                                                             \
		if (!(is_so)) {                                                          \
			fprintf(stderr, "line %d: not so: %s (%s)\n", __LINE__, #is_so, \
				error.message);                                          \
			exit(1);                                                         \
		}                                                                        \
	} while (0)

/* The last call failed with this. */
#define FAILED(call, kind, text)                                               \
	do {                                                                   \
		memset(&error, 0, sizeof(error));                              \
		CHECK((call) < 0);                                             \
		CHECK(error.exception == kind && !strcmp(error.message, text)); \
	} while (0)

static void run(const char *command)
{
	if (system(command)) {
		fprintf(stderr, "%s\n", command);
		exit(1);
	}
}

int main(void)
{
	const uint32_t mark = 0xf0064, index = if_nametoindex("up0");
	char v4[CLAT_V4_TEXT], v6[CLAT_V6_TEXT], line[256];
	uint64_t cookie = 0;

	clat_init_log();
	CHECK(clat_select_ipv4_address("192.0.0.4", 29, v4, &error) == 0 && !strcmp(v4, "192.0.0.4"));
	CHECK(clat_generate_ipv6_address("up0", v4, PREFIX, mark, v6, &error) == 0);
	CHECK(!strncmp(v6, "2001:db8:1:", 11));
	const int read_sock = clat_open_packet_socket(&error);
	const int write_sock = clat_open_raw_socket6(mark, &error);
	CHECK(read_sock >= 0 && write_sock >= 0);
	CHECK(clat_add_anycast(write_sock, v6, index, &error) == 0);
	CHECK(clat_configure_packet_socket(read_sock, v6, index, &error) == 0);
	CHECK(clat_get_socket_cookie(write_sock, &cookie, &error) == 0 && cookie != 0);
	const int tun = clat_create_tun_interface("v4-up0", &error);
	CHECK(tun >= 0);
	CHECK(clat_detect_mtu(PREFIX, 0x08080808, mark, &error) == 1500);

	/* netd's part. */
	snprintf(line, sizeof(line), "ip addr add %s/32 dev v4-up0", v4);
	run("ip link set v4-up0 mtu 1472 up");
	run(line);
	run("ip route add default dev v4-up0");
	snprintf(line, sizeof(line), "ip6tables -w -t raw -A PREROUTING -i up0 -d %s -j DROP", v6);
	run(line);

	const int pid = clat_start_clatd(tun, read_sock, write_sock, "up0", PREFIX, v4, v6, &error);
	CHECK(pid > 0 && kill(pid, 0) == 0);
	run("ping -q -n -c 3 -i 0.2 -W 5 192.0.2.1 >/dev/null");
	CHECK(clat_stop_clatd(pid, &error) == 0);
	CHECK(kill(pid, 0) != 0);
	CHECK(clat_stop_clatd(pid, &error) == 0);

	/* AOSP's messages, and what C can do that Java cannot. */
	FAILED(clat_stop_clatd(0, &error), CLAT_ILLEGAL_ARGUMENT_EXCEPTION, "Invalid pid");
	FAILED(clat_select_ipv4_address("192.0.0", 29, v4, &error), CLAT_IO_EXCEPTION,
	       "invalid address: Invalid argument");
	FAILED(clat_select_ipv4_address(NULL, 29, v4, &error),
	       CLAT_NULL_POINTER_EXCEPTION, "null argument");
	FAILED(clat_select_ipv4_address("192.0.0.4", 29, NULL, &error),
	       CLAT_NULL_POINTER_EXCEPTION, "null argument");
	FAILED(clat_generate_ipv6_address(NULL, v4, PREFIX, mark, v6, &error), CLAT_IO_EXCEPTION,
	       "Invalid null interface name");
	FAILED(clat_generate_ipv6_address("none0", v4, PREFIX, mark, v6, &error), CLAT_IO_EXCEPTION,
	       "Unable to find global source address on none0 for " PREFIX);
	FAILED(clat_create_tun_interface("v4-up0", &error), CLAT_IO_EXCEPTION,
	       "ioctl(TUNSETIFF) failed (Device or resource busy)");
	FAILED(clat_add_anycast(-1, v6, index, &error), CLAT_IO_EXCEPTION, "Invalid file descriptor");
	FAILED(clat_configure_packet_socket(read_sock, "192.0.0.4", index, &error), CLAT_IO_EXCEPTION,
	       "Invalid IPv6 address 192.0.0.4");
	FAILED(clat_start_clatd(-1, read_sock, write_sock, "up0", PREFIX, v4, v6, &error),
	       CLAT_IO_EXCEPTION,
	       "Invalid tun file descriptor");
	FAILED(clat_get_socket_cookie(tun, &cookie, &error), CLAT_IO_EXCEPTION,
	       "get socket cookie failed: Socket operation on non-socket");
	CHECK(clat_detect_mtu("x", 0, 0, NULL) < 0);
	return 0;
}
