# SPDX-License-Identifier: Apache-2.0
import socket, struct, sys, time
S4, S6 = sys.argv[1:]
for server in (S4, S6):
    # The guest closes its direction first; answers still come.
    c = socket.create_connection((server, 80), 5)
    c.sendall(b'half'); c.shutdown(socket.SHUT_WR)
    time.sleep(0.3)
    assert c.recv(100) == b'HALF' and c.recv(1) == b''
    # The host closes its direction first; the guest still sends.
    c = socket.create_connection((server, 86), 5); c.settimeout(5)
    assert c.recv(100) == b'goodbye' and c.recv(1) == b''
    time.sleep(0.3)
    c.sendall(bytes(100000)); c.close()
    # The guest resets.
    c = socket.create_connection((server, 86), 5); c.settimeout(5)
    assert c.recv(100) == b'goodbye'
    c.sendall(b'x'); time.sleep(0.3)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); c.close()
    time.sleep(0.5)
    told = socket.create_connection((server, 87), 5).recv(1000)
    assert told == b'100000 and an end, 1 and a reset', told
    # The host resets.
    c = socket.create_connection((server, 84), 5)
    c.sendall(b'x')
    try: assert c.recv(1) != b''
    except ConnectionResetError: pass
