# SPDX-License-Identifier: Apache-2.0
import socket, sys
S4, S6 = sys.argv[1:]
for first, second in ((S4, '198.51.100.2'), (S6, '64:ff9b::198.51.100.2')):
    u = socket.socket(socket.AF_INET6 if ':' in first else socket.AF_INET, socket.SOCK_DGRAM)
    u.settimeout(10)
    def ask(senders):
        u.sendto(b'?', (first, 91))
        got = sorted(u.recvfrom(100) for _ in range(senders))
        u.settimeout(0.5)
        try: got.append(u.recvfrom(100))
        except TimeoutError: pass
        u.settimeout(10)
        return {data for data, _ in got}, sorted((peer[0], peer[1]) for _, peer in got)
    def host(text): return socket.getaddrinfo(text, 0)[0][4][0]
    ports, senders = ask(2)
    assert senders == [(host(first), 91), (host(first), 92)], senders
    # Afterwards it gets an answer, from the same port.
    u.sendto(b'hello', (second, 91))
    again, senders = ask(3)
    assert senders == [(host(first), 91), (host(first), 92), (host(second), 91)], senders
    assert len(ports) == 1 and again == ports, (ports, again)
