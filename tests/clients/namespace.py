"""A client that tries until it is let: says how often and for how long it was refused before.

Usage: namespace.py unshare|here ADDRESS PORT [SECONDS]

`unshare` goes into a network namespace of its own first. Afterwards it stays for SECONDS.
"""

import ctypes
import errno
import os
import socket
import sys
import time

WHERE, ADDRESS, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
STAY = float(sys.argv[4]) if len(sys.argv) > 4 else 0
FAMILY = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
CLONE_NEWNET = 0x40000000

if WHERE == "unshare" and ctypes.CDLL(None).unshare(CLONE_NEWNET):
    sys.exit("can't unshare")

refused, first = 0, None
until = time.monotonic() + 10
while time.monotonic() < until:
    client = socket.socket(FAMILY, socket.SOCK_STREAM)
    try:
        client.connect((ADDRESS, PORT))
    except PermissionError:
        client.close()
        refused, first = refused + 1, first or time.monotonic()
        time.sleep(0.0005)
        continue
    except OSError as error:
        print("error", errno.errorcode[error.errno], flush=True)
        break
    waited = (time.monotonic() - first) * 1000 if first else 0
    print(f"refused {refused} served after {waited:.1f} ms", flush=True)
    try:
        client.sendall(b"ping\n")
        print(client.makefile("rb").readline().decode().strip(), flush=True)
    except OSError as error:
        print("error", errno.errorcode[error.errno], flush=True)
    break
print(os.readlink("/proc/self/ns/net"), flush=True)
time.sleep(STAY)
