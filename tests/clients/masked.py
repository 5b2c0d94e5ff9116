"""Reads everything in binary formats. Usage: masked.py psycopg|asyncpg"""

import asyncio
import sys

QUERIES = (
    "SELECT * FROM shop.customers ORDER BY id",
    "SELECT name, email AS other, ARRAY[email] AS list, to_jsonb(email) AS json FROM shop.customers ORDER BY id",
    "UPDATE shop.customers SET name = name RETURNING email, card_number",
)


def with_psycopg():
    import psycopg

    with psycopg.connect() as connection:
        for query in QUERIES:
            for row in connection.cursor(binary=True).execute(query):
                print(row)


async def with_asyncpg():
    import asyncpg

    connection = await asyncpg.connect()
    for query in QUERIES:
        for row in await connection.fetch(query):
            print(dict(row))
    await connection.close()


if sys.argv[1] == "psycopg":
    with_psycopg()
else:
    asyncio.run(with_asyncpg())
