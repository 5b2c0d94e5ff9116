"""Somebody else's UNIX sockets: writes down what reaches each, and answers.

unix_server.py LOG KIND:NAME…: `stream`, `datagram` or `packets`; `@` begins an abstract name. Asked by HTTP,
a stream answers so. `hand NAME`, on its input, gives whoever listens there a new datagram socket of its own,
`pass NAME TARGET` a stream that is connected to that.
"""

import os
import socket
import sys
import threading

KINDS = {
    "stream": socket.SOCK_STREAM,
    "datagram": socket.SOCK_DGRAM,
    "packets": socket.SOCK_SEQPACKET,
}


def note(name, said):
    with open(sys.argv[1], "a") as log:
        log.write(f"{name} {said}\n")


def address(name):
    return "\0" + name[1:] if name.startswith("@") else name


def talk(client, name):
    # Whoever connects is seen, said or not.
    note(name, "connected")
    while asked := client.recv(9999):
        note(name, asked.split(b"\n")[0].decode().strip())
        if asked.startswith(b"GET "):
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nserved")
        else:
            client.sendall(b"served\n")
    client.close()


def accept(server, name):
    while True:
        client, _ = server.accept()
        threading.Thread(target=talk, args=[client, name], daemon=True).start()


def take(server, name):
    while True:
        note(name, server.recv(9999).decode().strip())


for argument in sys.argv[2:]:
    kind, name = argument.split(":", 1)
    server = socket.socket(socket.AF_UNIX, KINDS[kind])
    server.bind(address(name))
    if not name.startswith("@"):
        os.chmod(name, 0o777)
    if kind == "datagram":
        work = take
    else:
        server.listen()
        work = accept
    threading.Thread(target=work, args=[server, name], daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    what, name, *target = line.split()
    with socket.socket(socket.AF_UNIX) as inbox:
        inbox.connect(address(name))
        gift = socket.socket(socket.AF_UNIX, KINDS["datagram" if what == "hand" else "stream"])
        if target:
            gift.connect(address(target[0]))
        socket.send_fds(inbox, [b"x"], [gift.fileno()])
    print("handed", flush=True)
