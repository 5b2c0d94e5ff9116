"""What a refusal (42501) leaves behind, seen through psycopg 3. Prints states, never messages.

Usage: refused.py MODE, with libpq's environment variables. `DROP TABLE plain` is what is refused:
by the server itself for a role that doesn't own it, or by whatever else guards it.
"""

import sys

import psycopg
from psycopg import pq

REFUSED = "DROP TABLE plain"


def say(*values):
    print(*values, flush=True)


def attempt(connection, what, work):
    try:
        result = work()
        say(what, "ok", getattr(result, "statusmessage", None))
    except psycopg.Error as error:
        say(what, error.sqlstate)
    say(connection.info.transaction_status.name)


def orders(connection):
    say("orders", connection.execute("SELECT count(*) FROM shop.orders").fetchone()[0])


def simple(connection):
    """Alone, between others in one message, and at its end."""
    run = lambda sql: (lambda: connection.cursor().execute(sql))
    attempt(connection, "alone", run(REFUSED))
    attempt(connection, "after", run("SELECT 1"))
    attempt(
        connection,
        "between",
        run(f"INSERT INTO shop.orders VALUES (90, 1, 1); {REFUSED}; INSERT INTO shop.orders VALUES (91, 1, 1)"),
    )
    orders(connection)
    attempt(connection, "empty after", run(""))


def transaction(connection):
    """Inside a transaction block: it fails, and only ROLLBACK leads out."""
    run = lambda sql: (lambda: connection.execute(sql))
    for sql in (
        "BEGIN",
        "INSERT INTO shop.orders VALUES (90, 1, 1)",
        REFUSED,
        "SELECT 1",
        "COMMIT",
        "SELECT 1",
        "BEGIN",
        "SAVEPOINT here",
        "INSERT INTO shop.orders VALUES (91, 1, 1)",
        REFUSED,
        "ROLLBACK TO here",
        "INSERT INTO shop.orders VALUES (92, 1, 1)",
        "COMMIT",
    ):
        attempt(connection, sql.split()[0], run(sql))
    orders(connection)


def extended(connection):
    """Prepared by the client, executed, and again after the error."""
    run = lambda sql, *values: (lambda: connection.execute(sql, values or None, prepare=True))
    attempt(connection, "refused", run(REFUSED))
    attempt(connection, "again", run(REFUSED))
    attempt(connection, "after", run("SELECT %s::int", 1))
    connection.execute("BEGIN")
    attempt(connection, "insert", run("INSERT INTO shop.orders VALUES (%s, 1, 1)", 90))
    attempt(connection, "refused", run(REFUSED))
    attempt(connection, "insert", run("INSERT INTO shop.orders VALUES (%s, 1, 1)", 91))
    connection.execute("ROLLBACK")
    orders(connection)


def pipelined(connection):
    """In the middle of a pipeline: what stands before it up to the last Sync is undone, what
    follows up to the next Sync is skipped, what comes after runs. Sent whole before any answer is
    read, so that nothing depends on time."""
    raw = connection.pgconn
    raw.enter_pipeline_mode()
    script = (
        "INSERT INTO shop.orders VALUES (89, 1, 1)",
        None,
        "INSERT INTO shop.orders VALUES (90, 1, 1)",
        REFUSED,
        "INSERT INTO shop.orders VALUES (91, 1, 1)",
        None,
        "INSERT INTO shop.orders VALUES (92, 1, 1)",
        None,
    )
    for sql in script:
        if sql is None:
            raw.pipeline_sync()
        else:
            raw.send_query_params(sql.encode(), None)
    for sql in script:
        result = raw.get_result()
        code = result.error_field(pq.DiagnosticField.SQLSTATE)
        say(sql, pq.ExecStatus(result.status).name, result.command_status, code)
        if sql is not None:
            say(raw.get_result())
    raw.exit_pipeline_mode()
    say(connection.info.transaction_status.name)
    say(connection.execute("SELECT array_agg(id ORDER BY id) FROM shop.orders WHERE id > 80").fetchone())


def portals(connection):
    """Cursors and prepared statements that were there before are there after."""
    connection.execute("PREPARE mine AS SELECT count(*) FROM plain")
    connection.execute("BEGIN")
    connection.execute("DECLARE walk CURSOR WITH HOLD FOR SELECT id FROM plain ORDER BY id")
    connection.execute("COMMIT")
    attempt(connection, "refused", lambda: connection.execute(REFUSED))
    say(connection.execute("FETCH 2 FROM walk").fetchall())
    say(connection.execute("EXECUTE mine").fetchall())
    attempt(connection, "in a cursor", lambda: connection.execute("DO 'BEGIN DROP TABLE plain; END'"))
    say(connection.execute("FETCH 1 FROM walk").fetchall())


if __name__ == "__main__":
    with psycopg.connect(autocommit=True) as connection:
        {mode.__name__: mode for mode in (simple, transaction, extended, pipelined, portals)}[sys.argv[1]](connection)
