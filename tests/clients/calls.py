"""A server of gRPC over TLS, and a client of it. Messages are bytes: no code has to be generated.

    calls.py serve PORT CERTIFICATE KEY
    calls.py speak PORT AUTHORITY
"""

import queue
import sys
from concurrent import futures
from pathlib import Path

import grpc


def unary(request, context):
    context.set_trailing_metadata([("x-trailer", "behind")])
    return request[::-1]


def stream(requests, context):
    for request in requests:
        yield request[::-1]


def serve(port, certificate, key):
    server = grpc.server(futures.ThreadPoolExecutor(4))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Private": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("test.Echo", handlers)]
    )
    pair = (Path(key).read_bytes(), Path(certificate).read_bytes())
    server.add_secure_port(
        f"127.0.0.1:{port}", grpc.ssl_server_credentials([pair])
    )
    server.start()
    server.wait_for_termination()


def speak(port, authority):
    credentials = grpc.ssl_channel_credentials(Path(authority).read_bytes())
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        answer, call = channel.unary_unary("/test.Echo/Unary").with_call(b"hello")
        print(answer, dict(call.trailing_metadata()))

        # Each request is sent once the answer to the one before has come.
        seen = queue.Queue()

        def requests():
            for number in range(3):
                yield b"message %d" % number
                print(seen.get(timeout=10))

        for answer in channel.stream_stream("/test.Echo/Stream")(requests()):
            seen.put(answer)
        try:
            channel.unary_unary("/test.Echo/Private")(b"hello")
        except grpc.RpcError as error:
            print(error.code(), error.details())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port, certificate, key]:
            serve(port, certificate, key)
        case ["speak", port, authority]:
            speak(port, authority)
        case _:
            sys.exit(__doc__)
