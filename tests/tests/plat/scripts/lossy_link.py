# SPDX-License-Identifier: Apache-2.0
import socket, sys
S4, S6 = sys.argv[1:]
want = bytes(i % 251 for i in range(3000000))
c = socket.create_connection((S6, 82), 20); c.settimeout(60)
got = b''
while part := c.recv(65536): got += part
assert got == want, len(got)
c = socket.create_connection((S6, 83), 20); c.settimeout(60)
c.sendall(want); c.shutdown(socket.SHUT_WR)
assert c.recv(100) == b'3000000'
