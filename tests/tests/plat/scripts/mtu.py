# SPDX-License-Identifier: Apache-2.0
import socket, sys
mtu, servers = int(sys.argv[1]), sys.argv[2:]
device = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
device.connect((servers[-1], 9))
assert device.getsockopt(socket.IPPROTO_IPV6, 24) == mtu
for server in servers:
    c = socket.create_connection((server, 82), 20); c.settimeout(20)
    got = b''
    while part := c.recv(65536): got += part
    assert got == bytes(i % 251 for i in range(3000000))
    c = socket.create_connection((server, 83), 20); c.settimeout(20)
    c.sendall(got); c.shutdown(socket.SHUT_WR)
    assert c.recv(100) == b'3000000'
