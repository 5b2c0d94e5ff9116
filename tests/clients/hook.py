"""Takes webhooks: `hook.py PORT SECRET FILE` checks each signature and appends what it says to FILE, a line each."""

import base64
import hashlib
import hmac
import http.server
import json
import sys
import time

PORT, SECRET, FILE = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3]


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        stamp, identity = self.headers["webhook-timestamp"], self.headers["webhook-id"]
        signed = b".".join([identity.encode(), stamp.encode(), body])
        mac = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
        is_signed = f"v1,{mac}" in self.headers["webhook-signature"].split()
        is_fresh = abs(time.time() - int(stamp)) < 300
        line = {"id": identity, "signed": is_signed and is_fresh, "body": json.loads(body)}
        with open(FILE, "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Hook).serve_forever()
