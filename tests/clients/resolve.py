"""Looks names up as Python programs do, or asks a server by hand. Prints what it is told.

Usage: resolve.py lookup NAME... | flood SERVER COUNT DOMAIN | switch SERVER OTHER | forge TOKEN_PORT
"""

import errno
import os
import socket
import struct
import sys
import time


def say(*values):
    print(*values, flush=True)


def lookup(*names):
    """Addresses of names, IPv4 first."""
    for name in names:
        try:
            found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
            say(name, *sorted({entry[4][0] for entry in found}))
        except socket.gaierror as error:
            say(name, error.args[1])


def question(name, number=7, kind=1):
    """A query, without EDNS."""
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b"."))
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)


def flood(server, count, domain):
    """Carries data out in names; says how many were answered, and how many of them denied."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    answered = denied = 0
    with socket.socket(family, socket.SOCK_DGRAM) as resolver:
        resolver.settimeout(5)
        for number in range(int(count)):
            name = os.urandom(20).hex() + "." + domain
            resolver.sendto(question(name, number & 0xFFFF), (server, 53))
            answer, _ = resolver.recvfrom(4096)
            answered += 1
            denied += answer[3] & 15 == 3
    say(answered, denied)


def switch(server, other):
    """Connects a socket to a server, then sends elsewhere with it, then lets go and connects again."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.settimeout(5)
        resolver.connect((server, 53))
        resolver.send(question("web.test"))
        say(resolver.recvfrom(4096)[1])
        for address in ((other, 53), (other, 54)):
            try:
                resolver.sendto(question("web.test"), address)
                say("sent")
            except OSError as error:
                say(errno.errorcode[error.errno])
        # What was sent elsewhere is nobody's any more once this socket has another port, and nothing says when it was
        # looked at.
        time.sleep(1)
        # AF_UNSPEC: it is connected to nothing any more.
        libc = __import__("ctypes").CDLL(None)
        libc.connect(resolver.fileno(), b"\0" * 16, 16)
        resolver.connect((server, 53))
        say(*resolver.getpeername())
        resolver.send(question("web.test"))
        say(resolver.recvfrom(4096)[1])


{"lookup": lookup, "flood": flood, "switch": switch}[sys.argv[1]](*sys.argv[2:])
