# SPDX-License-Identifier: Apache-2.0
"""Answers each datagram with one for each of its bytes, of which that byte is the TOS."""
import socket
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('198.51.100.1', 7001))
print('ready', flush=True)
while True:
    data, peer = u.recvfrom(100)
    for tos in data:
        u.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        u.sendto(bytes([tos]), peer)
