"""psycopg 3 as people use it. Prints what it sees; knows nothing of interceptor.

Usage: psycopg_client.py MODE, with libpq's environment variables.
"""

import sys

import psycopg
from psycopg import ClientCursor
from psycopg.rows import tuple_row


def say(*values):
    print(*values, flush=True)


def failure(error):
    say("error", error.sqlstate)


def connect(**options):
    return psycopg.connect(row_factory=tuple_row, **options)


def simple():
    """The simple protocol, one and several statements a message."""
    with connect(autocommit=True, cursor_factory=ClientCursor) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT id, name FROM shop.customers WHERE id < %s ORDER BY id", (3,))
        say(cursor.fetchall(), cursor.statusmessage)
        cursor.execute("SELECT 1; SELECT 'two'; UPDATE plain SET word = 'x' WHERE id = 1")
        say(cursor.fetchall())
        while cursor.nextset():
            say(cursor.statusmessage, cursor.rowcount)
        cursor.execute("")
        say("empty", cursor.statusmessage)
        result = connection.pgconn.exec_(b"VALUES (1), (2)")
        say(result.status, result.ntuples, result.command_status)


def extended():
    """The extended protocol: text and binary, parameters of many types, a row limit."""
    from datetime import date
    from decimal import Decimal
    from uuid import UUID

    from psycopg.types.json import Jsonb

    with connect(autocommit=True) as connection:
        for binary in (False, True):
            cursor = connection.cursor(binary=binary)
            cursor.execute(
                "SELECT id, name, profile, tags, token, born, balance"
                " FROM shop.customers WHERE id = ANY(%s) ORDER BY id",
                ([1, 2, 3],),
            )
            for row in cursor:
                say(row)
            cursor.execute(
                "SELECT %s::int, %s::text, %s::jsonb, %s::uuid, %s::date, %s::numeric, %s::bytea, %s::int",
                (7, "héllo", Jsonb({"a": [1]}), UUID(int=5), date(2020, 2, 29), Decimal("1.50"), b"\0\1", None),
                binary=binary,
            )
            say(cursor.fetchone())
        cursor = connection.cursor()
        for number in range(8):
            cursor.execute("SELECT word FROM plain WHERE id = %s", (number + 2,), prepare=True)
            say(cursor.fetchone())
        cursor.executemany("INSERT INTO shop.orders VALUES (%s, %s, %s)", [(n, 1, n) for n in (10, 11, 12)])
        say(cursor.rowcount)
        cursor.execute("UPDATE shop.orders SET total = total + %s WHERE id >= 10 RETURNING id, total", (1,))
        say(cursor.fetchall())
        cursor.execute("DELETE FROM shop.orders WHERE id = %s", (10,))
        say(cursor.statusmessage)


def pipeline():
    """Many statements before the first answer, and an error in the middle."""
    with connect(autocommit=True) as connection:
        with connection.pipeline() as group:
            first = connection.execute("SELECT count(*) FROM plain WHERE id <= %s", (10,))
            second = connection.execute("SELECT name FROM shop.customers WHERE id = %s", (2,))
            group.sync()
            third = connection.execute("INSERT INTO shop.orders VALUES (20, 2, 1) RETURNING id")
            say(first.fetchall(), second.fetchall(), third.fetchall())
        try:
            with connection.pipeline():
                connection.execute("SELECT 1")
                connection.execute("SELECT 1/%s", (0,))
                connection.execute("INSERT INTO shop.orders VALUES (21, 2, 1)")
        except psycopg.Error as error:
            failure(error)
        say(connection.execute("SELECT count(*) FROM shop.orders WHERE id = 21").fetchone())
        with connection.pipeline():
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO shop.orders VALUES (%s, 1, 1)", [(n,) for n in range(100, 400)])
        say(connection.execute("SELECT count(*) FROM shop.orders WHERE id >= 100").fetchone())


def cursors():
    """Server-side cursors: named, scrollable, WITH HOLD; DECLARE and FETCH by hand."""
    with connect() as connection:
        with connection.cursor(name="walk") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT id, word FROM plain ORDER BY id")
            say(cursor.fetchmany(2), sum(1 for _ in cursor))
        with connection.cursor(name="jump", scrollable=True) as cursor:
            cursor.execute("SELECT id FROM plain WHERE id > %s ORDER BY id", (5,))
            cursor.scroll(10)
            say(cursor.fetchone())
            cursor.scroll(-5)
            say(cursor.fetchone())
        connection.execute("DECLARE mine CURSOR FOR SELECT id FROM plain ORDER BY id FOR UPDATE")
        say(connection.execute("FETCH 3 FROM mine").fetchall())
        say(connection.execute("UPDATE plain SET word = 'here' WHERE CURRENT OF mine").statusmessage)
        connection.execute("CLOSE mine")
    with connect(autocommit=True) as connection:
        with connection.cursor(name="held", withhold=True) as cursor:
            cursor.execute("SELECT id FROM plain ORDER BY id")
            say(cursor.fetchone())


def copy():
    """COPY in and out, text and binary, by query; one that fails half way."""
    with connect() as connection:
        cursor = connection.cursor()
        with cursor.copy("COPY plain FROM STDIN") as stream:
            for number in range(2000, 3000):
                stream.write_row((number, f"copied {number}"))
        say(cursor.rowcount)
        with cursor.copy("COPY plain (id, word) FROM STDIN (FORMAT binary)") as stream:
            stream.set_types(["int4", "text"])
            for number in range(3000, 3100):
                stream.write_row((number, "binary"))
        say(cursor.rowcount)
        with cursor.copy("COPY (SELECT id, name FROM shop.customers ORDER BY id) TO STDOUT") as stream:
            say(b"".join(bytes(block) for block in stream))
        with cursor.copy("COPY plain TO STDOUT (FORMAT binary)") as stream:
            say(sum(len(block) for block in stream))
        connection.commit()
        try:
            with cursor.copy("COPY plain FROM STDIN") as stream:
                stream.write("1\talready there\n")
        except psycopg.Error as error:
            failure(error)
        connection.rollback()
        try:
            with cursor.copy("COPY plain FROM STDIN") as stream:
                stream.write("9999\tnever\n")
                raise KeyError("changed my mind")
        except KeyError:
            say("gave up")
        connection.rollback()
        say(cursor.execute("SELECT count(*) FROM plain").fetchone())


def transactions():
    """Savepoints, errors inside, isolation, prepared statements across them."""
    with connect() as connection:
        with connection.transaction():
            connection.execute("INSERT INTO shop.orders VALUES (30, 1, 1)")
            try:
                with connection.transaction():
                    connection.execute("INSERT INTO shop.orders VALUES (30, 1, 1)")
            except psycopg.Error as error:
                failure(error)
            say(connection.info.transaction_status.name)
        try:
            connection.execute("SELECT nonsense")
        except psycopg.Error as error:
            failure(error)
        say(connection.info.transaction_status.name)
        try:
            connection.execute("SELECT 1")
        except psycopg.Error as error:
            failure(error)
        connection.rollback()
        say(connection.info.transaction_status.name)
        say(connection.execute("SELECT count(*) FROM shop.orders WHERE id = 30").fetchone())


def notices():
    """Notices, LISTEN and NOTIFY, a parameter status, a cancel request."""
    import threading

    with connect(autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: say("notice", notice.message_primary))
        connection.execute("DO $$ BEGIN RAISE NOTICE 'careful'; END $$")
        connection.execute("LISTEN bell")
        connection.execute("NOTIFY bell, 'ding'")
        for notification in connection.notifies(timeout=5, stop_after=1):
            say(notification.channel, notification.payload)
        connection.execute("SET application_name = 'renamed'")
        say(connection.info.parameter_status("application_name"))
        timer = threading.Timer(0.3, connection.cancel_safe)
        timer.start()
        try:
            connection.execute("SELECT pg_sleep(20)")
        except psycopg.Error as error:
            failure(error)
        timer.join()
        say(connection.execute("SELECT 'still here'").fetchone())


def authentication():
    """Each way of logging in, good and bad."""
    for user in ("scram_user", "md5_user", "password_user"):
        for password in ("secret", "wrong"):
            try:
                with connect(user=user, password=password) as connection:
                    say(user, connection.execute("SELECT current_user").fetchone())
            except psycopg.OperationalError as error:
                say(user, "refused", "password authentication failed" in str(error))
    try:
        connect(dbname="nowhere")
    except psycopg.OperationalError as error:
        say("does not exist" in str(error))


def big():
    """Large values both ways and many rows."""
    with connect(autocommit=True) as connection:
        value = "x" * (5 << 20)
        say(len(connection.execute("SELECT %s::text", (value,)).fetchone()[0]))
        say(len(connection.execute("SELECT repeat('y', 8000000)").fetchone()[0]))
        say(sum(1 for _ in connection.execute("SELECT * FROM generate_series(1, 200000)")))


if __name__ == "__main__":
    {
        mode.__name__: mode
        for mode in (
            simple,
            extended,
            pipeline,
            cursors,
            copy,
            transactions,
            notices,
            authentication,
            big,
        )
    }[sys.argv[1]]()
