"""A process with sockets from before its tag, which tries to go on using them.

Usage: before.py inside|moved CGROUP SERVER PORT LISTEN GO

Opens sockets of all kinds, in CGROUP or before it moves there, and says "ready" once each has been used.
From then on what is active sends all the time, and when the file GO is there what was idle does, too. What
fails is tried again in every way that the socket allows.
"""

import ctypes
import os
import socket
import struct
import sys
import threading
import time

BIRTH, CGROUP, SERVER, PORT, LISTEN, GO = sys.argv[1:]
PORT, LISTEN = int(PORT), int(LISTEN)
TO = (SERVER, PORT)
FAMILY = socket.AF_INET6 if ":" in SERVER else socket.AF_INET
libc = ctypes.CDLL(None, use_errno=True)


def enter():
    with open(f"{CGROUP}/cgroup.procs", "w") as procs:
        procs.write(str(os.getpid()))


def disconnect(connection):
    libc.connect(connection.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16)


def tcp():
    return socket.create_connection(TO, timeout=5)


def try_all(*steps):
    for step in steps:
        try:
            step()
        except OSError:
            pass


def revive(connection, label):
    """Uses a socket that was ended for something new."""
    connection.settimeout(0.3)
    try_all(
        lambda: connection.setsockopt(socket.SOL_SOCKET, 62, 0),  # SO_BINDTOIFINDEX
        lambda: connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"\0"),
        lambda: disconnect(connection),
        lambda: connection.connect(TO),
        lambda: connection.sendall(label),
        lambda: connection.sendto(label, TO),
        lambda: connection.sendmsg([label], [(0, 8, struct.pack("i8x", 1))], 0, TO),  # IP_PKTINFO
    )


def chatter(connection, label, idle=False):
    def run():
        while idle and not os.path.exists(GO):
            time.sleep(0.02)
        while True:
            try:
                connection.sendall(label)
            except OSError:
                revive(connection, label)
            time.sleep(0.02)

    threading.Thread(target=run, daemon=True).start()


def datagrams(connection, label):
    def run():
        while True:
            try_all(lambda: connection.sendto(label, TO))
            try:
                connection.send(label)
            except OSError:
                revive(connection, label)
            time.sleep(0.02)

    threading.Thread(target=run, daemon=True).start()


def corked(connection, label):
    def run():
        while not os.path.exists(GO):
            time.sleep(0.02)
        while True:
            try_all(
                lambda: connection.send(label),
                lambda: connection.setsockopt(socket.IPPROTO_UDP, 1, 0),  # UDP_CORK
            )
            time.sleep(0.02)

    threading.Thread(target=run, daemon=True).start()


def hidden_in_a_thread(label, opened):
    """A connection in a table of descriptors that only one thread has."""

    def run():
        libc.unshare(0x400)  # CLONE_FILES
        connection = tcp()
        connection.sendall(label)
        opened.set()
        while not os.path.exists(GO):
            time.sleep(0.02)
        while True:
            try_all(lambda: connection.sendall(label))
            time.sleep(0.02)

    threading.Thread(target=run, daemon=True).start()


def hidden_in_a_ring(connection):
    """Leaves a connection to an io_uring alone."""
    ring = libc.syscall(425, 8, ctypes.create_string_buffer(120))
    if ring >= 0:
        files = (ctypes.c_int * 1)(connection.fileno())
        libc.syscall(427, ring, 2, files, 1)  # IORING_REGISTER_FILES
        connection.close()


if BIRTH == "inside":
    enter()

active, idle, ring = tcp(), tcp(), tcp()
for connection, label in ((active, b"tcp-active "), (idle, b"tcp-idle "), (ring, b"tcp-ring ")):
    connection.sendall(label)
fresh = socket.socket(FAMILY)
multipath = socket.socket(FAMILY, socket.SOCK_STREAM, 262)
multipath.connect(TO)
multipath.sendall(b"mptcp ")
loose = socket.socket(FAMILY, socket.SOCK_DGRAM)
loose.sendto(b"udp-unconnected ", TO)
bound = socket.socket(FAMILY, socket.SOCK_DGRAM)
bound.connect(TO)
bound.send(b"udp-connected ")
cork = socket.socket(FAMILY, socket.SOCK_DGRAM)
cork.connect(TO)
cork.send(b"udp-corked ", socket.MSG_MORE)
listener = socket.create_server(("", LISTEN), family=socket.AF_INET)
hidden_in_a_ring(ring)
opened = threading.Event()
hidden_in_a_thread(b"tcp-thread ", opened)
opened.wait(5)

if BIRTH == "moved":
    enter()


def accept():
    while True:
        try:
            connection, _ = listener.accept()
            chatter(connection, b"accepted ")
        except OSError:
            time.sleep(0.02)
            try_all(lambda: disconnect(listener), lambda: listener.listen(5))


threading.Thread(target=accept, daemon=True).start()
chatter(active, b"tcp-active ")
chatter(idle, b"tcp-idle ", idle=True)
chatter(fresh, b"tcp-fresh ", idle=True)
chatter(multipath, b"mptcp ", idle=True)
datagrams(loose, b"udp-unconnected ")
datagrams(bound, b"udp-connected ")
corked(cork, b"udp-corked ")
print("ready", flush=True)
time.sleep(600)
