# SPDX-License-Identifier: Apache-2.0
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1] + ".own")
os.chmod(sys.argv[1] + ".own", 0o666)
s.connect(sys.argv[1])
if os.fork() == 0:
    s.send(bytes(60))
    os._exit(0)
os.wait()
print("one is left", flush=True)
time.sleep(1)
s.send(bytes(60))
socket.send_fds(s, [bytes(60)], [0, 1, 2])
print("it has sent", flush=True)
time.sleep(1000)
