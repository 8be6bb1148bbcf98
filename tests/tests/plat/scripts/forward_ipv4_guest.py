# SPDX-License-Identifier: Apache-2.0
"""Listens by IPv4 alone."""
import socket, sys, threading
s = socket.create_server(('0.0.0.0', 80))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('0.0.0.0', 53))
def answer():
    while True:
        data, peer = u.recvfrom(100)
        u.sendto(data.upper(), peer)
threading.Thread(target=answer, daemon=True).start()
print('ready', flush=True)
while True:
    c, peer = s.accept()
    c.sendall(b'the guest saw ' + peer[0].encode()); c.shutdown(socket.SHUT_WR); c.recv(1)
