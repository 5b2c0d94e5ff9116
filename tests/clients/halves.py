"""Streams of one HTTP/2 connection that send half of what they announce: what became of them.

    halves.py PORT STREAMS BYTES

Prints how many go on, how many are over, with which answers, and whether a small request is answered beside them.
"""

import json
import select
import socket
import sys
import time

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset

port, streams, size = map(int, sys.argv[1:])
connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
connection.initiate_connection()
server = socket.create_connection(("127.0.0.1", port), timeout=30)
left, statuses, bodies = {}, {}, {}


def ask(method, path, length):
    stream = connection.get_next_available_stream_id()
    fields = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "localhost")]
    more = [("content-length", str(2 * length))] if length else []
    connection.send_headers(stream, fields + more, end_stream=not length)
    if length:
        left[stream] = length
    return stream


def turn():
    for stream in list(left):
        while room := min(connection.local_flow_control_window(stream), connection.max_outbound_frame_size, left[stream]):
            connection.send_data(stream, bytes(room))
            left[stream] -= room
    server.sendall(connection.data_to_send())
    if select.select([server], [], [], 0.05)[0]:
        for event in connection.receive_data(server.recv(1 << 16)):
            match event:
                case ResponseReceived():
                    statuses[event.stream_id] = dict(event.headers)[":status"]
                case DataReceived():
                    bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                case StreamEnded() | StreamReset():
                    left.pop(event.stream_id, None)


for _ in range(streams):
    ask("POST", "/sink", size)
until = time.monotonic() + 60
# Until those that go on have sent all of it, and a while longer.
while any(left.values()) and time.monotonic() < until:
    turn()
calm = time.monotonic() + 1
while time.monotonic() < calm:
    turn()
answers = {(statuses[stream], json.loads(body)["type"]) for stream, body in bodies.items()}
print(len(left), len(bodies), *sorted(answers))
small = ask("GET", "/echo", 0)
while small not in statuses and time.monotonic() < until:
    turn()
print(statuses.get(small))
