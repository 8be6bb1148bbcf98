# SPDX-License-Identifier: Apache-2.0
import socket, sys
S4, S6 = sys.argv[1:]
for n in range(30):
    u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    u.settimeout(10); u.connect((S6, 80))
    u.send(b'%d' % n); assert u.recv(100) == b'%d' % n
