"""The oracle on RocksDB, held against itself: exact states are accepted, and each way to spoil one is refused.

A stopped process and a plain copy of everything it wrote is an exact state, with no help from the program under test.
"""

import os
import shutil
import signal
import time

from report import Failed
from rocks import NEWEST, SETTINGS, Release, RocksChecker, RocksWriter, settings_for


def run(trial):
    checkers = {}
    try:
        for name in ("6.29.5", "8.11.4", NEWEST):
            release = Release(name, trial.workplace)
            checker = checkers.setdefault(name, RocksChecker(release))
            for setting in settings_for(name, trial.long):
                if trial.wants(setting.name) and (name == NEWEST or trial.long):
                    accepts(trial, release, checker, setting)
        refuses(trial, checkers[NEWEST])
    finally:
        for checker in checkers.values():
            checker.close()


def stopped_copy(writer, to):
    """The whole state of a database while its process stands still, laid out as an image is; with its ledger."""
    os.kill(writer.process.pid, signal.SIGSTOP)
    try:
        wait_stopped(writer.process.pid)
        shutil.copytree(writer.dir, to, ignore=shutil.ignore_patterns("LOCK", "LOG*", "*.trash", "archive"))
        for made, name in (("logs", "wal_dir"), ("slow", "db_path-1"), ("own", "cf_path-family1-0")):
            if (writer.root / made).is_dir():
                shutil.copytree(writer.root / made, to / name)
        return writer.acked(), writer.begun()
    finally:
        os.kill(writer.process.pid, signal.SIGCONT)


def wait_stopped(pid):
    """All threads stand still."""
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        try:
            states = [open(f"/proc/{pid}/task/{task}/stat").read().rsplit(")", 1)[1].split()[0] for task in os.listdir(f"/proc/{pid}/task")]
        except FileNotFoundError:
            continue  # a thread ended between the listing and the look
        if all(state == "T" for state in states):
            return
        time.sleep(0.005)
    raise Failed(f"process {pid} did not stop")


def accepts(trial, release, checker, setting):
    with trial.report.check(f"oracle accepts an exact state: {setting.name} {release.name}") as line:
        root = trial.workplace.dir(f"exact-{setting.name}")
        writer = RocksWriter(release, setting, root).start()
        try:
            writer.wait(8000 if setting.writer.get("pace") else 30_000)
            acked, begun = stopped_copy(writer, root / "state")
            line.say(**checker.demand(root / "state", setting, acked, begun))
        finally:
            writer.close()
            trial.workplace.remove(root)


def logs(state):
    return sorted(path for path in state.iterdir() if path.suffix == ".log" and path.stat().st_size)


def cut_newest_log(early, late, state):
    newest = logs(state)[-1]
    os.truncate(newest, newest.stat().st_size * 2 // 3)


def lose_newest_log(early, late, state):
    newest = logs(state)[-1]
    newest.unlink()


def hole_between_logs(early, late, state):
    """What copying the oldest log first does: it ends too early, and the next one goes on."""
    middle = logs(state)[-2]
    os.truncate(middle, middle.stat().st_size // 2)


def damaged_log(early, late, state):
    newest = logs(state)[-1]
    with open(newest, "r+b") as file:
        file.seek(newest.stat().st_size // 2)
        file.write(b"\xff" * 64)


def damaged_table(early, late, state):
    table = max(state.glob("*.sst"), key=lambda path: path.stat().st_size)
    with open(table, "r+b") as file:
        file.seek(table.stat().st_size // 2)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 1]))


def missing_table(early, late, state):
    min(state.glob("*.sst")).unlink()


def all_logs_lost(early, late, state):
    for log in logs(state):
        log.unlink()


def pointers_of_another_moment(early, late, state):
    """Logs of now with tables and pointers of before: no second look."""
    shutil.rmtree(state)
    shutil.copytree(early, state)
    for log in logs(state):
        log.unlink()
    for log in logs(late):
        shutil.copy2(log, state)


def earlier_state(early, late, state):
    """A whole and exact state, but of a time before what had been acknowledged."""
    shutil.rmtree(state)
    shutil.copytree(early, state)


SPOILERS = {
    "the newest log cut": cut_newest_log,
    "the newest log lost": lose_newest_log,
    "an older log cut": hole_between_logs,
    "a log damaged": damaged_log,
    "one bit of a table": damaged_table,
    "a table missing": missing_table,
    "all logs lost": all_logs_lost,
    "pointers of another moment": pointers_of_another_moment,
    "an earlier state": earlier_state,
}


def refuses(trial, checker):
    """Two exact states of one database, and what may not be made of them."""
    setting = SETTINGS["default"]
    root = trial.workplace.dir("spoiled")
    writer = RocksWriter(checker.release, setting, root).start()
    try:
        writer.wait(30_000)
        early_words = stopped_copy(writer, root / "early")
        writer.wait(20_000)
        acked, begun = stopped_copy(writer, root / "late")
    finally:
        writer.close()
    with trial.report.check("oracle accepts both states before they are spoiled"):
        checker.demand(root / "early", setting, *early_words)
        checker.demand(root / "late", setting, acked, begun)
    for name, spoil in SPOILERS.items():
        with trial.report.check(f"oracle refuses: {name}") as line:
            state = root / "spoiled"
            shutil.copytree(root / "late", state)
            spoil(root / "early", root / "late", state)
            answer = checker.verdict(state, setting, acked, begun)
            shutil.rmtree(state)
            if not answer.startswith("wrong "):
                raise Failed(f"accepted: {answer}")
            line.say(why=answer[6:150].replace(" ", "_"))
    with trial.report.check("oracle refuses: commits from the future") as line:
        answer = checker.verdict(root / "late", setting, *early_words)
        if not answer.startswith("wrong "):
            raise Failed(f"accepted: {answer}")
        line.say(why=answer[6:150].replace(" ", "_"))
    trial.workplace.remove(root)
