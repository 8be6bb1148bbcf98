# SPDX-License-Identifier: Apache-2.0
"""Listens by IPv6 alone, or at the IPv4 address given."""
import socket, sys, threading
address = sys.argv[1] if len(sys.argv) > 1 else '::'
family = socket.AF_INET6 if ':' in address else socket.AF_INET
s = socket.create_server((address, 80), family=family)
u = socket.socket(family, socket.SOCK_DGRAM); u.bind((address, 53))
if family == socket.AF_INET6:
    # So that platd learns its address.
    socket.socket(family, socket.SOCK_DGRAM).sendto(b'x', ('64:ff9b::198.51.100.1', 80))
def answer():
    while True:
        data, peer = u.recvfrom(100)
        u.sendto(data.upper(), peer)
threading.Thread(target=answer, daemon=True).start()
print('ready', flush=True)
while True:
    c, peer = s.accept()
    c.sendall(b'the guest saw ' + peer[0].encode()); c.shutdown(socket.SHUT_WR); c.recv(1)
