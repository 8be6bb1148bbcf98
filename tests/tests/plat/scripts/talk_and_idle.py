# SPDX-License-Identifier: Apache-2.0
import socket, sys, threading, time
S4, S6 = sys.argv[1:]
def talk(server):
    family = socket.AF_INET6 if ':' in server else socket.AF_INET
    c = socket.create_connection((server, 81), 10); c.settimeout(10)
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(10)
    for i in range(60):
        for word in (b'l', b's', b' -l %d\n' % i):
            c.sendall(word)
            got = b''
            while len(got) < len(word): got += c.recv(100)
            assert got == word
        u.sendto(b'%d' % i, (server, 80))
        assert u.recv(100) == b'%d' % i
        time.sleep(3 if i in (20, 40) else 0.1)
    done.append(server)
done = []
threads = [threading.Thread(target=talk, args=(s,)) for s in (S4, S6)]
for t in threads: t.start()
for t in threads: t.join()
assert len(done) == 2
