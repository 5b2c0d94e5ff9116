"""The far side: writes down what arrives, each with its time, and keeps calling an address.

Usage: sink.py PORT LOG CALLED CALLED_PORT
"""

import select
import socket
import sys
import threading
import time

PORT, LOG, CALLED, CALLED_PORT = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
log = open(LOG, "a", buffering=1)


def note(data):
    """What is named in the data, in one line with the milliseconds that CLOCK_MONOTONIC shows."""
    names = sorted(set(data.decode(errors="replace").split()))
    log.write(f"{time.monotonic_ns() // 1_000_000} {' '.join(names)}\n")


def call():
    while True:
        try:
            with socket.create_connection((CALLED, CALLED_PORT), timeout=0.5) as connection:
                note(b"called")
                while data := connection.recv(4096):
                    note(data)
        except OSError:
            pass
        time.sleep(0.05)


listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
datagrams.bind(("::", PORT))
threading.Thread(target=call, daemon=True).start()
print("ready", flush=True)
readers = [listener, datagrams]
while True:
    for reader in select.select(readers, [], [])[0]:
        try:
            if reader is listener:
                readers.append(listener.accept()[0])
            elif reader is datagrams:
                note(reader.recv(65_536))
            elif data := reader.recv(4096):
                note(data)
            else:
                raise OSError
        except OSError:
            note(b"gone")
            readers.remove(reader)
            reader.close()
