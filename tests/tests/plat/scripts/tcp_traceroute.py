# SPDX-License-Identifier: Apache-2.0
"""Who tells that a SYN has not got further than so many hops: one that is no end of the path."""
import select, socket, struct, sys
server, = sys.argv[1:]
for hops, wanted in (1, '2001:db8:464::1'), (2, '64:ff9b::203.0.113.2'), (3, None):
    c = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    c.setblocking(False)
    c.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
    c.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR
    c.connect_ex((server, 80))
    select.select([], [c], [], 20)
    if wanted is None:
        assert c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        continue
    _, told, _, _ = c.recvmsg(2000, 1000, socket.MSG_ERRQUEUE)
    data = told[0][2]
    # struct sock_extended_err, followed by a sockaddr_in6.
    origin, kind, code = struct.unpack('4xBBB', data[:7])
    router = socket.inet_ntop(socket.AF_INET6, data[24:40])
    assert (origin, kind, code) == (3, 3, 0), (hops, origin, kind, code)
    assert socket.inet_pton(socket.AF_INET6, router) == socket.inet_pton(socket.AF_INET6, wanted), (hops, router)
