# SPDX-License-Identifier: Apache-2.0
"""A guest with a frame for each message and little else: it opens a TCP connection, says
"connected" and sleeps. By "private" it is one by "frames" whose socket is for its user alone.
Told "back", it leaves and comes back first, and goes on talking."""
import os, socket, struct, sys, time
way, path, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
kind = {"socket": socket.SOCK_STREAM, "packets": socket.SOCK_SEQPACKET}.get(way, socket.SOCK_DGRAM)
own = "%s.%d" % (path, os.getpid())
def plug_in():
    global s
    s = socket.socket(socket.AF_UNIX, kind)
    if kind == socket.SOCK_DGRAM: s.bind(own)
    s.connect(path)
    s.settimeout(10)
    if way == "frames": os.chmod(own, 0o777)
plug_in()
def put(frame): s.sendall((struct.pack("!I", len(frame)) if way == "socket" else b"") + frame)
def exactly(n):
    data = b""
    while len(data) < n: data += s.recv(n - len(data))
    return data
def get():
    return exactly(struct.unpack("!I", exactly(4))[0]) if way == "socket" else s.recv(70000)
me = socket.inet_pton(socket.AF_INET6, "2001:db8:464::9")
server = socket.inet_pton(socket.AF_INET6, "64:ff9b::198.51.100.1")
def tcp(seq, ack, flags, data=b""):
    segment = struct.pack("!HHIIBBHHH", port, 81, seq, ack, 0x50, flags, 65535, 0, 0) + data
    pseudo = me + server + struct.pack("!IxxxB", len(segment), 6) + segment
    pseudo += bytes(len(pseudo) % 2)
    total = sum(struct.unpack("!%dH" % (len(pseudo) // 2), pseudo))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    segment = segment[:16] + struct.pack("!H", total ^ 0xffff) + segment[18:]
    header = struct.pack("!IHBB", 0x60000000, len(segment), 6, 64) + me + server
    put(bytes([2, 0, 0, 0, 4, 0x64, 2, 0, 0, 0, 0, 9, 0x86, 0xdd]) + header + segment)
def segment():
    while True:
        frame = get()
        is_tcp = frame[12:14] == b"\x86\xdd" and frame[20] == 6
        if is_tcp and frame[56:58] == struct.pack("!H", port):
            return frame[54:58 + struct.unpack("!H", frame[18:20])[0] - 4]
def data(ack):
    while True:
        got = segment()
        assert not got[13] & 4, "reset"
        if got[20:] and got[4:8] == struct.pack("!I", ack): return got[20:]
tcp(1000, 0, 2)
first = segment()
assert first[13] == 0x12, first[13]
ack = (struct.unpack("!I", first[4:8])[0] + 1) & 0xffffffff
tcp(1001, ack, 0x10)
if sys.argv[4:] == ["back"]:
    # It closes before its echo has come, which is sent again when it is back.
    tcp(1001, ack, 0x18, b"one")
    time.sleep(1)
    s.close()
    if kind == socket.SOCK_DGRAM: os.unlink(own)
    time.sleep(2)
    plug_in()
    tcp(1001, ack, 0x10)
    assert data(ack) == b"one"
    ack = (ack + 3) & 0xffffffff
    tcp(1004, ack, 0x18, b"two")
    assert data(ack) == b"two"
    tcp(1007, (ack + 3) & 0xffffffff, 0x10)
print("connected", flush=True)
time.sleep(1000)
