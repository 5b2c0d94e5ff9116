"""A hostile process that tries the ways past the hooks, each in a process of its own, and says for each what
stopped it, as `escape.py` does, whose attempts it knows as well.

ways_out.py WORLD RUN NAME:PORT:MARK…: WORLD is a JSON file that says what is outside, see `ways_out.rs`. Every
attempt has a port and a mark of its own, and does all it can to have the mark arrive there. `out` means that the
attempt was let through and answered; `sent`, that nothing refused what it sent; `closed`, that it was met by
somebody who ended it. Whether the mark arrived is for the other side to say.
"""

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import escape
from escape import LIBC, NEWNET, WORLD, attempt, call, libc

PORT, MARK = 0, b""
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
# Whatever is found out about an agent is found out within a second.
NOTICED = 1.3


def outside(port=None):
    return WORLD["server"], port or PORT


def talk(connection):
    """Says the mark, and whether it was answered."""
    connection.settimeout(5)
    connection.sendall(MARK + b"\n")
    return "out" if b"pong" in connection.recv(99) else "closed"


def stream(address, family=socket.AF_INET, prepare=lambda sock: None):
    with socket.socket(family, TCP) as sock:
        sock.settimeout(5)
        prepare(sock)
        sock.connect(address)
        return talk(sock)


def datagram(address, family=socket.AF_INET, prepare=lambda sock: None, data=None):
    with socket.socket(family, UDP) as sock:
        sock.settimeout(2)
        prepare(sock)
        sock.sendto(data or MARK, address)
        return heard(sock)


def heard(sock):
    try:
        return "out" if sock.recv(99) else "closed"
    except TimeoutError:
        return "sent"


def disconnect(sock):
    libc("connect", sock.fileno(), struct.pack("H14x", 0), 16)


# What is plain.


@attempt
def tcp():
    return stream(outside())


@attempt
def tcp6():
    return stream((WORLD["server6"], PORT), socket.AF_INET6)


@attempt
def allowed():
    return stream(outside(WORLD["allowed"]))


@attempt
def v4_mapped():
    return stream((f"::ffff:{WORLD['server']}", PORT), socket.AF_INET6)


@attempt
def v4_mapped_datagram():
    return datagram((f"::ffff:{WORLD['server']}", PORT), socket.AF_INET6)


@attempt
def loopback_relay():
    return stream(("127.0.0.1", PORT))


@attempt
def loopback_relay6():
    return stream(("::1", PORT), socket.AF_INET6)


@attempt
def unspecified_address():
    return stream(("0.0.0.0", PORT))


@attempt
def hosts_own_address():
    return stream((WORLD["host"], PORT))


@attempt
def loopback_datagram():
    return datagram(("127.0.0.1", PORT))


# Sockets below TCP and UDP.


def opens(family, kind, protocol):
    with socket.socket(family, kind, protocol) as sock:
        if kind == TCP:
            sock.settimeout(5)
            sock.connect(outside())
            return talk(sock)
        sock.sendto(b"\x08\0\0\0\0\0\0\0" + MARK, outside() if kind == UDP else (WORLD["server"], 0))
        return "sent"


for NAME, OF in {
    "ping": (socket.AF_INET, UDP, 1), "raw_icmp": (socket.AF_INET, 3, 1), "raw_header": (socket.AF_INET, 3, 255),
    "mptcp": (socket.AF_INET, TCP, 262), "sctp": (socket.AF_INET, TCP, 132), "sctp_packets": (socket.AF_INET, 5, 132),
    "udp_lite": (socket.AF_INET, UDP, 136), "dccp": (socket.AF_INET, 6, 33), "smc": (socket.AF_INET, TCP, 256),
    "l2tp": (socket.AF_INET, UDP, 115), "gre": (socket.AF_INET, 3, 47),
}.items():
    escape.ATTEMPTS[NAME] = lambda of=OF: opens(*of)


@attempt
def packet_frame():
    with socket.socket(socket.AF_PACKET, 3, 0) as sock:
        sock.bind((WORLD["device"], 0))
        sock.send(b"\xff" * 6 + b"\x02" + bytes(5) + b"\x88\xb5" + MARK)
        time.sleep(NOTICED)
    return "sent"


@attempt
def xdp():
    with_descriptor(44, 3)


@attempt
def vsock():
    sock = call(41 if escape.X86 else 198, 40, 1, 0)
    time.sleep(NOTICED)
    if LIBC.connect(sock, struct.pack("HHIIB3x", 40, 0, PORT, 2, 0), 16):
        raise OSError(ctypes.get_errno(), "connect")


def with_descriptor(family, kind):
    call(41 if escape.X86 else 198, family, kind, 0)
    time.sleep(NOTICED)


@attempt
def every_other_family():
    """Says which families can be had, but for those that have rows of their own."""
    had = []
    for family in set(range(1, 64)) - {1, 2, 10, 16, 17, 40, 44}:
        for kind in (1, 2, 3, 5):
            sock = LIBC.socket(family, kind, 0)
            if sock >= 0:
                os.close(sock)
                had.append(str(family))
                break
    return "none" if not had else " ".join(had)


# TCP by other means.


@attempt
def fast_open():
    with socket.socket() as sock:
        for option in (20, 21):  # A socket that doesn't block would have to be asked again.
            sock.setsockopt(1, option, struct.pack("ll", 5, 0))
        sock.sendto(MARK + b"\n", socket.MSG_FASTOPEN, outside())
        return "out" if b"pong" in sock.recv(99) else "closed"


@attempt
def fast_open_connect():
    return stream(outside(), prepare=lambda sock: sock.setsockopt(6, 30, 1))


@attempt
def simultaneous_open():
    """Both ends dial, and nobody listens: out of a port that a server outside dials all the time."""
    with socket.socket() as sock:
        sock.setsockopt(1, 2, 1)
        sock.settimeout(3)
        sock.bind((WORLD["host"], WORLD["called"][1]))
        sock.connect(outside())
        return talk(sock)


@attempt
def self_connect():
    """A socket that dials itself, and a byte of which nobody else may learn."""
    with socket.socket() as sock:
        sock.settimeout(2)
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        sock.send(MARK)
        return "itself" if sock.recv(99) == MARK else "closed"


@attempt
def used_again():
    """Connected where it may, then elsewhere, with the same socket."""
    with socket.socket() as sock:
        sock.settimeout(5)
        sock.connect(outside(WORLD["allowed"]))
        sock.sendall(b"this may\n")
        assert b"pong" in sock.recv(99)
        disconnect(sock)
        sock.connect(outside())
        return talk(sock)


@attempt
def used_again_from_within():
    """Connected within the agent, then outside."""
    with socket.create_server(("127.0.0.1", 0)) as own, socket.socket() as sock:
        sock.settimeout(5)
        sock.connect(own.getsockname())
        disconnect(sock)
        sock.connect(outside())
        return talk(sock)


@attempt
def accepted_used_again():
    """What was accepted from within the agent, then outside."""
    with socket.create_server(("0.0.0.0", 0)) as own, socket.create_connection(own.getsockname()):
        sock, _ = own.accept()
        disconnect(sock)
        sock.settimeout(5)
        sock.connect(outside())
        return talk(sock)


@attempt
def listener_used_again():
    with socket.create_server(("0.0.0.0", 0)) as sock:
        disconnect(sock)
        sock.settimeout(5)
        sock.connect(outside())
        return talk(sock)


@attempt
def two_connects_at_once():
    """One socket, two threads, two destinations: the note of one with the connection of the other."""
    answers = set()
    for _ in range(200):
        with socket.socket() as sock:
            sock.settimeout(2)
            ready = threading.Barrier(2)

            def connect(port):
                ready.wait()
                sock.connect_ex(outside(port))

            threads = [threading.Thread(target=connect, args=(port,)) for port in (WORLD["allowed"], PORT)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            try:
                told = sock.getpeername()[1]
                if told == PORT:
                    answers.add(talk(sock))
            except OSError as error:
                answers.add(errno.errorcode[error.errno])
    return "out" if "out" in answers else "closed"


@attempt
def fixed_source_port():
    """By turns where it may and where it may not, from one port."""
    source, answers = 0, set()
    for number in range(200):
        with socket.socket() as sock:
            sock.setsockopt(1, 2, 1)
            sock.setsockopt(1, 13, struct.pack("ii", 1, 0))
            sock.settimeout(5)
            sock.bind(("0.0.0.0", source))
            source = sock.getsockname()[1]
            try:
                sock.connect(outside(PORT if number % 2 else WORLD["allowed"]))
                if number % 2:
                    answers.add(talk(sock))
            except OSError as error:
                if number % 2:
                    answers.add(errno.errorcode[error.errno])
    return "out" if "out" in answers else "closed"


@attempt
def thousands_at_once():
    """As many half open as descriptors go, then one more."""
    socks = []
    for _ in range(900):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(outside())
        socks.append(sock)
    try:
        return stream(outside())
    finally:
        for sock in socks:
            sock.close()


@attempt
def flood_of_refusals():
    """What is told of what is refused overflows; then a connect."""
    with socket.socket(type=UDP) as sock:
        for _ in range(50_000):
            try:
                sock.sendto(b"x", outside())
            except OSError:
                pass
    return stream(outside())


@attempt
def no_memory_for_a_note():
    """The memory that a socket may have for options is used up."""

    def fill(sock):
        code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF) * 4000)
        program = struct.pack("HxxxxxxQ", 4000, ctypes.addressof(code))
        try:
            for _ in range(64):
                sock.setsockopt(1, 26, program)
        except OSError:
            pass

    return stream(outside(), prepare=fill)


@attempt
def another_device():
    return stream(outside(), prepare=lambda sock: sock.setsockopt(1, 25, WORLD["device"].encode()))


@attempt
def another_device_later():
    """Bound to the device once it is connected."""
    with socket.socket() as sock:
        sock.settimeout(5)
        sock.connect(outside())
        sock.setsockopt(1, 25, WORLD["device"].encode())
        return talk(sock)


@attempt
def another_device_datagram():
    return datagram(outside(), prepare=lambda sock: sock.setsockopt(1, 25, WORLD["device"].encode()))


@attempt
def device_of_a_datagram():
    """IP_PKTINFO says where it leaves."""
    with socket.socket(type=UDP) as sock:
        index = socket.if_nametoindex(WORLD["device"])
        sock.sendmsg([MARK], [(0, 8, struct.pack("iII", index, 0, 0))], 0, outside())
    return "sent"


@attempt
def dns_out_of_a_device():
    with socket.socket(type=UDP) as sock:
        index = socket.if_nametoindex(WORLD["device"])
        sock.sendmsg([query()], [(0, 8, struct.pack("iII", index, 0, 0))], 0, outside(53))
    return "sent"


@attempt
def marked():
    return stream(outside(), prepare=lambda sock: sock.setsockopt(1, 36, 1))


@attempt
def as_somebody_else():
    os.setgroups([])
    os.setresgid(7, 7, 7)
    os.setresuid(7, 7, 7)
    return stream(outside())


@attempt
def put_together_by_hand():
    """TCP_REPAIR: a connection without a handshake."""

    def repair(sock):
        sock.setsockopt(6, 19, 1)

    return stream(outside(), prepare=repair)


@attempt
def upper_layer():
    return stream(outside(), prepare=lambda sock: sock.setsockopt(6, 31, b"espintcp"))


@attempt
def i386_connect():
    """socketcall of 32-bit programs, by the gate that they use."""
    if not escape.X86:
        raise OSError(errno.ENOSYS, "another machine")
    low = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7)
    base = ctypes.addressof(ctypes.c_char.from_buffer(low))
    # push rbx; mov eax, edi; mov ebx, esi; mov ecx, edx; int 0x80; pop rbx; ret
    low.write(b"\x53\x89\xf8\x89\xf3\x89\xd1\xcd\x80\x5b\xc3")
    gate = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)(base)
    with socket.socket() as sock:
        low[4096:4108] = struct.pack("III", sock.fileno(), base + 4200, 16)
        low[4200:4216] = struct.pack("!2xH4s8x", PORT, socket.inet_aton(WORLD["server"]))
        low[4200:4202] = struct.pack("H", 2)
        result = gate(102, 3, base + 4096)
        if result < 0:
            raise OSError(-result, "int 0x80")
        return talk(sock)


# io_uring, without a library.


class Ring:
    def __init__(self, flags=0):
        parameters = ctypes.create_string_buffer(120)
        struct.pack_into("II", parameters, 8, flags, 500)
        self.fd = call(425, 8, parameters)
        self.sq = struct.unpack_from("10I", parameters, 40)
        self.cq = struct.unpack_from("10I", parameters, 80)
        self.flags = flags
        size = max(self.sq[6] + 4 * 8, self.cq[5] + 16 * 16)
        self.rings = mmap.mmap(self.fd, size, offset=0)
        self.entries = mmap.mmap(self.fd, 8 * 64, offset=0x10000000)

    def do(self, operation, fd, address=0, length=0, offset=0, extra=b""):
        entry = struct.pack("BBHiQQI", operation, 0, 0, fd, offset, address, length) + extra
        self.entries[0:64] = entry.ljust(64, b"\0")
        tail = struct.unpack_from("I", self.rings, self.sq[1])[0]
        mask = struct.unpack_from("I", self.rings, self.sq[2])[0]
        struct.pack_into("I", self.rings, self.sq[6] + 4 * (tail & mask), 0)
        struct.pack_into("I", self.rings, self.sq[1], tail + 1)
        call(426, self.fd, 1, 1, 3 if self.flags & 2 else 1, None, 0)
        head = struct.unpack_from("I", self.rings, self.cq[0])[0]
        mask = struct.unpack_from("I", self.rings, self.cq[2])[0]
        result = struct.unpack_from("i", self.rings, self.cq[5] + 16 * (head & mask) + 8)[0]
        struct.pack_into("I", self.rings, self.cq[0], head + 1)
        if result < 0:
            raise OSError(-result, "io_uring")
        return result


def ring_connects(flags):
    ring = Ring(flags)
    sock = socket.socket(fileno=ring.do(45, 2, length=0, offset=TCP))
    address = ctypes.create_string_buffer(struct.pack("=H", 2) + struct.pack("!H4s8x", PORT, socket.inet_aton(WORLD["server"])))
    ring.do(16, sock.fileno(), ctypes.addressof(address), offset=16)
    return talk(sock)


@attempt
def ring_connect():
    return ring_connects(0)


@attempt
def ring_with_a_thread():
    return ring_connects(2)


@attempt
def ring_send():
    ring, sock = Ring(), socket.socket(type=UDP)
    address = ctypes.create_string_buffer(struct.pack("=H", 2) + struct.pack("!H4s8x", PORT, socket.inet_aton(WORLD["server"])))
    text = ctypes.create_string_buffer(MARK)
    part = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(text), len(MARK)))
    header = ctypes.create_string_buffer(struct.pack("QIxxxxQQQQixxxx", ctypes.addressof(address), 16, ctypes.addressof(part), 1, 0, 0, 0))
    ring.do(9, sock.fileno(), ctypes.addressof(header), 1)
    return heard_soon(sock)


@attempt
def ring_option():
    """An option that is refused, set through a ring."""
    ring, sock = Ring(), socket.socket()
    value = ctypes.create_string_buffer(struct.pack("i", 1))
    # SOCKET_URING_OP_SETSOCKOPT: level and number stand in the address, the length beside the file.
    entry = struct.pack("II", 6, 19)
    ring.do(46, sock.fileno(), struct.unpack("Q", entry)[0], 0, 3,
            struct.pack("I", 0) + bytes(12) + struct.pack("I", 4) + struct.pack("Q", ctypes.addressof(value)))
    return "out"


def heard_soon(sock):
    sock.settimeout(2)
    return heard(sock)


# Datagrams.


@attempt
def udp_unconnected():
    return datagram(outside())


@attempt
def udp_connected():
    with socket.socket(type=UDP) as sock:
        sock.connect(outside())
        sock.send(MARK)
        return heard_soon(sock)


@attempt
def udp_connected_for_names_sent_elsewhere():
    with socket.socket(type=UDP) as sock:
        sock.connect(outside(53))
        sock.sendto(MARK, outside())
        return heard_soon(sock)


@attempt
def udp_many():
    """sendmmsg: the first one is a question, the second isn't."""
    with socket.socket(type=UDP) as sock:
        headers, keep = b"", []
        for data, port in ((query(), 53), (MARK, PORT)):
            address = ctypes.create_string_buffer(struct.pack("=H", 2) + struct.pack("!H4s8x", port, socket.inet_aton(WORLD["server"])))
            text = ctypes.create_string_buffer(data, len(data))
            part = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(text), len(data)))
            keep += [address, text, part]
            headers += struct.pack("QIxxxxQQQQixxxxIxxxx", ctypes.addressof(address), 16, ctypes.addressof(part), 1, 0, 0, 0, 0)
        buffer = ctypes.create_string_buffer(headers, len(headers))
        if LIBC.sendmmsg(sock.fileno(), buffer, 2, 0) < 2:
            raise OSError(errno.EPERM, "only the first")
    return "sent"


@attempt
def udp_corked():
    with socket.socket(type=UDP) as sock:
        sock.sendto(MARK, socket.MSG_MORE, outside())
        sock.setsockopt(17, 1, 0)
        return heard_soon(sock)


@attempt
def udp_segments():
    """One send, many packets."""

    def cut(sock):
        sock.setsockopt(17, 103, 100)

    return datagram(outside(), prepare=cut, data=(MARK + b" ") * 20)


@attempt
def udp_fragments():
    return datagram(outside(), data=(MARK + b" ") * 400)


@attempt
def udp_with_options():
    """IP_RETOPTS: a loose source route with every datagram."""
    with socket.socket(type=UDP) as sock:
        route = b"\x83\x07\x04" + socket.inet_aton(WORLD["server"]) + b"\0"
        sock.sendmsg([MARK], [(0, 7, route)], 0, outside())
    return "sent"


@attempt
def udp6_with_headers():
    with socket.socket(socket.AF_INET6, UDP) as sock:
        padding = b"\0\0\x01\x04\0\0\0\0"
        sock.sendmsg([MARK], [(41, 54, padding)], 0, (WORLD["server6"], PORT))
    return "sent"


@attempt
def quic():
    first = b"\xc3\0\0\0\x01\x08" + bytes(8) + b"\0\0\x44\xd0" + MARK
    return datagram(outside(443), data=first.ljust(1200, b"\0"))


@attempt
def multicast():
    return datagram(("224.0.0.251", PORT))


@attempt
def broadcast():
    return datagram(("255.255.255.255", PORT), prepare=lambda sock: sock.setsockopt(1, 6, 1))


@attempt
def join():
    """The network is told of the group, whose address holds what one likes."""
    with socket.socket(type=UDP) as sock:
        sock.setsockopt(0, 35, socket.inet_aton("239.1.2.3") + socket.inet_aton(WORLD["host"]))
        return "sent"


@attempt
def source_route():
    return stream(outside(), prepare=lambda sock: sock.setsockopt(0, 4, b"\x83\x07\x04" + socket.inet_aton(WORLD["server"])))


@attempt
def link_local():
    return stream(("fe80::1", PORT, 0, socket.if_nametoindex(WORLD["device"])), socket.AF_INET6)


@attempt
def link_local_datagram():
    return datagram(("fe80::1", PORT, 0, socket.if_nametoindex(WORLD["device"])), socket.AF_INET6)


@attempt
def metadata_service():
    return stream(("169.254.169.254", PORT))


# Names.


def query(name=None):
    label = name or MARK
    return struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + bytes([len(label)]) + label + b"\x06tunnel\x04test\0\0\x10\0\x01"


def answer_code(answer):
    return {0: "out", 3: "NXDOMAIN", 5: "REFUSED"}.get(answer[3] & 15, f"code {answer[3] & 15}")


@attempt
def dns_tunnel():
    with socket.socket(type=UDP) as sock:
        sock.settimeout(5)
        sock.sendto(query(), outside(53))
        return answer_code(sock.recv(999))


@attempt
def dns_tunnel_tcp():
    with socket.create_connection(outside(53), 5) as sock:
        sock.sendall(struct.pack("!H", len(query())) + query())
        return answer_code(sock.recv(999)[2:])


@attempt
def dns_of_a_local_resolver():
    with socket.socket(type=UDP) as sock:
        sock.settimeout(5)
        sock.sendto(query(), ("127.0.0.53", 53))
        return answer_code(sock.recv(999))


@attempt
def not_a_question():
    with socket.socket(type=UDP) as sock:
        sock.settimeout(2)
        sock.sendto((MARK + b" ") * 3, outside(53))
        try:
            return answer_code(sock.recv(999))
        except TimeoutError:
            return "unanswered"


@attempt
def behind_the_question():
    with socket.socket(type=UDP) as sock:
        sock.settimeout(5)
        sock.sendto(query(b"plain") + MARK, outside(53))
        return answer_code(sock.recv(999))


@attempt
def fronted():
    """Plain HTTP that names a host that isn't the one that is dialled."""
    with socket.create_connection(outside(), 5) as sock:
        sock.sendall(b"GET /" + MARK + b" HTTP/1.1\r\nHost: allowed.test\r\n\r\n")
        return sock.recv(99).split(b"\r")[0].decode()


# The daemon's own ports, and those of others.


@attempt
def the_proxy_itself():
    return stream(("127.0.0.1", WORLD["proxy"]))


@attempt
def the_forwarder_itself():
    return datagram(("127.64.0.1", WORLD["forwarder"]), data=query())


def bind(port, kind, *options):
    with socket.socket(type=kind) as sock:
        for option in options:
            sock.setsockopt(1, option, 1)
        sock.bind(("127.0.0.1", port))


@attempt
def the_proxys_port():
    bind(WORLD["proxy"], TCP)


@attempt
def the_proxys_port_shared():
    bind(WORLD["proxy"], TCP, 15, 2)


@attempt
def the_forwarders_port_shared():
    bind(WORLD["forwarder"], UDP, 15, 2)


@attempt
def shared_port():
    """A service's port is shared, so that the kernel takes a connect to it for one within the agent, and a
    filter has the connection go to the service after all."""
    port = WORLD["shared"]
    with socket.socket() as own:
        own.setsockopt(1, 15, 1)
        own.bind(("127.0.0.1", port))
        own.listen(64)
        # BPF_RET of 0: whoever listens first.
        code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
        try:
            own.setsockopt(1, 51, struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))
        except PermissionError:
            pass  # Who gets a connect is up to chance then.
        for _ in range(30):
            try:
                with socket.socket() as sock:
                    sock.settimeout(0.3)
                    sock.connect(("127.0.0.1", port))
                    sock.sendall(MARK)
                    if sock.recv(9) == b"pong":
                        return "out"
            except OSError:
                pass
    return "closed"


@attempt
def bind_shell():
    """Waits for somebody outside to call."""
    with socket.create_server(("0.0.0.0", WORLD["called"][0])) as own:
        own.settimeout(2)
        caller, _ = own.accept()
        caller.sendall(MARK)
        time.sleep(0.2)
    return "out"


@attempt
def dialled_from_its_own_port():
    """A bystander dials the agent from the very port from which the agent dials itself."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        own = socket.socket()
        own.setsockopt(1, 2, 1)
        own.bind(("127.0.0.1", 0))
        own.connect(one.getsockname())
        source, port = own.getsockname()[1], two.getsockname()[1]
        open(f"{WORLD['writable']}/dial-{source}-{port}", "w").close()
        two.settimeout(2)
        caller, _ = two.accept()
        caller.sendall(MARK)
        time.sleep(0.2)
    return "out"


# What others have.


@attempt
def handed_over():
    """A connection that an accomplice dialled, by a socket of the agent's own."""
    path = f"{WORLD['writable']}/inbox-{PORT}-{MARK.decode()}"
    with socket.socket(socket.AF_UNIX) as inbox:
        inbox.bind(path)
        os.chmod(path, 0o777)
        inbox.listen(1)
        inbox.settimeout(5)
        helper, _ = inbox.accept()
        _, files, _, _ = socket.recv_fds(helper, 1, 1)
    time.sleep(NOTICED)
    return talk(socket.socket(fileno=files[0]))


@attempt
def taken_over():
    """pidfd_getfd of a bystander's connection."""
    pid, number = map(int, open(f"{WORLD['writable']}/connection").read().split())
    sock = socket.socket(fileno=call(438, call(434, pid, 0), number, 0))
    time.sleep(NOTICED)
    return talk(sock)


@attempt
def opened_by_name():
    """A bystander's connection as a file."""
    pid, number = map(int, open(f"{WORLD['writable']}/connection").read().split())
    os.close(os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR))


@attempt
def from_before():
    """What was open before the tag."""
    return talk(OLD[0])


@attempt
def from_before_datagram():
    OLD[1].send(MARK)
    return heard_soon(OLD[1])


@attempt
def unix_stream():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{WORLD['writable']}/unix-1")
        return talk(sock)


@attempt
def unix_datagram():
    with socket.socket(socket.AF_UNIX, UDP) as sock:
        sock.sendto(MARK, f"{WORLD['writable']}/unix-2")
    return "sent"


@attempt
def unix_abstract():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"\0{WORLD['bystander']}-1")
        return talk(sock)


@attempt
def unix_by_a_link():
    """By a name that is the agent's own, and leads to somebody else."""
    own = f"{WORLD['writable']}/own-{PORT}-{MARK.decode()}"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as sock:
        server.bind(own)
        server.listen()
        os.rename(own, own + "-moved")
        os.symlink(f"{WORLD['writable']}/unix-1", own)
        sock.connect(own)
        return talk(sock)


@attempt
def unix_connected_datagram():
    with socket.socket(socket.AF_UNIX, UDP) as sock:
        sock.connect(f"{WORLD['writable']}/unix-2")
        sock.send(MARK)
    return "sent"


@attempt
def unix_pair_sent_elsewhere():
    """A datagram out of a pair that was connected without a name."""
    one, _other = socket.socketpair(socket.AF_UNIX, UDP)
    one.sendto(MARK, f"{WORLD['writable']}/unix-2")
    return "sent"


@attempt
def unix_ring():
    """By io_uring, whose system call nothing else sees into."""
    ring, sock = Ring(), socket.socket(socket.AF_UNIX)
    name = b"\0" + f"{WORLD['bystander']}-1".encode()
    address = ctypes.create_string_buffer(struct.pack("=H", 1) + name)
    ring.do(16, sock.fileno(), ctypes.addressof(address), offset=2 + len(name))
    return talk(sock)


@attempt
def unix_from_before():
    """A socket that was made before the tag, and not yet connected."""
    OLD[2].connect(f"{WORLD['writable']}/unix-1")
    return talk(OLD[2])


@attempt
def courier():
    """A file that somebody else reads and sends on."""
    with open(f"{WORLD['writable']}/letter-{MARK.decode()}", "wb") as letter:
        letter.write(MARK)
    time.sleep(0.3)
    return "out"


# Other networks.


@attempt
def namespace_of_its_own():
    call(escape.UNSHARE, NEWNET)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return stream(outside())


@attempt
def there_and_back():
    """Into a network of its own and back to the host's."""
    host = os.open("/proc/self/ns/net", os.O_RDONLY)
    call(escape.UNSHARE, NEWNET)
    call(escape.SETNS, host, NEWNET)
    return stream(outside())


@attempt
def relay_out_of_a_namespace():
    """As slirp does it: a network of its own, and somebody of the agent who dials for it."""
    inside, dialler = socket.socketpair()
    if os.fork() == 0:
        call(escape.UNSHARE, NEWNET)
        inside.sendall(MARK + b"\n")
        os._exit(0)
    with socket.create_connection(outside(), 5) as sock:
        sock.sendall(dialler.recv(99))
        return "out" if b"pong" in sock.recv(99) else "closed"


def pair(function):
    """A pair of devices from a network of its own to the host's; ends with that."""
    names, (reader, writer) = (f"itw{PORT}a", f"itw{PORT}b"), os.pipe()
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            call(escape.UNSHARE, NEWNET)
            os.write(go, b".")
            time.sleep(0.5)
            for line in (f"addr add 198.51.100.1/31 dev {names[1]}", f"link set {names[1]} up", "link set lo up"):
                subprocess.run(["ip", *line.split()], check=True)
            text = function(names[1]) or "sent"
        except OSError as error:
            text = errno.errorcode[error.errno]
        os.write(writer, text.encode())
        os._exit(0)
    os.read(ready, 1)
    subprocess.run(["ip", "link", "add", names[0], "type", "veth", "peer", names[1], "netns", str(child)], check=True)
    subprocess.run(["ip", "addr", "add", "198.51.100.0/31", "dev", names[0]], check=True)
    subprocess.run(["ip", "link", "set", names[0], "up"], check=True)
    os.close(writer)
    text = os.read(reader, 99).decode()
    os.waitpid(child, 0)
    return text


@attempt
def pair_to_the_host():
    return pair(lambda device: stream(("198.51.100.0", PORT)))


@attempt
def pair_to_the_host_datagram():
    return pair(lambda device: datagram(("198.51.100.0", PORT)))


@attempt
def cgroup_below():
    inner = f"{WORLD['own_cgroup']}/inner"
    os.makedirs(inner, exist_ok=True)
    open(f"{inner}/cgroup.procs", "w").write("0")
    return stream(outside())


@attempt
def another_cgroup():
    """Out of the agent's cgroup."""
    open(f"{WORLD['cgroup']}/cgroup.procs", "w").write("0")
    text = stream(outside())
    time.sleep(NOTICED)
    return text


@attempt
def born_elsewhere():
    """CLONE_INTO_CGROUP: a child that never was in the agent's."""
    folder = os.open(WORLD["cgroup"], os.O_RDONLY | os.O_DIRECTORY)
    arguments = struct.pack("11Q", escape.INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, folder)
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    child = call(escape.CLONE3, buffer, len(arguments))
    if child == 0:
        try:
            stream(outside())
            time.sleep(NOTICED)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return "out"


@attempt
def link_detached():
    """BPF_LINK_DETACH of the pinned hook."""
    for folder, _, names in os.walk(WORLD["pins"]):
        if "agent_connect4" in names:
            path = ctypes.create_string_buffer(os.path.join(folder, "agent_connect4").encode())
            link = call(escape.BPF, 7, ctypes.create_string_buffer(struct.pack("QII", ctypes.addressof(path), 0, 0)), 16)
            call(escape.BPF, 34, ctypes.create_string_buffer(struct.pack("I", link)), 4)
    return stream(outside())


@attempt
def daemon_stopped():
    """The daemon stands still."""
    os.kill(WORLD["daemon"], signal.SIGSTOP)
    try:
        return stream(outside())
    finally:
        os.kill(WORLD["daemon"], signal.SIGCONT)


@attempt
def bystander_traced():
    """PTRACE_ATTACH of a process that isn't the agent's."""
    escape.ATTEMPTS["ptrace_outside"]()


def tried(name, port, mark):
    global PORT, MARK
    PORT, MARK = int(port), mark.encode()
    signal.alarm(20)
    return escape.ATTEMPTS[name]()


if __name__ == "__main__":
    with open(sys.argv[1]) as world:
        WORLD.update(json.load(world))
    WORLD["run"] = sys.argv[2]
    OLD = []
    if WORLD.get("wait"):
        OLD = [socket.create_connection(outside(WORLD["allowed"])), socket.socket(type=UDP), socket.socket(socket.AF_UNIX)]
        OLD[1].connect(outside(WORLD["allowed"]))
    open(f"{WORLD['writable']}/ready-{WORLD['run']}", "w").close()
    while WORLD.get("wait") and not os.path.exists(f"{WORLD['writable']}/go-{WORLD['run']}"):
        time.sleep(0.01)
    for EACH in sys.argv[3:]:
        print(EACH.split(":")[0], escape.outcome(lambda: tried(*EACH.split(":"))), flush=True)
