"""asyncpg as people use it: extended protocol, binary formats, statements it prepares by itself.

Usage: asyncpg_client.py MODE, with libpq's environment variables.
"""

import asyncio
import io
import sys

import asyncpg


def say(*values):
    print(*values, flush=True)


async def queries(connection):
    """Parameters and results in binary, type look-ups, a script in the simple protocol."""
    for row in await connection.fetch(
        "SELECT id, name, tags, token, born, balance FROM shop.customers WHERE id = ANY($1) ORDER BY id", [1, 2, 3]
    ):
        say(dict(row))
    say(await connection.fetchval("SELECT profile FROM shop.customers WHERE id = $1", 1))
    statement = await connection.prepare("SELECT word FROM plain WHERE id = $1")
    say([await statement.fetchval(number) for number in range(2, 12)])
    say([str(attribute.name) for attribute in statement.get_attributes()])
    say(await connection.execute("CREATE TABLE made (id int); INSERT INTO made VALUES (1), (2); DROP TABLE made"))
    await connection.executemany("INSERT INTO shop.orders VALUES ($1, 1, 1)", [(n,) for n in range(500, 700)])
    say(await connection.fetchval("SELECT count(*) FROM shop.orders WHERE id >= 500"))


async def cursors(connection):
    """Portals with row limits."""
    async with connection.transaction():
        total = 0
        async for record in connection.cursor("SELECT id FROM plain WHERE id > $1 ORDER BY id", 10, prefetch=50):
            total += record["id"]
        say(total)
        cursor = await connection.cursor("SELECT id FROM plain ORDER BY id")
        say(await cursor.fetch(3))
        await cursor.forward(10)
        say(await cursor.fetchrow())


async def copy(connection):
    """Binary and text COPY, both ways."""
    say(await connection.copy_records_to_table("plain", records=[(n, "in") for n in range(5000, 5500)]))
    out = io.BytesIO()
    say(await connection.copy_from_query("SELECT id, name FROM shop.customers ORDER BY id", output=out, format="csv"))
    say(out.getvalue())
    say(await connection.copy_to_table("plain", source=io.BytesIO(b"7000\tseven\n"), columns=["id", "word"]))


async def errors(connection):
    """Errors leave the connection usable; in a transaction they end it."""
    for sql, values in (("SELECT 1/$1::int", (0,)), ("SELECT nonsense", ()), ("INSERT INTO plain VALUES (1)", ())):
        try:
            await connection.fetch(sql, *values)
        except asyncpg.PostgresError as error:
            say("error", error.sqlstate)
    try:
        async with connection.transaction():
            await connection.execute("INSERT INTO plain VALUES (8000, 'gone')")
            await connection.execute("INSERT INTO plain VALUES (1, 'twice')")
    except asyncpg.PostgresError as error:
        say("error", error.sqlstate)
    say(await connection.fetchval("SELECT count(*) FROM plain WHERE id = 8000"))


async def notifications(connection):
    """LISTEN and NOTIFY; a time-out that sends a cancel request."""
    arrived = asyncio.get_running_loop().create_future()
    await connection.add_listener("bell", lambda *facts: arrived.set_result(facts[2:]))
    await connection.execute("NOTIFY bell, 'ding'")
    say(await asyncio.wait_for(arrived, 5))
    try:
        await connection.fetch("SELECT pg_sleep(20)", timeout=0.3)
    except asyncio.TimeoutError:
        say("timed out")
    say(await connection.fetchval("SELECT 'still here'"))


async def main():
    mode = {m.__name__: m for m in (queries, cursors, copy, errors, notifications)}[sys.argv[1]]
    connection = await asyncpg.connect()
    try:
        await mode(connection)
    finally:
        await connection.close()


asyncio.run(main())
