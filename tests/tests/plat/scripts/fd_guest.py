# SPDX-License-Identifier: Apache-2.0
"""fd_guest.py PLATD KIND: starts platd with one end of a socket pair, waits until it is ready, asks
for a router, and leaves."""
import os, socket, struct, subprocess, sys
platd, kind = sys.argv[1:]
ours, theirs = socket.socketpair(socket.AF_UNIX, {'stream': socket.SOCK_STREAM, 'packets': socket.SOCK_SEQPACKET}[kind])
ready, told = os.pipe()
p = subprocess.Popen([platd, '--fd', str(theirs.fileno()), '--ready-fd', str(told)], pass_fds=(theirs.fileno(), told))
theirs.close(); os.close(told)
assert os.read(ready, 100) == b'ready\n'
def exactly(n):
    data = b''
    while len(data) < n: data += ours.recv(n - len(data))
    return data
def get(): return exactly(struct.unpack('!I', exactly(4))[0]) if kind == 'stream' else ours.recv(70000)
# A router solicitation, whose checksum is right, from fe80::9.
frame = bytes.fromhex('333300000002' '020000000009' '86dd' '6000000000083aff'
    'fe800000000000000000000000000009' 'ff020000000000000000000000000002' '85007d2e' '00000000')
ours.settimeout(10)
ours.sendall((struct.pack('!I', len(frame)) if kind == 'stream' else b'') + frame)
while True:
    got = get()
    if got[:6] == bytes.fromhex('020000000009') and got[54] == 134: break
assert p.poll() is None
ours.close()
assert p.wait(20) == 0
print('served')
