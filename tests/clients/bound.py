"""Deletes by values that are bound in binary, and says how many rows that were."""

import asyncio
import os
from decimal import Decimal

import asyncpg


async def main():
    connection = await asyncpg.connect(
        host=os.environ["PGHOST"],
        port=os.environ["PGPORT"],
        user=os.environ["PGUSER"],
        database=os.environ["PGDATABASE"],
        ssl=False,
    )
    sql = "DELETE FROM shop.orders WHERE total > $1 AND id = ANY($2::int[]) AND coalesce(note, '') <> $3"
    print(await connection.execute(sql, Decimal("7.50"), [1, 2, 3], "call first"))
    await connection.close()


asyncio.run(main())
