# SPDX-License-Identifier: Apache-2.0
"""A TCP server: port 80 answers what it got, in capitals, once it got an end; 81 repeats at once;
82 sends 3 MB; 83 swallows and tells how much; 84 resets; 85 is 83 after a sleep; 86 says goodbye
and ends before it swallows; 87 tells what became of each connection to 86. UDP port 80 repeats."""
import socket, struct, threading, time
def listen(port, what):
    s = socket.create_server(("198.51.100.1", port), backlog=2048)
    def loop():
        while True:
            c, _ = s.accept()
            threading.Thread(target=what, args=(c,), daemon=True).start()
    threading.Thread(target=loop, daemon=True).start()
def upper(c):
    data = b""
    while got := c.recv(65536): data += got
    c.sendall(data.upper()); c.close()
def repeat(c):
    while got := c.recv(65536): c.sendall(got)
    c.close()
def give(c):
    c.sendall(bytes(i % 251 for i in range(3000000))); c.close()
def swallow(c):
    n = 0
    while got := c.recv(65536): n += len(got)
    c.sendall(str(n).encode()); c.close()
def reset(c):
    c.recv(1)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); c.close()
def sleepy(c):
    time.sleep(4); swallow(c)
ends = []
def goodbye(c):
    c.sendall(b"goodbye"); c.shutdown(socket.SHUT_WR); n = 0
    try:
        while got := c.recv(65536): n += len(got)
        ends.append("%d and an end" % n)
    except ConnectionResetError: ends.append("%d and a reset" % n)
    c.close()
def tell(c):
    c.sendall(", ".join(ends).encode()); ends.clear(); c.close()
whats = upper, repeat, give, swallow, reset, sleepy, goodbye, tell
for port, what in enumerate(whats, 80): listen(port, what)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("198.51.100.1", 80))
print("ready", flush=True)
while True:
    data, peer = u.recvfrom(65536)
    u.sendto(data, peer)
