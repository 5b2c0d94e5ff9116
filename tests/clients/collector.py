"""A collector of OpenTelemetry's logs: `collector.py PORT FOLDER` takes what the published definitions can read.

FOLDER/records gets a line of JSON for each record, FOLDER/fault says what is to go wrong.
"""

import http.server
import json
import os
import sys

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

PORT, FOLDER = int(sys.argv[1]), sys.argv[2]


class Collector(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def say(self, status, body=b"{}", headers=()):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            with open(os.path.join(FOLDER, "fault")) as file:
                fault = file.read().strip()
        except FileNotFoundError:
            fault = ""
        if self.path != "/v1/logs" or self.headers["content-type"] != "application/json":
            return self.say(404)
        if self.headers["authorization"] != "Bearer tell-it":
            return self.say(401)
        if self.headers["x-tenant"] != "seven":
            return self.say(401)
        if fault == "500":
            return self.say(500, b"no\x1b[2J")
        if fault == "busy":
            return self.say(429, headers=[("retry-after", "1")])
        if fault == "small" and body.count(b'"timeUnixNano"') > 2:
            return self.say(413)
        if fault == "partial":
            rejected = {"partialSuccess": {"rejectedLogRecords": "1", "errorMessage": "not today"}}
            return self.say(200, json.dumps(rejected).encode())
        # Raises where a field is none of the published ones, or of another type.
        request = json_format.Parse(body, ExportLogsServiceRequest())
        with open(os.path.join(FOLDER, "records"), "a") as out:
            for resource in request.resource_logs:
                service = {a.key: a.value.string_value for a in resource.resource.attributes}
                assert service["service.name"] == "interceptor" and service["host.name"], service
                for scope in resource.scope_logs:
                    for record in scope.log_records:
                        assert record.observed_time_unix_nano >= record.time_unix_nano > 0
                        line = json.loads(record.body.string_value)
                        facts = {
                            a.key: a.value.string_value or a.value.int_value
                            for a in record.attributes
                        }
                        told = {"line": line, "facts": facts, "severity": record.severity_number}
                        out.write(json.dumps(told) + "\n")
        self.say(200)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Collector).serve_forever()
