# SPDX-License-Identifier: Apache-2.0
import socket, sys
S4, S6 = sys.argv[1:]
for i in range(10000):
    c = socket.create_connection((S6 if i % 2 else S4, 81), 10)
    c.sendall(b'x')
    assert c.recv(1) == b'x'
    c.close()
many = [socket.create_connection((S4, 81), 10) for _ in range(500)]
many += [socket.create_connection((S6, 81), 10) for _ in range(500)]
for i, c in enumerate(many): c.sendall(b'%d' % i)
for i, c in enumerate(many): assert c.recv(10) == b'%d' % i
