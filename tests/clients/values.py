"""Deletes orders by bound values, one statement a value. Usage: values.py ID…"""

import sys

import psycopg

with psycopg.connect(autocommit=True) as connection:
    for number in sys.argv[1:]:
        try:
            cursor = connection.execute("DELETE FROM shop.orders WHERE id = %s", (int(number),))
            print(number, cursor.statusmessage, flush=True)
        except psycopg.Error as error:
            print(number, error.sqlstate, error.diag.message_detail or "", flush=True)
