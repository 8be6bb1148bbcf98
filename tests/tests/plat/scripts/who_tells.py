# SPDX-License-Identifier: Apache-2.0
import socket
def bound(host, port):
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind((host, port)); return u
first, second = bound('198.51.100.1', 91), bound('198.51.100.2', 91)
other = bound('198.51.100.1', 92)
print('ready', flush=True)
while True:
    data, peer = first.recvfrom(100)
    for u in (second, other, first): u.sendto(b'%d' % peer[1], peer)
