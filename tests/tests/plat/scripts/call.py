# SPDX-License-Identifier: Apache-2.0
"""Under which addresses who_calls.py sees us, and what /etc/resolv.conf has."""
import socket
SERVER = '64:ff9b::198.51.100.1', 7000
print(socket.create_connection(SERVER, 10).recv(100).decode())
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.settimeout(10)
u.sendto(b'?', SERVER)
print(u.recv(100).decode())
print(*open('/etc/resolv.conf').read().split())
