# SPDX-License-Identifier: Apache-2.0
import socket, sys, threading
FAR, = sys.argv[1:]
s = socket.create_server((FAR, 80), family=socket.AF_INET6)
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.bind((FAR, 80))
def tcp():
    while True:
        c, peer = s.accept()
        print('visitor', peer[0], flush=True)
        while got := c.recv(65536): c.sendall(got)
        c.close()
threading.Thread(target=tcp, daemon=True).start()
print('ready', flush=True)
while True:
    data, peer = u.recvfrom(65536); u.sendto(data, peer)
