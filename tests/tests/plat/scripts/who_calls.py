# SPDX-License-Identifier: Apache-2.0
"""Tells whoever comes, by TCP or UDP to port 7000, under which address it came."""
import socket, threading
s = socket.create_server(('198.51.100.1', 7000))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('198.51.100.1', 7000))
def datagrams():
    while True:
        _, peer = u.recvfrom(100)
        u.sendto(peer[0].encode(), peer)
threading.Thread(target=datagrams, daemon=True).start()
print('ready', flush=True)
while True:
    c, peer = s.accept()
    c.sendall(peer[0].encode()); c.close()
