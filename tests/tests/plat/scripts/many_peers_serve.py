# SPDX-License-Identifier: Apache-2.0
"""Once it has heard at all of its addresses 198.51.101.1 to 200, it answers from each."""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
s.bind(('0.0.0.0', 7001))
print('ready', flush=True)
while True:
    heard = {}
    while len(heard) < 200:
        _, told, _, peer = s.recvmsg(100, 100)
        heard[told[0][2]] = peer
    for info, peer in heard.items():
        s.sendmsg([b'x'], [(socket.IPPROTO_IP, 8, bytes(4) + info[4:8] + bytes(4))], 0, peer)
