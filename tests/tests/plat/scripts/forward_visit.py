# SPDX-License-Identifier: Apache-2.0
import socket, sys
host, = sys.argv[1:]
c = socket.create_connection((host, 8080), 5)
print(c.recv(100))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(5)
u.sendto(b'question', (host, 5353))
print(u.recv(100))
