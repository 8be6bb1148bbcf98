# SPDX-License-Identifier: Apache-2.0
import errno, socket, sys, threading
FAR, = sys.argv[1:]
want = bytes(i % 251 for i in range(3000000))
c = socket.create_connection((FAR, 80), 10); c.settimeout(20)
def send(): c.sendall(want); c.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
got = b''
while part := c.recv(65536): got += part
assert got == want, len(got)
def fails(host, port, kind, wanted):
    u = socket.socket(socket.AF_INET6, kind); u.settimeout(10)
    # Transient errors are reported only with IPV6_RECVERR.
    u.setsockopt(socket.IPPROTO_IPV6, 25, 1)
    try: u.connect((host, port)); u.send(b'x'); u.recv(1); assert False
    except OSError as e: assert e.errno in wanted, (host, kind, e)
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    fails(FAR, 9, kind, [errno.ECONNREFUSED])
    fails('2001:db8:7::7', 80, kind, [errno.EHOSTUNREACH, errno.ENETUNREACH])
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.settimeout(10); u.connect((FAR, 80))
for size in (0, 1, 1400, 9000):
    u.send(bytes(size)); assert len(u.recv(65536)) == size
