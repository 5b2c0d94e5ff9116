"""Sockets without a library in between. Prints what the kernel says.

Usage: net.py MODE ADDRESS PORT [COUNT]
"""

import errno
import socket
import sys

MODE, ADDRESS, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
FAMILY = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET


def say(*values):
    print(*values, flush=True)


def peer():
    """Connects, says who is there, and what it answers."""
    with socket.create_connection((ADDRESS, PORT), timeout=10) as connection:
        say(*connection.getpeername()[:2])
        connection.sendall(b"ping\n")
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while block := connection.recv(4096):
            answer += block
        say(answer.decode())


def many():
    """Connects again and again, by turns to the port and the one above."""
    for number in range(int(sys.argv[4])):
        port = PORT + number % 2
        with socket.create_connection((ADDRESS, port), timeout=10) as connection:
            assert connection.getpeername()[1] == port
            connection.sendall(b"%d\n" % port)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while block := connection.recv(4096):
                answer += block
            assert answer == b"port %d got %d\n" % (port, port), answer
    say("all right")


def udp():
    """A datagram, unconnected and connected."""
    for connected in (False, True):
        with socket.socket(FAMILY, socket.SOCK_DGRAM) as datagrams:
            if connected:
                datagrams.connect((ADDRESS, PORT))
                datagrams.send(b"x")
            else:
                datagrams.sendto(b"x", (ADDRESS, PORT))
        say("sent")


def raw():
    """Sockets below TCP and UDP."""
    for family, kind, protocol in (
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
        (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
        (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP),
    ):
        try:
            socket.socket(family, kind, protocol).close()
            say(family.name, kind.name, protocol, "opened")
        except OSError as error:
            say(family.name, kind.name, protocol, "refused")


def echo():
    """The other side: answers every connection on the port and the one above, in both families."""
    import selectors
    import threading

    def serve(connection):
        with connection:
            port = connection.getsockname()[1]
            got = connection.makefile("rb").readline()
            connection.sendall(b"port %d got %s" % (port, got))

    selector = selectors.DefaultSelector()
    for port in (PORT, PORT + 1):
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        selector.register(listener, selectors.EVENT_READ)
    say("ready")
    while True:
        for key, _ in selector.select():
            connection, _ = key.fileobj.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


try:
    {mode.__name__: mode for mode in (peer, many, udp, raw, echo)}[MODE]()
except OSError as error:
    say("error", errno.errorcode.get(error.errno, error))
