/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the natives of com.android.server.connectivity.ClatCoordinator do, without Java: AOSP's own
 * registration (service/jni/com_android_server_connectivity_ClatCoordinator.cpp) fetches arguments,
 * calls one of these, and throws what it left in *error. Messages are AOSP's, word for word.
 *
 * Text is UTF-8 with its terminator. Descriptors stay their caller's; one that is returned is the
 * caller's to close. Each function may be called by any thread. Each returns a negative number
 * where it failed, and has filled *error then; error may be null.
 */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What Java throws. */
enum clat_exception {
	CLAT_IO_EXCEPTION = 1,               /* java.io.IOException */
	CLAT_ILLEGAL_ARGUMENT_EXCEPTION = 2, /* java.lang.IllegalArgumentException */
	CLAT_NULL_POINTER_EXCEPTION = 3,     /* java.lang.NullPointerException; thrown already */
};

struct clat_error {
	int32_t exception; /* enum clat_exception */
	char message[256]; /* cut at a character's end where it is longer */
};

/* Room for an address as text: INET_ADDRSTRLEN, INET6_ADDRSTRLEN. */
#define CLAT_V4_TEXT 16
#define CLAT_V6_TEXT 46

/* Have the library log under the tag "jniClatCoordinator". Off Android it does nothing. */
void clat_init_log(void);

/* The first address from v4addr on, wrapping inside its prefix, that no interface has: 0. */
int clat_select_ipv4_address(const char *v4addr, int prefixlen, char address[CLAT_V4_TEXT],
			     struct clat_error *error);

/* The IPv6 address of a CLAT on iface, checksum-neutral with v4 and the NAT64 prefix: 0. */
int clat_generate_ipv6_address(const char *iface, const char *v4, const char *prefix64,
			       uint32_t mark, char address[CLAT_V6_TEXT],
			       struct clat_error *error);

/* A TUN device that did not exist: its descriptor, non-blocking. */
int clat_create_tun_interface(const char *name, struct clat_error *error);

/* The MTU of the path to the IPv4 address plat_suffix (8.8.8.8 is 0x08080808) behind the prefix. */
int clat_detect_mtu(const char *plat_subnet, uint32_t plat_suffix, uint32_t mark,
		    struct clat_error *error);

/* A packet socket that hears nothing before it is configured: its descriptor. */
int clat_open_packet_socket(struct clat_error *error);

/* A raw IPv6 socket with the mark: its descriptor. */
int clat_open_raw_socket6(uint32_t mark, struct clat_error *error);

/* Makes v6 an anycast address of the interface for as long as the socket is open: 0. */
int clat_add_anycast(int sock, const char *v6, uint32_t ifindex, struct clat_error *error);

/* Binds a packet socket to the interface, for packets to v6 and no others: 0. */
int clat_configure_packet_socket(int sock, const char *v6, uint32_t ifindex,
				 struct clat_error *error);

/* Starts clatd with copies of three descriptors: its process id. */
int clat_start_clatd(int tun, int read_sock, int write_sock, const char *iface, const char *pfx96,
		     const char *v4, const char *v6, struct clat_error *error);

/* Ends a clatd that clat_start_clatd has started, and reaps it: 0, also where it had ended. */
int clat_stop_clatd(int pid, struct clat_error *error);

/* The kernel's number of a socket, in *cookie: 0. */
int clat_get_socket_cookie(int sock, uint64_t *cookie, struct clat_error *error);

#ifdef __cplusplus
}
#endif
