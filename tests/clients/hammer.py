"""Asks a server for numbered things until it is told to stop, and takes every failure for granted.

Usage: hammer.py ADDRESS PORT NAME STOP-FILE
"""

import os
import random
import socket
import sys
import time

ADDRESS, PORT, NAME, STOP = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]


def query(name):
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b"."))
    return os.urandom(2) + b"\x01\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"


number = 0
while not os.path.exists(STOP):
    number += 1
    kind = random.choice(["ok", "ok", "no", "held"])
    try:
        with socket.create_connection((ADDRESS, PORT), timeout=3) as connection:
            for part in range(3):
                path = f"/{kind}/{NAME}-{number}-{part}"
                method = random.choice(["GET", "DELETE"])
                connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: {ADDRESS}\r\n\r\n".encode())
                if not connection.recv(4096):
                    break
    except OSError:
        time.sleep(0.005)
    for verdict in ("ok", "no"):
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
                resolver.settimeout(0.5)
                resolver.sendto(query(f"{NAME}-{number}.{verdict}.test"), (ADDRESS, 53))
                resolver.recvfrom(4096)
        except OSError:
            pass
