"""A server of WebSocket and server-sent events over TLS, and a client of both: one file, so that both sides of a
conversation are read together.

    messages.py serve PORT CERTIFICATE KEY
    messages.py speak BASE
"""

import asyncio
import json
import ssl
import sys

from aiohttp import ClientSession, WSMsgType, web

SECRET = "hunter2"


async def websocket(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type == WSMsgType.TEXT:
            answer = {"echo": message.data, "token": SECRET}
            if message.data == "large":
                answer = {"pad": "x" * 200_000, **answer}
            await socket.send_str(json.dumps(answer))
        elif message.type == WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def events(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(3):
        await response.write(b'data: {"n": %d, "token": "hunter2"}\n\n' % number)
        # The next one only once the client has seen this one.
        await asyncio.wait_for(request.app["seen"].get(), 10)
    return response


async def seen(request):
    await request.app["seen"].put(None)
    return web.Response(text="thanks")


def serve(port, certificate, key):
    app = web.Application()
    app["seen"] = asyncio.Queue()
    app.add_routes(
        [web.get("/ws", websocket), web.get("/events", events), web.get("/seen", seen)]
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    web.run_app(app, host="127.0.0.1", port=int(port), ssl_context=context, print=None)


async def speak(base):
    async with ClientSession() as session:
        # Asks for compression, which would hide the messages.
        async with session.ws_connect(f"{base}/ws", compress=15) as socket:
            for text in ["hello", "large"]:
                await socket.send_str(text)
                answer = json.loads((await socket.receive()).data)
                print(answer["echo"], len(answer.get("pad", "")), answer["token"])
            await socket.ping()
            await socket.send_bytes(b"\x00\x01")
            print((await socket.receive()).data)
        print("closed with", socket.close_code)
        async with session.get(f"{base}/events") as response:
            async for line in response.content:
                if line.strip():
                    print(line.decode().strip())
                    async with session.get(f"{base}/seen") as thanks:
                        await thanks.text()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port, certificate, key]:
            serve(port, certificate, key)
        case ["speak", base]:
            asyncio.run(speak(base))
        case _:
            sys.exit(__doc__)
