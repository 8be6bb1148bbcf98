/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The natives of com.android.server.connectivity.ClatCoordinator without Java: AOSP's own
 * registration (service/jni/com_android_server_connectivity_ClatCoordinator.cpp) converts the
 * arguments, calls one of these, and throws the exception in *error. Messages are AOSP's.
 *
 * Text is UTF-8 with terminator. Descriptors are borrowed; the caller closes one that is returned.
 * Any thread may call these functions. On failure each returns a negative number and fills *error,
 * which may be null.
 */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The exception to throw. */
enum clat_exception {
	CLAT_IO_EXCEPTION = 1,               /* java.io.IOException */
	CLAT_ILLEGAL_ARGUMENT_EXCEPTION = 2, /* java.lang.IllegalArgumentException */
	CLAT_NULL_POINTER_EXCEPTION = 3,     /* java.lang.NullPointerException; thrown already */
};

struct clat_error {
	int32_t exception; /* enum clat_exception */
	char message[256]; /* cut at a character boundary if longer */
};

/* Room for an address as text: INET_ADDRSTRLEN, INET6_ADDRSTRLEN. */
#define CLAT_V4_TEXT 16
#define CLAT_V6_TEXT 46

/* Makes the library log with the tag "jniClatCoordinator". Does nothing off Android. */
void clat_init_log(void);

/* The first address from v4addr on, wrapping inside its prefix, that no interface has: 0. */
int clat_select_ipv4_address(const char *v4addr, int prefixlen, char address[CLAT_V4_TEXT],
			     struct clat_error *error);

/* The IPv6 address of a CLAT on iface, checksum-neutral with v4 and the NAT64 prefix: 0. */
int clat_generate_ipv6_address(const char *iface, const char *v4, const char *prefix64,
			       uint32_t mark, char address[CLAT_V6_TEXT],
			       struct clat_error *error);

/* Creates a TUN device, which must not exist: its descriptor, non-blocking. */
int clat_create_tun_interface(const char *name, struct clat_error *error);

/* The path MTU to the IPv4 address plat_suffix (8.8.8.8 is 0x08080808) in the prefix, in bytes. */
int clat_detect_mtu(const char *plat_subnet, uint32_t plat_suffix, uint32_t mark,
		    struct clat_error *error);

/* A packet socket that receives nothing until it is configured: its descriptor. */
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

/* Ends a clatd that clat_start_clatd has started, and reaps it: 0, also if it had ended. */
int clat_stop_clatd(int pid, struct clat_error *error);

/* Stores the kernel's unique number of a socket (SO_COOKIE) in *cookie: 0. */
int clat_get_socket_cookie(int sock, uint64_t *cookie, struct clat_error *error);

#ifdef __cplusplus
}
#endif
