# SPDX-License-Identifier: Apache-2.0
# A permitted caller that misuses the socket: hostile.py SOCKET.
import os
import random
import socket
import sys
import threading
import time

HANDSHAKE = b"\x02" + bytes(15) + b"cci" + bytes(5)


def garbage(to):
    to.sendall(os.urandom(4096))


def half_open(to):
    to.sendall(HANDSHAKE[:1])
    time.sleep(0.2)


def large_frame(to):
    to.sendall(HANDSHAKE + bytes([0, 0, 0, 0, 0, 0, 0, 4]) + bytes(8))
    for _ in range(64):
        to.sendall(bytes(1 << 16))


def deaf(to):
    to.sendall(HANDSHAKE)
    for _ in range(1000):
        to.sendall(bytes([0, 0, 0, 0, 40, 0, 0, 0]) + bytes(48))


def trickle(to):
    for byte in HANDSHAKE:
        to.sendall(bytes([byte]))
        time.sleep(0.01)


def attack():
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as to:
                to.settimeout(1)
                to.connect(sys.argv[1])
                random.choice([garbage, half_open, large_frame, deaf, trickle])(to)
        except OSError:
            # Refused, hung up on, or the controller is just not there.
            time.sleep(0.01)


for _ in range(7):
    threading.Thread(target=attack).start()
attack()
