# SPDX-License-Identifier: Apache-2.0
"""Finds out by keepalive, and by TCP_USER_TIMEOUT, that the server is no longer there; before that,
that it is."""
import errno, socket, sys, threading, time
def connect(server):
    c = socket.create_connection((server, 81), 10)
    c.sendall(b'x'); assert c.recv(1) == b'x'
    c.settimeout(120)
    return c
def ends(c, why, begin):
    try: c.recv(1); assert False
    except OSError as e: assert e.errno == errno.ETIMEDOUT, e
    print(why, 'after %.1f s' % (time.monotonic() - begin), flush=True)
asking, sending = [], []
for server in sys.argv[1:]:
    c = connect(server); asking.append(c)
    for option, value in (4, 2), (5, 1), (6, 3):  # TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT
        c.setsockopt(socket.IPPROTO_TCP, option, value)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    c = connect(server); sending.append(c)
    c.setsockopt(socket.IPPROTO_TCP, 18, 4000)  # TCP_USER_TIMEOUT, ms
# Longer than the peer's time-out.
time.sleep(8)
for c in asking + sending: c.sendall(b'y'); assert c.recv(1) == b'y'
print('alive', flush=True)
assert sys.stdin.readline()
begin = time.monotonic()
for c in sending: c.sendall(bytes(30000))
waits = [threading.Thread(target=ends, args=(c, why, begin))
    for cs, why in ((asking, 'keepalive'), (sending, 'user timeout')) for c in cs]
for w in waits: w.start()
for w in waits: w.join()
print('found out', flush=True)
