"""The program under test, called as its users call it."""

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path

from report import Failed
from workplace import as_user

OK, FAILED, USAGE = 0, 1, 2
NO_REPOSITORY, WRONG_PASSPHRASE = 10, 12
NOT_CAPTURABLE, TOO_BUSY, NO_SPACE, PERMISSION = 20, 21, 22, 23
DAMAGED, CANCELLED = 30, 130
KILLED = -signal.SIGKILL

PASSPHRASE = "not a secret: only for this proof"


class Outcome:
    def __init__(self, words, code, out, err, seconds):
        self.words, self.code, self.out, self.err, self.seconds = words, code, out, err, seconds

    @property
    def text(self):
        return (self.err + self.out).strip()

    def objects(self):
        """What `--json` printed: one object a line."""
        try:
            return [json.loads(line) for line in self.out.splitlines() if line.strip()]
        except json.JSONDecodeError as broken:
            raise Failed(f"`{self.words}` --json did not print JSON ({broken}): {self.out[:300]!r}") from broken


class Program:
    def __init__(self, path, workplace, env=None, below=()):
        #: Words of a program that calls this one.
        self.below = list(below)
        self.path = Path(path).resolve()
        self.workplace = workplace
        if not self.path.is_file():
            raise Failed(f"{self.path} is not there: build it first")
        self.home = workplace.root / "home"
        self.home.mkdir(exist_ok=True)
        self.extra = dict(env or {})

    def with_env(self, **env):
        return Program(self.path, self.workplace, {**self.extra, **env}, self.below)

    def that_lists_slowly(self, milliseconds):
        """As one that loses the processor in the middle of listing a directory, at each of the calls that this takes."""
        delay = f"inject=getdents64:delay_exit={milliseconds * 1000}"
        below = ["strace", "-f", "-o", "/dev/null", "-e", "trace=getdents64", "-e", delay]
        return Program(self.path, self.workplace, self.extra, below)

    def environment(self, user=None):
        home = self.home if user is None else self.home / f"user-{user}"
        for part in ("state", "cache"):
            (home / part).mkdir(parents=True, exist_ok=True)
            if user is not None:
                os.chown(home / part, user, user)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("STILLFRAME_")}
        return {
            **kept,
            "HOME": str(home),
            "STILLFRAME_PASSPHRASE": PASSPHRASE,
            "STILLFRAME_STATE_DIR": str(home / "state"),
            "STILLFRAME_CACHE_DIR": str(home / "cache"),
            **self.extra,
        }

    def command(self, words, user=None):
        return [*(as_user(user) if user is not None else []), *self.below, str(self.path), *map(str, words)]

    def run(self, *words, expect=OK, user=None, timeout=300, cwd=None):
        """Calls the program and demands its exit code (one, or one of several; None: any)."""
        began = time.monotonic()
        text = " ".join(map(str, words))
        try:
            done = subprocess.run(
                self.command(words, user), env=self.environment(user), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, errors="replace", timeout=timeout, cwd=cwd,
            )
        except subprocess.TimeoutExpired as late:
            raise Failed(f"`{text}` did not end within {timeout} s") from late
        outcome = Outcome(text, done.returncode, done.stdout, done.stderr, time.monotonic() - began)
        wanted = expect if expect is None or isinstance(expect, (set, tuple)) else {expect}
        if wanted is not None and outcome.code not in wanted:
            raise Failed(f"`{text}`: exit {outcome.code}, expected {sorted(wanted)}: {outcome.text[-700:]}")
        for ugly in ("panicked at", "stack backtrace", "RUST_BACKTRACE", "Err(", "Os {"):
            if ugly in outcome.err:
                raise Failed(f"`{text}` shows its insides ({ugly}): {outcome.err.strip()[-700:]}")
        return outcome

    def start(self, *words, user=None, **how):
        """Starts the program and returns at once."""
        how.setdefault("stdout", subprocess.PIPE)
        how.setdefault("stderr", subprocess.PIPE)
        how.setdefault("text", True)
        return self.workplace.start(self.command(words, user), env=self.environment(user), **how)

    # --------------------------------------------------------------------------------------------------- short forms

    def image(self, source, to, *flags, **how):
        """Takes an image and returns its description."""
        self.run("image", "create", source, "--to", to, *flags, **how)
        return snapshot_of(to)

    def init(self, repo, *flags):
        return self.run("repo", "init", repo, *flags)

    def backups(self, repo, **how):
        """What `snapshots --json` lists: objects with an `id`, oldest first."""
        listed = []
        for entry in self.run("snapshots", "-r", repo, "--json", **how).objects():
            listed += entry if isinstance(entry, list) else entry.get("backups", entry.get("snapshots", [entry]))
        listed = [entry for entry in listed if "id" in entry]
        return listed


def wait_until_captured(running, timeout=60):
    """Until a started backup says that its capture is done: from then on it reads and stores. Returns what it said."""
    said, ends, pipe = "", time.monotonic() + timeout, running.stderr.fileno()
    while "captured " not in said:
        if select.select([pipe], [], [], 0.1)[0]:
            more = os.read(pipe, 4096).decode(errors="replace")
            if not more:
                raise Failed(f"it ended with {running.wait()} before it stored anything: {said[-300:]}")
            said += more
        if time.monotonic() > ends:
            raise Failed(f"it captured nothing in {timeout} s: {said[-300:]}")
    return said


def snapshot_of(image):
    path = Path(image) / "snapshot.json"
    if not path.is_file():
        raise Failed(f"{path} is missing: the image does not say what it is")
    snapshot = json.loads(path.read_text())
    for field in ("engine", "instant", "window_us", "attempts", "files", "pointers"):
        if field not in snapshot:
            raise Failed(f"{path} has no {field!r}")
    return snapshot
