"""Inserts records into a SQLite database in WAL mode for some seconds, and says as JSON how many that were.

Usage: sqlite.py FOLDER RECORD_HEX AT_ONCE SECONDS full|normal
"""

import json
import os
import sqlite3
import sys
import time

folder, record, at_once, seconds, synchronous = sys.argv[1:]
record, at_once, seconds = bytes.fromhex(record), int(at_once), float(seconds)
database = sqlite3.connect(os.path.join(folder, "records.sqlite"), isolation_level=None)
assert database.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
database.execute(f"PRAGMA synchronous = {synchronous}")
database.execute("CREATE TABLE records (seq INTEGER PRIMARY KEY, time INTEGER, session INTEGER, agent TEXT, record BLOB)")
rows = [(1_795_000_000_000_000_000, number % 64, "reporter", record) for number in range(at_once)]
insert = "INSERT INTO records (time, session, agent, record) VALUES (?, ?, ?, ?)"
written, began, times = 0, time.monotonic(), []
while (at := time.monotonic()) - began < seconds:
    database.execute("BEGIN")
    database.executemany(insert, rows)
    database.execute("COMMIT")
    times.append((time.monotonic() - at) * 1e6)
    written += at_once
took = time.monotonic() - began
times.sort()
p50, p99 = (times[len(times) * part // 100] for part in (50, 99))
print(json.dumps({"records": written, "seconds": took, "rate": written / took, "p50_us": p50, "p99_us": p99}))
