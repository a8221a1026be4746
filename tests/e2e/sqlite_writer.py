"""Processes that keep a SQLite database busy: Python's module and the `sqlite3` shell."""

import select
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import sqlite_oracle
from ledger import Ledger
from report import Failed
from workplace import need

ORACLE = Path(sqlite_oracle.__file__).resolve()


class SqliteWriter:
    """Python's sqlite3 module in a process of its own."""

    def __init__(self, workplace, root, user=None, **settings):
        self.workplace, self.root, self.settings = workplace, Path(root), settings
        self.path = self.root / "app.sqlite"
        self.ledger = Ledger(self.root / "ledger")
        self.process = None

    @property
    def source(self):
        return f"sqlite:{self.path}"

    def start(self, **more):
        words = [f"{name}={value}" for name, value in {**self.settings, **more}.items()]
        self.log = open(self.root / "writer.log", "ab")
        self.process = self.workplace.start(
            [sys.executable, ORACLE, self.path, self.root / "ledger", *words], stdout=self.log, stderr=self.log
        )
        return self

    def finish(self, transactions, **more):
        """Writes that many transactions and ends; `close="abrupt"`: without closing the database."""
        self.start(limit=transactions, **more)
        if self.process.wait(timeout=300) != 0:
            raise Failed(f"the writer failed: {self.said()}")
        self.kill()
        return self

    def wait(self, transactions, timeout=120):
        target, ends = max(0, self.ledger.get(1)) + transactions, time.monotonic() + timeout
        while self.ledger.get(1) < target:
            self.demand_alive()
            if time.monotonic() > ends:
                raise Failed(f"the writer made no {transactions} transactions in {timeout} s: {self.said()}")
            time.sleep(0.005)
        return self

    def demand_alive(self):
        if self.process.poll() is not None:
            raise Failed(f"the writer died: {self.said()}")

    def said(self):
        return (self.root / "writer.log").read_text(errors="replace")[-400:]

    def acked(self):
        return self.ledger.get(1)

    def begun(self):
        return self.ledger.get(0)

    def refused(self):
        return max(0, self.ledger.get(sqlite_oracle.BUSY))

    def longest_ms(self):
        """The longest commit since the last call."""
        longest = self.ledger.get(sqlite_oracle.LONGEST)
        self.ledger.set(sqlite_oracle.LONGEST, 0)
        return longest / 1000

    def kill(self):
        if self.process is not None:
            self.workplace.kill(self.process)
            self.log.close()
            self.process = None

    def close(self):
        self.kill()
        self.ledger.close()


class ShellWriter(SqliteWriter):
    """The `sqlite3` shell, fed with one transaction after another by a thread of ours."""

    def start(self, **more):
        settings = {**self.settings, **more}
        if not self.path.exists():
            sqlite_oracle.create(self.path, settings).close()
        self.log = open(self.root / "writer.log", "ab")
        self.stopping = False
        self.broken = None
        self._open(settings)
        self.thread = threading.Thread(target=self._feed, args=(settings,), daemon=True)
        self.thread.start()
        return self

    def _open(self, settings):
        self.process = self.workplace.start(
            [need("sqlite3"), "-batch", "-bail", self.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        # The shell sets no busy timeout of its own.
        self.process.stdin.write(f".timeout {int(float(settings.get('timeout', 5)) * 1000)}\n")

    def _feed(self, settings):
        n = None
        while not self.stopping:
            try:
                if n is None:
                    n = int(self._ask("SELECT n FROM c0;")) + 1
                self.ledger.set(0, n)
                row = sqlite_oracle.row_of(n)
                answer = self._ask(
                    f"BEGIN IMMEDIATE; UPDATE c0 SET n = {n} WHERE k = 0;"
                    f"UPDATE t SET v = X'{sqlite_oracle.value(n, row).hex()}' WHERE id = {row};"
                    f"UPDATE c1 SET n = {n} WHERE k = 0; COMMIT; SELECT {n};"
                )
                if int(answer) != n:
                    raise Failed(f"the shell answered {answer}")
                self.ledger.set(1, n)
                n += 1
            except (BrokenPipeError, EOFError):
                # A refused commit ends the shell (-bail) and with it its transaction.
                if self.stopping:
                    return
                self.ledger.set(sqlite_oracle.BUSY, self.refused() + 1)
                self.process.wait()
                self._open(settings)
                n = None
            except Exception as broken:
                self.broken = broken
                return

    def _ask(self, sql):
        self.process.stdin.write(sql + "\n")
        self.process.stdin.flush()
        while not select.select([self.process.stdout], [], [], 0.2)[0]:
            if self.stopping:
                raise EOFError
        answer = self.process.stdout.readline()
        if not answer:
            raise EOFError
        return answer

    def demand_alive(self):
        if self.broken or not self.thread.is_alive():
            raise Failed(f"the shell's writer ended: {self.broken}; {self.said()}")

    def kill(self):
        self.stopping = True
        if self.process is not None:
            self.workplace.kill(self.process)
            self.thread.join(timeout=10)
            if self.process is not None:
                self.workplace.kill(self.process)
            self.log.close()
            self.process = None


def demand_exact(workplace, image, acked, begun):
    """Checks a throw-away copy of the database file `image`; returns its last transaction."""
    copy = workplace.dir("copy")
    try:
        for path in image.parent.glob(image.name + "*"):
            shutil.copy2(path, copy / path.name)
        wrong, last = sqlite_oracle.check(copy / image.name, acked, begun)
        if wrong:
            raise Failed(f"wrong {wrong}")
        return last
    finally:
        workplace.remove(copy)
