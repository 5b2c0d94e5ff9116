"""Keeps what it is sent: `witness.py PORT FILE` appends each body that comes with the right token to FILE."""

import http.server
import sys

PORT, FILE = int(sys.argv[1]), sys.argv[2]


class Witness(http.server.BaseHTTPRequestHandler):
    def do_PUT(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["authorization"] != "Bearer keep-this":
            self.send_response(401)
            self.end_headers()
            return
        with open(FILE, "ab") as out:
            out.write(self.path.encode() + b"\n" + body)
        self.send_response(201)
        self.end_headers()

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Witness).serve_forever()
