# SPDX-License-Identifier: Apache-2.0
import socket, sys
for server in sys.argv[1:]:
    c = socket.create_connection((server, 7000), 10)
    got = b''
    while len(got) < 5: got += c.recv(10)
    assert got == b'ab!cd', got
    c.sendall(b'wx'); c.send(b'?', socket.MSG_OOB); c.sendall(b'yz'); c.close()
