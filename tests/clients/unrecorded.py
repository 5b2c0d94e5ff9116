"""Asks until it is refused because nothing can be recorded, then connects anew; says what it was told.

Prints the number of answers it got, the SQLSTATE and message of each refusal.
"""

import sys

import psycopg

with psycopg.connect(autocommit=True) as connection:
    answers = 0
    try:
        for _ in range(200_000):
            # Long and different each time, so that the journal needs room for it.
            connection.execute("SELECT %s", [f"{answers:06}" * 200])
            answers += 1
        sys.exit("nothing was refused")
    except psycopg.Error as error:
        print(answers)
        print(error.sqlstate, str(error).replace("\n", " "))

try:
    psycopg.connect()
    sys.exit("a new connection was served")
except psycopg.OperationalError as error:
    print(str(error).replace("\n", " "))
