#!/usr/bin/env python3
"""The slots rule on LevelDB, for the interpreter that has plyvel.

    leveldb_oracle.py write DIR LEDGER [limit]
    leveldb_oracle.py check DIR ACKED BEGUN

Commit i puts, in one batch, two keys (`a` and `b`, i mod SLOTS), values a function of i. After commit N slot s holds the
newest i ≤ N with i ≡ s, and nothing else is there.
"""

import hashlib
import os
import struct
import sys

import plyvel

SLOTS = 20_000
SIDES = (b"a", b"b")


def key(side, i):
    return side + struct.pack(">q", i % SLOTS)


def value(side, i):
    return struct.pack(">q", i) + hashlib.shake_128(side + str(i).encode()).digest(250 + i * 31 % 100)


def write(path, ledger, limit):
    database = plyvel.DB(path, create_if_missing=True, write_buffer_size=1 << 20, max_file_size=1 << 20, compression=None)
    i = ledger.get(1) + 1
    print("writing", flush=True)
    while i < limit:
        ledger.set(0, i)
        with database.write_batch() as batch:
            for side in SIDES:
                batch.put(key(side, i), value(side, i))
        ledger.set(1, i)
        i += 1
    database.close()


def check(path, acked, begun):
    database = plyvel.DB(path, create_if_missing=False, paranoid_checks=True)
    rows = dict(database.iterator(verify_checksums=True, fill_cache=False))
    database.close()
    newest = max((struct.unpack_from(">q", row)[0] for row in rows.values()), default=-1)
    for side in SIDES:
        for slot in range(SLOTS):
            i = newest - (newest - slot) % SLOTS
            found = rows.pop(key(side, slot), None)
            if found != (value(side, i) if i >= 0 else None):
                holds = struct.unpack_from(">q", found)[0] if found else None
                return f"wrong side {side.decode()}, slot {slot}: holds {holds}, must hold {i} of {newest}"
    if rows:
        return f"wrong {len(rows)} rows that nobody wrote"
    if not acked <= newest <= begun:
        return f"wrong ends at {newest}, but {acked} was acknowledged before and {begun} begun after"
    return f"ok n={newest}"


if __name__ == "__main__":
    if sys.argv[1] == "write":
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        from ledger import Ledger

        write(sys.argv[2], Ledger(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 1 << 60)
    else:
        try:
            print(check(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
        except plyvel.Error as refused:
            print(f"wrong the engine says: {refused}")
