# SPDX-License-Identifier: Apache-2.0
"""resolvers.py HOST...: says which of these is asked for something, and refuses to answer."""
import select, socket, sys
asked = {}
for host in sys.argv[1:]:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((host, 53)); asked[s] = host
print('ready', flush=True)
while True:
    for s in select.select(list(asked), [], [])[0]:
        question, peer = s.recvfrom(2000)
        print(asked[s], 'was asked', flush=True)
        s.sendto(question[:2] + b'\x81\x85' + question[4:], peer)
