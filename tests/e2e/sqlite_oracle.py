#!/usr/bin/env python3
"""A SQLite database whose whole content is a function of how many transactions it saw, its writers and its checker.

Transaction n sets `c0.n = n`, rewrites one row of the filler as a function of n and its place, and sets `c1.n = n`: three
parts of the file. As a program of its own it writes, until it is killed, through Python's sqlite3 module:

    sqlite_oracle.py DATABASE LEDGER setting=value …

Ledger: word 0 begun, word 1 acknowledged, word 2 commits refused as busy, word 3 the longest commit in microseconds.
"""

import hashlib
import os
import sqlite3
import sys
import time

ROWS = 6000
BUSY, LONGEST = 2, 3


def value(n, row):
    """Bytes that depend on the transaction and the place; lengths differ."""
    return hashlib.shake_128(f"{n}/{row}".encode()).digest(200 + (n * 37 + row) % 400)


def row_of(n):
    # A step that is prime to ROWS: neighbours in time are far apart in the file.
    return n * 2999 % ROWS


def connect(path, settings):
    return sqlite3.connect(path, timeout=float(settings.get("timeout", 5)), isolation_level=None)


def create(path, settings):
    database = connect(path, settings)
    database.execute(f"PRAGMA page_size = {settings.get('page_size', 4096)}")
    database.execute(f"PRAGMA journal_mode = {settings.get('journal', 'wal')}")
    database.execute("BEGIN IMMEDIATE")
    database.execute("CREATE TABLE c0 (k INTEGER PRIMARY KEY, n INTEGER)")
    database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)")
    database.executemany("INSERT INTO t VALUES (?, ?)", ((row, value(-1, row)) for row in range(ROWS)))
    database.execute("CREATE TABLE c1 (k INTEGER PRIMARY KEY, n INTEGER)")
    database.execute("INSERT INTO c0 VALUES (0, -1)")
    database.execute("INSERT INTO c1 VALUES (0, -1)")
    database.execute("COMMIT")
    return database


def statements(n):
    row = row_of(n)
    return [
        ("UPDATE c0 SET n = ? WHERE k = 0", (n,)),
        ("UPDATE t SET v = ? WHERE id = ?", (value(n, row), row)),
        ("UPDATE c1 SET n = ? WHERE k = 0", (n,)),
    ]


def write(path, ledger, settings):
    database = connect(path, settings) if os.path.exists(path) else create(path, settings)
    for pragma in ("synchronous", "wal_autocheckpoint", "cache_size"):
        if pragma in settings:
            database.execute(f"PRAGMA {pragma} = {settings[pragma]}")
    limit, pause = int(settings.get("limit", 1 << 60)), float(settings.get("pause", 0))
    n = database.execute("SELECT n FROM c0").fetchone()[0] + 1
    print("writing", flush=True)
    while n < limit:
        ledger.set(0, n)
        began = time.monotonic()
        try:
            database.execute("BEGIN IMMEDIATE")
            for statement, values in statements(n):
                database.execute(statement, values)
            database.execute("COMMIT")
        except sqlite3.OperationalError as refused:
            if "locked" not in str(refused) and "busy" not in str(refused):
                raise
            ledger.set(BUSY, max(0, ledger.get(BUSY)) + 1)
            if database.in_transaction:
                database.execute("ROLLBACK")
            time.sleep(0.001)
            continue
        ledger.set(1, n)
        ledger.set(LONGEST, max(ledger.get(LONGEST), int((time.monotonic() - began) * 1e6)))
        n += 1
        if pause:
            time.sleep(pause)
    if settings.get("close") == "abrupt":
        os._exit(0)
    database.close()


def expected_rows(last):
    """Row → the newest transaction up to `last` that wrote it."""
    newest = dict.fromkeys(range(ROWS), -1)
    for n in range(max(0, last - ROWS + 1), last + 1):
        newest[row_of(n)] = n
    return newest


def check(path, acked, begun):
    """What is wrong with a copy, as text, or None and the number of its last transaction. Opens it as an application does."""
    database = sqlite3.connect(path)
    try:
        sound = database.execute("PRAGMA integrity_check").fetchall()
        if sound != [("ok",)]:
            return f"integrity_check: {sound[:3]}", None
        c0, c1 = (database.execute(f"SELECT n FROM {table}").fetchall() for table in ("c0", "c1"))
        if len(c0) != 1 or c0 != c1:
            return f"a torn transaction: c0 says {c0}, c1 says {c1}", None
        last = c0[0][0]
        if not acked <= last <= begun:
            return f"ends at {last}, but {acked} was acknowledged before and {begun} begun after", None
        rows = dict(database.execute("SELECT id, v FROM t"))
        newest = expected_rows(last)
        if rows.keys() != newest.keys():
            return f"{len(rows)} rows, must be {ROWS}", None
        for row, n in newest.items():
            if rows[row] != value(n, row):
                return f"row {row} does not hold what transaction {n} of {last} wrote", None
        return None, last
    except sqlite3.DatabaseError as broken:
        return f"SQLite says: {broken}", None
    finally:
        database.close()


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from ledger import Ledger

    write(sys.argv[1], Ledger(sys.argv[2]), dict(word.split("=", 1) for word in sys.argv[3:]))
