"""An object store of NATS JetStream, by NATS' own client for Python.

    nats_store.py make URL AUTHORITY         makes the bucket `evidence`
    nats_store.py fetch URL AUTHORITY TO     downloads every object of it
    nats_store.py remove URL AUTHORITY NAME  has none of that name be there, nor have been
"""

import asyncio
import base64
import os
import ssl
import sys

import nats


async def main():
    command, url, authority, *rest = sys.argv[1:]
    connection = await nats.connect(
        url,
        user="ship",
        password="s3cret",
        tls=ssl.create_default_context(cafile=authority),
        allow_reconnect=False,
    )
    stream = connection.jetstream()
    if command == "make":
        await stream.create_object_store("evidence")
    else:
        store = await stream.object_store("evidence")
        if command == "fetch":
            for info in await store.list():
                path = os.path.join(rest[0], info.name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as out:
                    out.write((await store.get(info.name)).data)
        elif command == "remove":
            name = base64.urlsafe_b64encode(rest[0].encode()).decode()
            await stream.purge_stream("OBJ_evidence", subject=f"$O.evidence.M.{name}")
    await connection.close()


asyncio.run(main())
