"""A process that does with UNIX sockets what it is told, a line at a time, and says what came of it.

unix_agent.py UID [CGROUP]: becomes that user. Given a cgroup it makes what `keep` keeps outside of it and
moves there itself, before it says `ready`.

    connect KIND NAME       a new socket, connected; something is said and answered
    send NAME               a datagram to it
    keep KEY KIND [NAME]    a new socket of that key, connected where a name is given
    use KEY NAME            that socket, connected, and spoken by
    sendby KEY NAME         that socket, to send a datagram by
    say KEY                 what is connected already, spoken by
    listen KIND NAME        serves there, as a process of its own would
    take KEY NAME           listens there for a socket that somebody hands over
"""

import errno
import os
import shlex
import socket
import sys
import threading

KINDS = {
    "stream": socket.SOCK_STREAM,
    "datagram": socket.SOCK_DGRAM,
    "packets": socket.SOCK_SEQPACKET,
}
KEPT = []
BY_KEY = {}


def address(name):
    return "\0" + name[1:] if name.startswith("@") else name


def new(kind):
    made = socket.socket(socket.AF_UNIX, KINDS[kind])
    made.settimeout(5)
    return made


def talk(client):
    client.sendall(b"hello\n")
    if client.type == socket.SOCK_DGRAM:
        return "sent"
    return client.recv(99).decode().strip() or "closed"


def connect(kind, name):
    with new(kind) as client:
        client.connect(address(name))
        return talk(client)


def send(name):
    with new("datagram") as client:
        client.sendto(b"hello\n", address(name))
    return "sent"


def keep(key, kind, name=None):
    BY_KEY[key] = new(kind)
    if name:
        BY_KEY[key].connect(address(name))
    return "kept"


def use(key, name):
    BY_KEY[key].connect(address(name))
    return talk(BY_KEY[key])


def sendby(key, name):
    BY_KEY[key].sendto(b"hello\n", address(name))
    return "sent"


def say(key):
    return talk(BY_KEY[key])


def listen(kind, name):
    server = new(kind)
    server.settimeout(None)
    server.bind(address(name))
    KEPT.append(server)
    if kind != "datagram":
        server.listen()
        threading.Thread(target=serve, args=[server], daemon=True).start()
    return "listens"


def serve(server):
    while True:
        client, _ = server.accept()
        if client.recv(99):
            client.sendall(b"own\n")
        client.close()


def take(key, name):
    with new("stream") as inbox:
        inbox.bind(address(name))
        inbox.listen()
        print("waits", flush=True)
        helper, _ = inbox.accept()
        _, files, _, _ = socket.recv_fds(helper, 1, 1)
        BY_KEY[key] = socket.socket(fileno=files[0])
    return "taken"


def main():
    uid, cgroup = int(sys.argv[1]), sys.argv[2:]
    if cgroup:
        # Born out here, and so is what they are connected to.
        for line in iter(sys.stdin.readline, "enter\n"):
            answer(line)
        with open(cgroup[0] + "/cgroup.procs", "w") as procs:
            procs.write(str(os.getpid()))
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        os.chdir("/tmp")
    print("ready", flush=True)
    for line in sys.stdin:
        answer(line)


def answer(line):
    what, *words = shlex.split(line)
    try:
        said = globals()[what](*words)
    except OSError as error:
        said = errno.errorcode.get(error.errno, str(error))
    print(said, flush=True)


if __name__ == "__main__":
    main()
