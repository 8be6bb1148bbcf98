# SPDX-License-Identifier: Apache-2.0
"""Says the protocol and the TOS of IPv4 packets from 203.0.113.1, each pair once."""
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
print("ready", flush=True)
seen = set()
while True:
    p = s.recv(100)
    if p[12:16] == bytes([203, 0, 113, 1]) and (p[9], p[1]) not in seen:
        seen.add((p[9], p[1]))
        print("protocol %d class %02x" % (p[9], p[1]), flush=True)
