# SPDX-License-Identifier: Apache-2.0
import socket
s = socket.create_server(("198.51.100.1", 7000))
print("ready", flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b'ab'); c.send(b'!', socket.MSG_OOB); c.sendall(b'cd')
    got = b''
    while part := c.recv(10): got += part
    print("got", got, flush=True)
    c.close()
