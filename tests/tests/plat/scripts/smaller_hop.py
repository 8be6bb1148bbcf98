# SPDX-License-Identifier: Apache-2.0
import errno, socket, time
# The third time, platd's host knows the path MTU already, and the guest's IPv4 does not.
cases = ('198.51.100.9', 1300), ('64:ff9b::198.51.100.10', 1320), ('198.51.100.10', 1300)
for host, least in cases:
    v6 = ':' in host
    u = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    u.settimeout(10)
    u.connect((host, 80))
    # IPV6_MTU and IP_MTU: the path MTU in the kernel's cache.
    mtu = lambda: u.getsockopt(socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP, 24 if v6 else 14)
    before, deadline = mtu(), time.monotonic() + 10
    while mtu() == before:
        assert time.monotonic() < deadline, (host, 'nobody said so')
        try: u.send(bytes(1400))
        except OSError as e: assert e.errno == errno.EMSGSIZE, e
        time.sleep(0.1)
    assert mtu() == least, (host, before, mtu())
    # Now in fragments, both ways, on a new socket.
    u = socket.socket(u.family, socket.SOCK_DGRAM); u.settimeout(10); u.connect((host, 80))
    for size in (1, 1400, 4000):
        u.send(bytes(size)); assert len(u.recv(65536)) == size, (host, size)
    c = socket.create_connection((host, 80), 10); c.settimeout(20)
    c.sendall(bytes(3000000)); c.shutdown(socket.SHUT_WR)
    assert c.recv(100) == b'3000000'
