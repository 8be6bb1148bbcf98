# SPDX-License-Identifier: Apache-2.0
"""A connection that talks whenever it is told to, and says so."""
import socket, sys
c = socket.create_connection((sys.argv[1], 81), 10)
c.settimeout(20)
print('connected', flush=True)
for line in sys.stdin:
    word = line.strip().encode()
    c.sendall(word)
    got = b''
    while len(got) < len(word): got += c.recv(100)
    assert got == word
    print('heard', line.strip(), flush=True)
