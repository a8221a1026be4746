"""Negative controls: a build that makes a known mistake must be caught by the same oracle that accepts the real one."""

import time

from fjall import FjallWriter
from report import Failed
from rocks import NEWEST, SETTINGS, Release, RocksChecker, RocksWriter

#: Mistake → (what to write with, captures at least before it counts as not caught).
ON_ROCKSDB = {
    "oldest-first-logs": ("held-memtables", 80),
    "late-recycled-logs": ("recycled", 40),
    "wrong-log-dir": ("wal-dir", 10),
    "logs-listed-once": ("crowded", 40),
    "no-second-look": ("default", 40),
    "handles": ("slow-deletion", 20),
    "stop-at-zero-header": ("recycled", 60),
}
ON_FJALL = {
    "fjall-no-second-look": ("tiny memtables", 40),
    "fjall-late-journals": ("churn", 60),
    # It shows in about one of eighty.
    "fjall-block-rounded-ends": ("churn", 500),
}


def run(trial):
    release = Release(NEWEST, trial.workplace)
    checker = RocksChecker(release)
    try:
        for mistake, (setting, most) in ON_ROCKSDB.items():
            if trial.wants(mistake):
                on_rocksdb(trial, release, checker, mistake, SETTINGS[setting], most)
    finally:
        checker.close()
    for mistake, (load, most) in ON_FJALL.items():
        if trial.wants(mistake):
            on_fjall(trial, mistake, load, most)
    if not trial.only:
        manual_persist(trial)


def caught(trial, name, most, capture):
    """Calls `capture` until it says that something was wrong: at least `most` times and for two minutes, since a mistake does harm only
    at the wrong moment."""
    with trial.report.check(name) as line:
        refused, why, ends, turn = 0, "", time.monotonic() + 120, 0
        while turn < most or time.monotonic() < ends:
            turn += 1
            kind, what = capture(turn)
            if kind == "wrong":
                line.say(captures=turn, refused_by_the_program=refused, why=what[:150].replace(" ", "_"))
                return
            if kind == "refused":
                refused, why = refused + 1, f": {what[-300:]}"
        raise Failed(f"not caught in {turn} captures ({refused} of them refused by the program itself{why})")


def on_rocksdb(trial, release, checker, mistake, setting, most):
    program = trial.program("sabotage", STILLFRAME_SABOTAGE=mistake)
    if setting.strangers:
        program = program.that_lists_slowly(4)
    root, draw = trial.workplace.dir(f"sabotage-{mistake}"), trial.random(f"sabotage {mistake}")
    writer = RocksWriter(release, setting, root).start()
    empty = trial.workplace.dir("no-logs")
    flags = ["--wal-dir", empty] if mistake == "wrong-log-dir" else []

    def capture(turn):
        if writer.process is None:
            writer.start()
        writer.wait(draw.randrange(100, 2000))
        if mistake == "wrong-log-dir":
            # Of a running owner the program sees where its logs are, and refuses: another defence than the one taken away.
            writer.kill()
        target = root / f"image-{turn}"
        acked = writer.acked()
        outcome = program.run("image", "create", writer.source, "--to", target, "--deadline", "10", *flags, expect=None)
        begun = writer.begun()
        if outcome.code != 0:
            return "refused", outcome.text
        answer = checker.verdict(target, setting, acked, begun)
        trial.workplace.remove(target)
        return ("wrong", answer) if answer.startswith("wrong ") else ("right", answer)

    try:
        writer.wait(10_000 if setting.writer.get("pace") else 60_000)
        caught(trial, f"caught: {mistake} (rocksdb {setting.name})", most, capture)
    finally:
        writer.close()
        trial.workplace.remove(root)


def on_fjall(trial, mistake, load, most):
    program = trial.program("sabotage", STILLFRAME_SABOTAGE=mistake)
    home, draw = trial.workplace.dir("sabotage-fjall"), trial.random(f"sabotage fjall {mistake}")
    state = {}

    def capture(turn):
        if turn % 4 == 1:  # a small database is checked fast
            if state:
                state["writer"].close()
                trial.workplace.remove(state["writer"].root)
            root = home / f"{turn}"
            root.mkdir()
            state["writer"] = FjallWriter(trial, root, load).start().wait(3000)
        writer = state["writer"]
        writer.wait(draw.randrange(5, 300))
        target, before = writer.root / f"image-{turn}", writer.acked_lines()
        outcome = program.run("image", "create", writer.source, "--to", target, "--deadline", "10", expect=None)
        if outcome.code != 0:
            return "refused", outcome.text
        try:
            n = writer.demand_exact(target, before, writer.begun_lines())
        except Failed as failed:
            return "wrong", str(failed)
        finally:
            trial.workplace.remove(target)
        return "right", str(n)

    try:
        caught(trial, f"caught: {mistake} (fjall {load})", most, capture)
    finally:
        if state:
            state["writer"].close()
        trial.workplace.remove(home)


def manual_persist(trial):
    """Nothing is wrong with the capture here: the engine keeps acknowledged batches in its process. The oracle must see it."""
    program, root = trial.program(), trial.workplace.dir("manual-persist")
    # Slow enough that what it keeps to itself when a capture is asked for it still keeps at the capture's instant, which is later by
    # the start of a process and the copy of a journal.
    writer = FjallWriter(trial, root, "batches", manual_persist=True, batches_per_second=20)

    def capture(turn):
        time.sleep(0.05)
        target, before = root / f"image-{turn}", writer.acked_lines()
        program.run("image", "create", writer.source, "--to", target)
        try:
            n = writer.demand_exact(target, before, writer.begun_lines())
        except Failed as failed:
            if "was acknowledged before" not in str(failed):
                raise Failed(f"more than the engine's own limit shows: {failed}") from failed
            return "wrong", str(failed)
        finally:
            trial.workplace.remove(target)
        return "right", str(n)

    try:
        writer.start().wait(60)
        caught(trial, "caught: acknowledged batches that fjall kept to itself (manual persist)", 20, capture)
    finally:
        writer.close()
        trial.workplace.remove(root)
