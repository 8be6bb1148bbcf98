# SPDX-License-Identifier: Apache-2.0
# UDP_SEGMENT and UDP_GRO of linux/udp.h.
import socket, struct, sys
S4, S6 = sys.argv[1:]
SEGMENT, GRO = 103, 104
def take(u):
    data, ancillary, _, peer = u.recvmsg(65536, 64)
    sizes = [struct.unpack('i', value)[0] for level, kind, value in ancillary if kind == GRO]
    return data, sizes, peer
def give(u, data, size, to):
    u.sendmsg([data], [(socket.SOL_UDP, SEGMENT, struct.pack('H', size))], 0, to)
data = b''.join(bytes([n]) * 1000 for n in range(20)) + b'the end'
for family, host in ((socket.AF_INET, S4), (socket.AF_INET6, S6)):
    u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(10)
    u.setsockopt(socket.SOL_UDP, GRO, 1)
    give(u, data, 1000, (host, 90))
    got, sizes, _ = take(u)
    assert (got, sizes) == (data, [1000]), (len(got), sizes)
