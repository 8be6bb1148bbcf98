# SPDX-License-Identifier: Apache-2.0
import socket, threading
s = socket.create_server(('::', 80), family=socket.AF_INET6)
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.bind(('::', 53))
# So that the network knows it.
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x', ('64:ff9b::198.51.100.1', 80))
def answer():
    while True:
        data, peer = u.recvfrom(100)
        u.sendto(data.upper(), peer)
threading.Thread(target=answer, daemon=True).start()
print('ready', flush=True)
while True:
    c, peer = s.accept()
    c.sendall(b'the guest saw ' + peer[0].encode()); c.shutdown(socket.SHUT_WR); c.recv(1)
