"""An S3 store with faults: moto behind a front that checks signatures and digests as S3 does.

    store.py serve PORT BEHIND FOLDER   serves at PORT what moto has at BEHIND; FOLDER/fault says what is to go wrong,
                                        FOLDER/requests says what was asked
    store.py fetch BEHIND TO            downloads every object of the bucket, as `aws s3 sync` does
    store.py locks BEHIND               the mode and the end of each object's lock
    store.py spoil BEHIND NAME          puts something else in an object's place
    store.py remove BEHIND NAME         removes all there is of an object
"""

import base64
import hashlib
import http.client
import http.server
import os
import sys
import time

import boto3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

KEY, SECRET, REGION, BUCKET = "AKIDTEST", "secret/of+a=test", "eu-test-1", "evidence"


def client(port):
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )


class Front(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def fault(self):
        try:
            with open(os.path.join(FOLDER, "fault")) as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""

    def note(self, what):
        with open(os.path.join(FOLDER, "requests"), "a") as file:
            file.write(f"{self.command} {self.path} {what}\n")

    def say(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, message):
        self.note(code)
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self.say(status, [("content-type", "application/xml")], body.encode())
        self.close_connection = True

    def is_signed(self):
        """Signs the same again with botocore, and compares."""
        said = self.headers["authorization"] or ""
        parts = dict(part.split("=", 1) for part in said.split(" ", 1)[-1].split(",") if "=" in part)
        names = parts.get("SignedHeaders", "").split(";")
        for name in ("host", "x-amz-date", "x-amz-content-sha256"):
            if name not in names:
                return False
        # Whatever stands for itself has to be signed too.
        for name in self.headers:
            if name.lower().startswith("x-amz-") and name.lower() not in names:
                return False
        request = AWSRequest(
            self.command,
            f"http://{self.headers['host']}{self.path}",
            headers={name: self.headers[name] for name in names},
        )
        request.context["timestamp"] = self.headers["x-amz-date"]
        signer = S3SigV4Auth(Credentials(KEY, SECRET), "s3", REGION)
        text = signer.string_to_sign(request, signer.canonical_request(request))
        return parts.get("Signature") == signer.signature(text, request)

    def serve(self):
        fault, body = self.fault(), b""
        is_segment = "/segments/" in self.path
        left = int(self.headers["content-length"] or 0)
        while left:
            part = self.rfile.read(min(left, 16384))
            if not part:
                return
            body += part
            left -= len(part)
            if fault == "slow":
                time.sleep(0.05)
            if fault == "die" and is_segment and len(body) > 200:
                self.close_connection = True
                self.connection.close()
                return
        if not self.is_signed():
            return self.refuse(403, "SignatureDoesNotMatch", "sign it otherwise")
        if fault == "500":
            return self.refuse(500, "InternalError", "We encountered an internal error.")
        if fault == "403":
            return self.refuse(403, "AccessDenied", "Access\x1b[2J Denied")
        if fault == "redirect":
            self.note("redirect")
            self.close_connection = True
            return self.say(307, [("location", f"http://127.0.0.1:{BEHIND}{self.path}")])
        headers = dict(self.headers)
        if self.command == "PUT":
            digest = hashlib.sha256(body)
            if digest.hexdigest() != self.headers["x-amz-content-sha256"]:
                return self.refuse(400, "XAmzContentSHA256Mismatch", "The body is another one.")
            if base64.b64encode(digest.digest()).decode() != self.headers["x-amz-checksum-sha256"]:
                return self.refuse(400, "BadDigest", "The checksum is of something else.")
            is_locked = "x-amz-object-lock-mode" in self.headers
            md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
            if is_locked and self.headers["content-md5"] != md5:
                return self.refuse(400, "InvalidRequest", "Content-MD5 is required.")
            if fault == "flip" and is_segment:
                body = body[:-1] + bytes([body[-1] ^ 1])
                headers = {n: v for n, v in headers.items() if "checksum" not in n.lower()}
                if is_locked:
                    headers["content-md5"] = base64.b64encode(hashlib.md5(body).digest()).decode()
            if fault == "unlocked":
                headers = {n: v for n, v in headers.items() if "object-lock" not in n.lower()}
        if fault == "no-checksums":
            headers = {n: v for n, v in headers.items() if "checksum" not in n.lower()}
        behind = http.client.HTTPConnection("127.0.0.1", BEHIND)
        behind.request(self.command, self.path, body or None, headers)
        answer = behind.getresponse()
        content = answer.read()
        self.note(answer.status)
        if fault == "hang" and self.command == "PUT" and is_segment:
            with open(os.path.join(FOLDER, "took"), "a") as file:
                file.write(self.path + "\n")
            time.sleep(60)
            return
        kept = [
            (name, value)
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "date", "server")
            and (self.command == "HEAD" or name.lower() != "content-length")
        ]
        if fault == "no-checksums":
            kept = [(n, v) for n, v in kept if "checksum" not in n.lower()]
        self.say(answer.status, kept, content)

    do_GET = do_PUT = do_HEAD = do_DELETE = serve

    def log_message(self, *_):
        pass


def main():
    global BEHIND, FOLDER
    command, rest = sys.argv[1], sys.argv[2:]
    if command == "serve":
        from moto.server import ThreadedMotoServer

        port, BEHIND, FOLDER = int(rest[0]), int(rest[1]), rest[2]
        ThreadedMotoServer(ip_address="127.0.0.1", port=BEHIND, verbose=False).start()
        client(BEHIND).create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
        http.server.ThreadingHTTPServer(("127.0.0.1", port), Front).serve_forever()
    store = client(int(rest[0]))
    names = [
        found["Key"]
        for page in store.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        for found in page.get("Contents", [])
    ]
    if command == "fetch":
        for name in names:
            path = os.path.join(rest[1], name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            store.download_file(BUCKET, name, path)
    elif command == "locks":
        for name in names:
            found = store.head_object(Bucket=BUCKET, Key=name)
            print(name, found["ObjectLockMode"], found["ObjectLockRetainUntilDate"].isoformat())
    elif command == "spoil":
        store.put_object(Bucket=BUCKET, Key=rest[1], Body=b"something else")
    elif command == "remove":
        for version in store.list_object_versions(Bucket=BUCKET, Prefix=rest[1])["Versions"]:
            store.delete_object(
                Bucket=BUCKET,
                Key=rest[1],
                VersionId=version["VersionId"],
                BypassGovernanceRetention=True,
            )


main()
