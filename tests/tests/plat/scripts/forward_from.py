# SPDX-License-Identifier: Apache-2.0
"""forward_from.py HOST...: visits forwarded ports at these addresses of the host; what answers a
datagram comes from where that went."""
import socket, sys, time
for host in sys.argv[1:]:
    family, _, _, _, to = socket.getaddrinfo(host, 8080)[0]
    for _ in range(50):
        c = socket.socket(family, socket.SOCK_STREAM); c.settimeout(10)
        c.connect(to)
        try: got = c.recv(100)
        except ConnectionResetError: got = b''
        if got: break
        time.sleep(0.1)
    assert got.startswith(b'the guest saw'), (host, got)
    u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(0.2)
    for _ in range(50):
        u.sendto(b'question', socket.getaddrinfo(host, 5353)[0][4])
        try: data, peer = u.recvfrom(100); break
        except TimeoutError: pass
    else: assert False, (host, 'no answer')
    assert data == b'QUESTION' and peer[0] == to[0], (host, data, peer)
    print(host, got.decode(), flush=True)
