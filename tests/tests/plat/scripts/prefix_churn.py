# SPDX-License-Identifier: Apache-2.0
import socket, sys, time
S4, S6 = sys.argv[1:]
c = socket.create_connection((S6, 81), 10); c.settimeout(10)
addresses = set()
for i in range(24):
    c.sendall(b'%d' % i)
    assert c.recv(100) == b'%d' % i, i
    n = socket.create_connection((S6, 81), 10); n.settimeout(10)
    addresses.add(n.getsockname()[0].rsplit(':', 4)[0])
    n.sendall(b'new'); assert n.recv(100) == b'new'
    time.sleep(0.5)
assert len(addresses) >= 2, addresses
