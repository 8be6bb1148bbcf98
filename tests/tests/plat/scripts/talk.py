# SPDX-License-Identifier: Apache-2.0
"""The same flow by several names of the server."""
import socket, sys
for server in sys.argv[1:]:
    c = socket.create_connection((server, 80), 10)
    c.sendall(b'hello'); c.shutdown(socket.SHUT_WR)
    assert c.recv(100) == b'HELLO'
    u = socket.socket(socket.AF_INET6 if ':' in server else socket.AF_INET, socket.SOCK_DGRAM)
    u.settimeout(10); u.sendto(b'x' * 1400, (server, 80))
    assert len(u.recv(65536)) == 1400
