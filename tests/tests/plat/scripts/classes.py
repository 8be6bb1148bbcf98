# SPDX-License-Identifier: Apache-2.0
import socket, sys
for server in sys.argv[1:]:
    v6 = ':' in server
    family = socket.AF_INET6 if v6 else socket.AF_INET
    level, option = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if v6 else (socket.IPPROTO_IP, socket.IP_TOS)
    u = socket.socket(family, socket.SOCK_DGRAM)
    # DSCP and ECN differ between datagrams of one flow.
    for value in (0xb9, 0x02) if v6 else (0xba, 0x03):
        u.setsockopt(level, option, value)
        u.sendto(b'x', (server, 80)); u.settimeout(10); u.recv(9)
    c = socket.socket(family, socket.SOCK_STREAM); c.settimeout(10)
    c.setsockopt(level, option, 0x28 if v6 else 0x48)
    c.connect((server, 81)); c.sendall(b'x'); assert c.recv(1) == b'x'
    c.setsockopt(level, option, 0x68 if v6 else 0x88)
    c.sendall(b'y'); assert c.recv(1) == b'y'
