# SPDX-License-Identifier: Apache-2.0
import socket, sys
S4, S6 = sys.argv[1:]
for server in (S4, S6):
    try: socket.create_connection((server, 9), 5); assert False
    except ConnectionRefusedError: pass
    c = socket.create_connection((server, 84), 5)
    c.sendall(b'x')
    try: assert c.recv(1) != b''
    except ConnectionResetError: pass
    family = socket.AF_INET6 if ':' in server else socket.AF_INET
    u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(5); u.connect((server, 9))
    u.send(b'x')
    try: u.recv(1); assert False
    except ConnectionRefusedError: pass
