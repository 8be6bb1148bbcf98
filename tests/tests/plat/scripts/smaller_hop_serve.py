# SPDX-License-Identifier: Apache-2.0
import socket, threading
def udp(host):
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind((host, 80))
    while True:
        data, peer = u.recvfrom(65536); u.sendto(data, peer)
for host in ('198.51.100.9', '198.51.100.10'): threading.Thread(target=udp, args=(host,)).start()
s = socket.create_server(('', 80))
print('ready', flush=True)
while True:
    c, _ = s.accept(); n = 0
    while got := c.recv(65536): n += len(got)
    c.sendall(str(n).encode()); c.close()
