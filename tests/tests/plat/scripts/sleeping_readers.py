# SPDX-License-Identifier: Apache-2.0
import socket, sys, threading, time
S4, S6 = sys.argv[1:]
want = bytes(i % 251 for i in range(16000000))
def up(server):
    c = socket.create_connection((server, 85), 20); c.settimeout(60)
    c.sendall(want); c.shutdown(socket.SHUT_WR)
    assert c.recv(100) == b'16000000'
    done.append(0)
def down(server):
    c = socket.socket(socket.AF_INET6 if ':' in server else socket.AF_INET)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192); c.settimeout(60)
    c.connect((server, 82))
    time.sleep(4)
    got = b''
    while part := c.recv(65536): got += part
    assert got == want[:3000000]
    done.append(0)
done = []
threads = [threading.Thread(target=f, args=(s,)) for f in (up, down) for s in (S4, S6)]
for t in threads: t.start()
for t in threads: t.join()
assert len(done) == 4
