# SPDX-License-Identifier: Apache-2.0
import socket, sys, time
cs = [socket.create_connection((server, 81), 10) for server in sys.argv[1:]]
for c in cs: c.sendall(b'x'); assert c.recv(1) == b'x'
print('connected', flush=True)
time.sleep(1)
begin = time.monotonic()
for c in cs: c.settimeout(20); c.sendall(b'is anybody there?')
for c in cs:
    try: c.recv(1); assert False
    except ConnectionResetError: pass
assert time.monotonic() - begin > 1
print('reset', flush=True)
