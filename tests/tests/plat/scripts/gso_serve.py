# SPDX-License-Identifier: Apache-2.0
# UDP_SEGMENT and UDP_GRO of linux/udp.h.
import socket, struct, sys
SERVER, = sys.argv[1:]
SEGMENT, GRO = 103, 104
def take(u):
    data, ancillary, _, peer = u.recvmsg(65536, 64)
    sizes = [struct.unpack('i', value)[0] for level, kind, value in ancillary if kind == GRO]
    return data, sizes, peer
def give(u, data, size, to):
    u.sendmsg([data], [(socket.SOL_UDP, SEGMENT, struct.pack('H', size))], 0, to)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind((SERVER, 90))
u.setsockopt(socket.SOL_UDP, GRO, 1)
print('ready', flush=True)
while True:
    data, sizes, peer = take(u)
    print(len(data), sizes, flush=True)
    give(u, data, 1000, peer)
