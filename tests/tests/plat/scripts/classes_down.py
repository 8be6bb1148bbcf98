# SPDX-License-Identifier: Apache-2.0
"""Asks classes_serve.py for datagrams of several classes; each has to have its own."""
import socket, sys
IP_RECVTOS = 13
for server in sys.argv[1:]:
    v6 = ':' in server
    u = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(10)
    if v6: u.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    else: u.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
    u.sendto(bytes([0xb9, 0xb9, 0, 2, 2, 3, 0x28]), (server, 7001))
    for n in range(7):
        data, control, _, _ = u.recvmsg(100, 100)
        (_, _, tos), = control
        assert tos[0] == data[0], (server, n, data, control)
