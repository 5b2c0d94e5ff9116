"""Whoever an agent could reach: listens everywhere, captures every frame, and writes down what of an attempt
arrives. An attempt's mark (`way-NAME-SETTING`) is looked for in every byte, so that nothing has to be
understood to be noticed.

outside.py LOG FIRST LAST [DEVICE CALLED PORT:SOURCE…]: in the outside world with the device that leads to the
host, whose frames are captured, and the address and ports of the host that are called again and again, out of
which ports (0: any); without, on the host itself, as an untagged bystander. FIRST to LAST are the ports to listen on.
"""

import json
import os
import re
import socket
import struct
import sys
import threading
import time

LOG, FIRST, LAST = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
DEVICE = sys.argv[4] if len(sys.argv) > 4 else None
MARK = re.compile(rb"way-[a-z0-9_]+-[a-z]+", re.IGNORECASE)
log = open(LOG, "a", buffering=1)
lock = threading.Lock()


def note(way, data, **more):
    for mark in sorted(set(MARK.findall(data))):
        with lock:
            log.write(json.dumps({"mark": mark.decode().lower(), "by": way, **more}) + "\n")


def serve_stream(listener):
    def answer(connection):
        with connection:
            connection.settimeout(10)
            data = b""
            while block := connection.recv(4096):
                data += block
                note("stream", data)
                connection.sendall(b"pong")

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=quiet, args=(answer, connection), daemon=True).start()


def serve_datagrams(sock):
    while True:
        data, who = sock.recvfrom(65_536)
        note("datagram", data)
        if who:
            quiet(sock.sendto, b"pong", who)


def quiet(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        pass


def start(function, *arguments):
    threading.Thread(target=function, args=arguments, daemon=True).start()


def listen(ports):

    for port in ports:
        stream, datagram = socket.socket(socket.AF_INET6), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        for sock in (stream, datagram):
            sock.setsockopt(41, 26, 0)
            sock.setsockopt(1, 2, 1)
            sock.bind(("::", port))
        stream.listen(512)
        start(serve_stream, stream)
        start(serve_datagrams, datagram)


def capture():
    """Every frame from the host's side: what was sent, and what begins."""
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    frames.setsockopt(1, 33, 64 << 20)
    frames.bind((DEVICE, 0))

    def run():
        while True:
            data, (_, kind, direction, *_) = frames.recvfrom(65_536)
            if direction != 4:
                note("frame", data, kind=kind)

    start(run)


def call(address, port, source):
    """Connects to the host, and reads what it is told."""
    while True:
        try:
            with socket.socket() as connection:
                connection.setsockopt(1, 2, 1)
                connection.settimeout(0.5)
                connection.bind(("0.0.0.0", source))
                connection.connect((address, port))
                note("call", connection.recv(4096))
        except OSError:
            pass
        time.sleep(0.1)


def hand_over(folder, server):
    """Gives whoever asks for it by a socket in the folder a connection to the server that it names."""
    given = set()
    while True:
        for name in os.listdir(folder):
            if not name.startswith("inbox-") or name in given:
                continue
            given.add(name)
            time.sleep(0.05)
            try:
                port = int(name.split("-")[1])
                agent = socket.socket(socket.AF_UNIX)
                agent.connect(os.path.join(folder, name))
                connection = socket.create_connection((server, port))
                kept.extend([agent, connection])
                socket.send_fds(agent, [b"."], [connection.fileno()])
            except OSError as error:
                print("not handed over:", error, file=sys.stderr, flush=True)
        time.sleep(0.02)


def play(folder):
    """Dials from where an agent dials: `dial-SOURCE-PORT` asks for it."""
    done = set()
    while True:
        for name in os.listdir(folder):
            if not name.startswith("dial-") or name in done:
                continue
            done.add(name)
            source, port = map(int, name.split("-")[1:3])
            try:
                client = socket.socket()
                client.setsockopt(1, 2, 1)
                client.setsockopt(0, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
                client.settimeout(3)
                client.bind(("127.0.0.1", source))
                client.connect(("127.0.0.1", port))
                note("dialled", client.recv(4096))
            except OSError as error:
                print("not dialled:", error, file=sys.stderr, flush=True)
        time.sleep(0.02)


kept = []
if DEVICE:
    capture()
    calls = [tuple(map(int, each.split(":"))) for each in sys.argv[6:]]
    listen([*(set(range(FIRST, LAST + 1)) - {source for _, source in calls}), 53, 443])
    for port, source in calls:
        start(call, sys.argv[5], port, source)
else:
    listen(range(FIRST, LAST + 1))
    folder, server = os.environ["FOLDER"], os.environ["SERVER"]
    unix, name = socket.socket(socket.AF_UNIX), os.environ["ABSTRACT"]
    for kind, serve in ((socket.SOCK_STREAM, serve_stream), (socket.SOCK_DGRAM, serve_datagrams)):
        for path in (os.path.join(folder, f"unix-{kind}"), f"\0{name}-{kind}"):
            sock = socket.socket(socket.AF_UNIX, kind)
            sock.bind(path)
            if path[0] != "\0":
                os.chmod(path, 0o777)
            if kind == socket.SOCK_STREAM:
                sock.listen(64)
            start(serve, sock)
    # A service that shares its port with whoever is the same user.
    shared = socket.socket()
    shared.setsockopt(1, 15, 1)
    shared.bind(("127.0.0.1", LAST + 1))
    shared.listen(512)
    start(serve_stream, shared)
    start(hand_over, folder, server)
    start(play, folder)
    # A connection that others may want.
    kept.append(socket.create_connection((server, LAST)))
    open(os.path.join(folder, "connection"), "w").write(f"{os.getpid()} {kept[-1].fileno()}")

    def courier():
        while True:
            for name in os.listdir(folder):
                if name.startswith("letter-"):
                    with open(os.path.join(folder, name), "rb") as letter:
                        data = letter.read()
                    if data:
                        note("courier", data)
                        os.unlink(os.path.join(folder, name))
            time.sleep(0.05)

    start(courier)
print("ready", flush=True)
threading.Event().wait()
