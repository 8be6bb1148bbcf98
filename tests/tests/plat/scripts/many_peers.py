# SPDX-License-Identifier: Apache-2.0
import socket, sys
for prefix in ('64:ff9b::', ''):
    u = socket.socket(socket.AF_INET6 if prefix else socket.AF_INET, socket.SOCK_DGRAM)
    u.settimeout(10)
    peers = ['%s198.51.101.%d' % (prefix, n) for n in range(1, 201)]
    for peer in peers: u.sendto(b'x', (peer, 7001))
    answered = set()
    while len(answered) < len(peers): answered.add(u.recvfrom(9)[1][0])
