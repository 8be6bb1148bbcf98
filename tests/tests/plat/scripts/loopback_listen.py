# SPDX-License-Identifier: Apache-2.0
import socket
s = socket.create_server(('::', 80), family=socket.AF_INET6, dualstack_ipv6=True)
print('ready', flush=True)
while True:
    c, peer = s.accept()
    print('visitor', peer, flush=True)
    c.sendall(b'the host'); c.close()
