# SPDX-License-Identifier: Apache-2.0
"""Asks whom /etc/resolv.conf names, as a program does that begins anew each time."""
import socket, time
print('ready', flush=True)
for n in range(10000):
    server = open('/etc/resolv.conf').read().split()[1]
    question = bytes([n >> 8, n & 255, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + b'\x01a\x02b%d\0\0\x10\0\x01' % (n % 10)
    s = socket.socket(socket.AF_INET6 if ':' in server else socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(question, (server, 53))
    time.sleep(0.05)
