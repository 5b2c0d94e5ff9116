"""Byte streams that no honest client sends. Prints one line a stream: what came of it.

Usage: hostile.py PORT. Nothing here may run `CREATE TABLE pwned ()`.
"""

import socket
import struct
import sys

PORT = int(sys.argv[1])
SQL = b"CREATE TABLE pwned ()\0"


def message(kind, body):
    return kind + struct.pack(">i", len(body) + 4) + body


def startup(user=b"agent", version=196608, length=None, extra=b""):
    body = struct.pack(">i", version) + b"user\0" + user + b"\0database\0" + sys.argv[2].encode() + b"\0" + extra + b"\0"
    return struct.pack(">i", len(body) + 4 if length is None else length) + body


QUERY = message(b"Q", SQL)
READY = startup()
PARSE = message(b"P", b"\0" + SQL + struct.pack(">h", 0))


def bind(parameters):
    return message(b"B", b"\0\0" + struct.pack(">h", 0) + parameters)


STREAMS = {
    "nothing": b"",
    "garbage": bytes(range(256)) * 4,
    "zeros": b"\0" * 4096,
    "startup length 0": startup(length=0) + QUERY,
    "startup length 3": startup(length=3) + QUERY,
    "startup length -1": startup(length=-1) + QUERY,
    "startup length huge": startup(length=0x7FFFFFFF) + QUERY,
    "startup over the limit": startup(extra=b"application_name\0" + b"x" * 20000 + b"\0"),
    "startup unterminated": struct.pack(">ii", 20, 196608) + b"user\0agent\0x",
    "startup without user": struct.pack(">ii", 9, 196608) + b"\0",
    "protocol 2": startup(version=131072) + QUERY,
    "protocol 99": startup(version=99 << 16) + QUERY,
    "ssl request with more behind it": struct.pack(">ii", 8, 80877103) + READY + QUERY,
    "gss request with more behind it": struct.pack(">ii", 8, 80877104) + READY + QUERY,
    "ssl requests without end": struct.pack(">ii", 8, 80877103) * 1000,
    "cancel request cut short": struct.pack(">iii", 16, 80877102, 1),
    "cancel request of nobody": struct.pack(">iiii", 16, 80877102, 1, 1),
    "query instead of a password": startup(user=b"scram_user") + QUERY,
    "query with length 3": READY + b"Q" + struct.pack(">i", 3) + SQL,
    "query with length 0": READY + b"Q" + struct.pack(">i", 0) + SQL,
    "query with length -1": READY + b"Q" + struct.pack(">i", -1) + SQL,
    "query over the limit": READY + b"Q" + struct.pack(">i", 0x7FFFFFFF) + SQL,
    "query too long for its text": READY + b"Q" + struct.pack(">i", len(SQL) + 4 + 10) + SQL,
    "query without terminator": READY + message(b"Q", SQL[:-1]),
    "query with a zero inside": READY + message(b"Q", b"SELECT 1\0; " + SQL),
    "unknown message": READY + message(b"@", b"x"),
    "server's message": READY + message(b"Z", b"I"),
    "password out of place": READY + message(b"p", b"secret\0"),
    "copy data out of place": READY + message(b"d", SQL) + message(b"c", b""),
    "parse without terminator": READY + message(b"P", b"\0SELECT 1"),
    "parse with too many types": READY + message(b"P", b"\0" + SQL + struct.pack(">h", 100)),
    "bind longer than its message": READY + PARSE + bind(struct.pack(">hi", 1, 1000) + b"x"),
    "bind with a negative count": READY + PARSE + bind(struct.pack(">h", -5)),
    "bind with length -2": READY + PARSE + bind(struct.pack(">hi", 1, -2)),
    "execute of nothing": READY + message(b"E", b"nowhere\0" + struct.pack(">i", 0)) + message(b"S", b""),
    "describe of an unknown kind": READY + message(b"D", b"Xname\0"),
    "sync with a body": READY + message(b"S", SQL),
    "function call cut short": READY + message(b"F", struct.pack(">ih", 1, 1)),
}


def outcome(stream):
    with socket.create_connection(("127.0.0.1", PORT), timeout=10) as connection:
        answer = b""
        try:
            connection.sendall(stream)
            connection.shutdown(socket.SHUT_WR)
            while block := connection.recv(65536):
                answer += block
        except TimeoutError:
            return "hung", answer
        except OSError:
            return "cut", answer
        return "closed", answer


for name, stream in STREAMS.items():
    how, answer = outcome(stream)
    print(f"{name}: {how}, {len(answer)} bytes", flush=True)
