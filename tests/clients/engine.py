"""Stands in for a container engine: answers Docker's API on a UNIX socket and writes down what reaches it.

engine.py PATH LOG MODE: listens at PATH, which has the rights MODE (octal). Each request is a line of LOG: the
process id of who is connected, the method, the target, the body. Says `ready` when it can be connected to.
"""

import http.server
import os
import socket
import socketserver
import struct
import sys
import threading

PATH, LOG, MODE = sys.argv[1], sys.argv[2], int(sys.argv[3], 8)
WRITING = threading.Lock()


class Engine(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        credentials = self.request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.peer = struct.unpack("iII", credentials)[0]
        super().setup()

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        with WRITING, open(LOG, "a") as log:
            log.write(f"{self.peer} {self.command} {self.path} {body}\n")
        if self.headers.get("Upgrade") == "tcp":
            self.send_response(101)
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "tcp")
            self.end_headers()
            self.wfile.write(b"attached: " + self.rfile.readline())
            self.close_connection = True
            return
        path = self.path.partition("?")[0]
        status, text = 200, "[]"
        if path.endswith("/_ping"):
            text = "OK"
        elif path.endswith("/containers/json"):
            text = '[{"Id":"3f4c","Names":["/web"],"Image":"web","Labels":{"owner":"ada@example.com"}}]'
        elif path.endswith("/version"):
            text = '{"Version":"28.0.0","ApiVersion":"1.48","MinAPIVersion":"1.24","Os":"linux","Arch":"amd64"}'
        elif path.endswith("/containers/create"):
            status, text = 201, '{"Id":"3f4c","Warnings":[]}'
        self.send_response(status)
        self.send_header("Api-Version", "1.48")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    do_GET = do_HEAD = do_POST = do_DELETE = answer

    def log_message(self, *_):
        pass

    def address_string(self):
        return "agent"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


if os.path.exists(PATH):
    os.unlink(PATH)
os.umask(0o777 & ~MODE)
server = Server(PATH, Engine)
print("ready", flush=True)
server.serve_forever()
