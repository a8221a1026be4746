"""LevelDB by way of plyvel, which brings its own build of it."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from ledger import Ledger
from report import Failed, Missing
from rocks import CACHE

ORACLE = Path(__file__).resolve().parent / "leveldb_oracle.py"
PLYVEL = "plyvel==1.5.1"


def interpreter():
    """A Python that has plyvel; made once, from the package index."""
    venv = CACHE / "venv"
    python = venv / "bin" / "python"
    has = lambda: subprocess.run([python, "-c", "import plyvel"], capture_output=True).returncode == 0
    if not (python.exists() and has()):
        shutil.rmtree(venv, ignore_errors=True)
        for words in ([sys.executable, "-m", "venv", venv], [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PLYVEL]):
            done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
            if done.returncode != 0:
                raise Missing(f"{PLYVEL} could not be installed: {done.stderr.strip()[-300:]}")
        if not has():
            raise Missing(f"{PLYVEL} was installed and cannot be loaded")
    return str(python)


class LeveldbWriter:
    def __init__(self, workplace, root):
        self.workplace, self.root = workplace, Path(root)
        self.dir = self.root / "db"
        self.ledger = Ledger(self.root / "ledger")
        self.python = interpreter()
        self.process = None

    @property
    def source(self):
        return f"leveldb:{self.dir}"

    def start(self, *limit):
        self.log = open(self.root / "writer.log", "ab")
        self.process = self.workplace.start(
            [self.python, ORACLE, "write", self.dir, self.root / "ledger", *limit], stdout=self.log, stderr=self.log
        )
        return self

    def finish(self, commits):
        self.start(commits)
        if self.process.wait(timeout=300) != 0:
            raise Failed(f"the writer failed: {self.said()}")
        self.kill()
        return self

    def wait(self, commits, timeout=60):
        target, ends = max(0, self.ledger.get(1)) + commits, time.monotonic() + timeout
        while self.ledger.get(1) < target:
            self.demand_alive()
            if time.monotonic() > ends:
                raise Failed(f"the writer made no {commits} commits in {timeout} s")
            time.sleep(0.01)
        return self

    def demand_alive(self):
        if self.process.poll() is not None:
            raise Failed(f"the writer died: {self.said()}")

    def said(self):
        return (self.root / "writer.log").read_text(errors="replace")[-400:]

    def demand_exact(self, image, acked, begun):
        copy = self.workplace.dir("copy")
        try:
            shutil.copytree(image, copy / "db")
            done = subprocess.run(
                [self.python, ORACLE, "check", copy / "db", str(acked), str(begun)], capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            if not done.stdout.startswith("ok "):
                raise Failed(done.stdout.strip() or f"the checker died: {done.stderr.strip()[-400:]}")
            return done.stdout.strip()[3:]
        finally:
            self.workplace.remove(copy)

    def kill(self):
        if self.process is not None:
            self.workplace.kill(self.process)
            self.log.close()
            self.process = None

    def close(self):
        self.kill()
        self.ledger.close()
