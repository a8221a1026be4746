"""fjall databases: written and checked by testkit's load, which the program carries as the hidden command `demo-writer`.

Keys are never written twice, each row is a function of its batch, batches span keyspaces: a copy that holds anything but all rows
of the batches 1 … n for one n is refused.
"""

import json
import os
import struct
import subprocess
import time
from pathlib import Path

from report import Failed

RECORD = 32
MAGIC, BEGUN, ACKED = 0x31474C53, 1, 2

LOADS = {
    "batches": {},
    "tiny memtables": {"memtable_bytes": 200_000, "batches_per_second": 6000},
    "large values": {"separate_values": True, "value_bytes": [500, 4000], "large_every": 20, "batches_per_second": 1500},
    "churn": {"churn": {"batches": 20, "keep": 5, "pause_ms": 20}, "batches_per_second": 4000},
    "single keyspace": {"keyspaces": 1, "rows": 8},
}


def marks(path):
    """(begun, acked) as the end of a ledger says."""
    begun = acked = 0
    try:
        size = os.path.getsize(path)
    except FileNotFoundError:
        return 0, 0
    with open(path, "rb") as file:
        file.seek(max(0, size - 4096) // RECORD * RECORD)
        tail = file.read()
    for at in range(0, len(tail) - RECORD + 1, RECORD):
        magic, kind, sequence, _, _ = struct.unpack_from("<IIQQQ", tail, at)
        if magic != MAGIC:
            raise Failed(f"{path} is not a ledger of testkit")
        if kind == BEGUN:
            begun = max(begun, sequence)
        elif kind == ACKED:
            acked = max(acked, sequence)
    return begun, acked


class FjallWriter:
    def __init__(self, trial, root, load="batches", **more):
        self.workplace, self.program = trial.workplace, trial.program()
        self.root = Path(root)
        self.dir, self.ledger = self.root / "db", self.root / "ledger"
        self.load = json.dumps({"seed": trial.seed, **LOADS[load], **more})
        self.process = None

    @property
    def source(self):
        return f"fjall:{self.dir}"

    def start(self, *last):
        self.log = open(self.root / "writer.log", "ab")
        self.process = self.program.start(
            "demo-writer", "write", "fjall", self.load, self.dir, self.ledger, *last, stdout=self.log, stderr=self.log
        )
        return self

    def finish(self, batches):
        self.start(batches)
        if self.process.wait(timeout=300) != 0:
            raise Failed(f"the writer failed: {self.said()}")
        self.kill()
        return self

    def wait(self, batches, timeout=60):
        target, ends = self.acked() + batches, time.monotonic() + timeout
        while self.acked() < target:
            self.demand_alive()
            if time.monotonic() > ends:
                raise Failed(f"the writer made no {batches} batches in {timeout} s: {self.said()}")
            time.sleep(0.01)
        return self

    def demand_alive(self):
        if self.process.poll() is not None:
            raise Failed(f"the writer died with {self.process.returncode}: {self.said()}")

    def said(self):
        return (self.root / "writer.log").read_text(errors="replace")[-500:]

    def begun(self):
        return marks(self.ledger)[0]

    def acked(self):
        return marks(self.ledger)[1]

    def churn_marks(self):
        return marks(f"{self.ledger}.churn")

    def verdict(self, image):
        """What the checker says of a throw-away copy of `image`: (where it stands, where the churn stands) or what is wrong."""
        scratch = self.workplace.dir("scratch")
        try:
            done = subprocess.run(
                self.program.command(["demo-writer", "check", "fjall", self.load, image, scratch]), env=self.program.environment(),
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
            )
        finally:
            self.workplace.remove(scratch)
        if done.returncode != 0:
            return None, (done.stderr or done.stdout).strip()[-500:] or f"the checker died with {done.returncode}"
        answer = json.loads(done.stdout)
        return (answer["standing"], answer.get("churned")), None

    def demand_exact(self, image, before, after):
        """`before`: `acked_lines` before the copy began; `after`: `begun_lines` after it ended."""
        stands, wrong = self.verdict(image)
        if wrong:
            raise Failed(f"wrong {wrong}")
        for what, n, acked, begun in zip(("batches", "churn"), stands, before, after):
            if n is not None and not acked <= n <= begun:
                raise Failed(f"wrong {what} end at {n}, but {acked} was acknowledged before and {begun} begun after")
        return stands[0]

    def acked_lines(self):
        return self.acked(), self.churn_marks()[1]

    def begun_lines(self):
        return self.begun(), self.churn_marks()[0]

    def bytes(self):
        # The writer goes on: what vanishes meanwhile is passed over, directories by os.walk itself.
        total = 0
        for parent, _, names in os.walk(self.dir):
            for name in names:
                try:
                    total += os.lstat(os.path.join(parent, name)).st_blocks * 512
                except FileNotFoundError:
                    pass
        return total

    def kill(self):
        if self.process is not None:
            self.workplace.kill(self.process)
            self.log.close()
            self.process = None

    def close(self):
        self.kill()
