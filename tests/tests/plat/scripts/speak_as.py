# SPDX-License-Identifier: Apache-2.0
"""Sends a datagram from an address, again and again until it is answered, or so often."""
import socket, sys, time
source, server, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
u.bind((source, 0)); u.settimeout(0.1)
for _ in range(times):
    u.sendto(b'x', (server, 80))
    try: u.recv(9); print('answered'); break
    except TimeoutError: pass
else: print('not answered')
