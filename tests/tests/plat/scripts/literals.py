# SPDX-License-Identifier: Apache-2.0
import socket, sys
S4, S6 = sys.argv[1:]
for family, server in ((socket.AF_INET, S4), (socket.AF_INET6, S6)):
    c = socket.create_connection((server, 80), 5)
    c.sendall(b'hello'); c.shutdown(socket.SHUT_WR)
    print(c.recv(100))
    u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(5)
    for size in (1, 0, 1400, 9000):
        u.sendto(bytes(size), (server, 80))
        assert len(u.recv(65536)) == size, size
