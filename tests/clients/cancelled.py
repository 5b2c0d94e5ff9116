"""Asks for what has to wait, and cancels it; prints how it ended and that the session goes on."""

import threading

import psycopg

with psycopg.connect(autocommit=True) as connection:
    over = threading.Event()

    def cancel():
        while not over.wait(0.5):
            connection.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        connection.execute("DELETE FROM shop.orders")
    except psycopg.Error as error:
        print(error.sqlstate, error.diag.message_primary)
    over.set()
    canceller.join()
    print(connection.execute("SELECT 'goes on'").fetchone()[0])
