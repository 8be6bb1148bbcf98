# SPDX-License-Identifier: Apache-2.0
"""net_node.py serve: greets on port 80, and says how much came on port 81.
net_node.py visit NODE NAME: reaches a node by name, address and link-local address, and an IPv4
server by name."""
import ipaddress, socket, subprocess, sys, threading
def serve(port, what):
    s = socket.create_server(("::", port), family=socket.AF_INET6)
    def loop():
        while True:
            c, peer = s.accept()
            what(c, peer)
            c.close()
    threading.Thread(target=loop).start()
def greet(c, peer):
    c.sendall(f"hello {peer[0]}".encode())
def swallow(c, peer):
    n = 0
    while got := c.recv(65536): n += len(got)
    c.sendall(str(n).encode())
def talk(host, port, data=b""):
    c = socket.create_connection((host, port), timeout=10)
    own = c.getsockname()[0]
    c.sendall(data); c.shutdown(socket.SHUT_WR)
    all = b""
    while got := c.recv(65536): all += got
    return own, all.decode()
if sys.argv[1] == "serve":
    serve(80, greet), serve(81, swallow)
    print("serving", flush=True)
else:
    node, name = sys.argv[2:]
    found = socket.getaddrinfo(node, 80, type=socket.SOCK_STREAM)
    (address,) = {a[4][0] for a in found}
    for host in node, node.upper(), address:
        own, said = talk(host, 80)
        assert said == f"hello {own}", (host, own, said)
    assert talk(node, 81, bytes(10_000_000))[1] == "10000000"
    identifier = int(ipaddress.IPv6Address(address)) & (1 << 64) - 1
    near = f"{ipaddress.IPv6Address(0xfe80 << 112 | identifier)}%plat0"
    subprocess.run(["ping", "-c", "2", "-i", "0.2", "-W", "5", near], check=True)
    subprocess.run(["ping", "-c", "2", "-i", "0.2", "-W", "5", node], check=True)
    own, said = talk(name, 80, b"by nat64")
    assert said == "BY NAT64" and ":" in own, (own, said)
    try: talk("198.51.100.1", 80)
    except OSError: print("only IPv6")
