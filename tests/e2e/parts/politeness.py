"""Who gives way: the threads of a polite command are nicer than those of others, but for a backup's capture, which must not be slow."""

import os
import subprocess
import time
from pathlib import Path

from report import Failed
from rocks import NEWEST, SETTINGS, Release, RocksWriter

#: As this proof is itself, and as who gives way must be.
OURS = os.nice(0)
NICE = max(10, OURS)


def run(trial):
    root = trial.workplace.dir("politeness")
    (root / "app").mkdir()
    writer = RocksWriter(Release(NEWEST, trial.workplace), SETTINGS["default"], root / "app").finish(20_000)
    program, repo = trial.program(), root / "repo"
    program.init(repo)
    # Enough for a look at those who read it.
    (root / "large").mkdir()
    (root / "large" / "data").write_bytes(trial.random("politeness").randbytes(200 << 20))
    for _ in range(2):
        program.run("backup", f"files:{root / 'large'}", "-r", repo, "--reserve", "0")
    try:
        for fast in ([], ["--fast"]):
            how = "fast" if fast else "polite"
            with trial.report.check(f"{how} backup: its capture gives way to nobody, the rest {'neither' if fast else 'does'}") as line:
                places = root / f"places-{how}"
                hanging = trial.program("failpoints", STILLFRAME_HANG_AT="rocksdb::log copied", STILLFRAME_FAILPOINT_LOG=str(places))
                running = hanging.start("backup", writer.source, "-r", repo, *fast)
                wait_for(lambda: places.exists() and "log copied" in places.read_text())
                found = nice_by_thread(running.pid)
                trial.workplace.kill(running)
                # Its main thread only waits.
                others = {nice for name, nice in found if name not in (own(hanging), "capture", "job-heartbeat")}
                if ("capture", OURS) not in found or others != {OURS if fast else NICE}:
                    raise Failed(f"threads are {sorted(found)}")
                line.say(threads=len(found))
            for words in (["prune"], ["check", "--read-data"], ["verify"], ["forget", "--keep-last", "1"]):
                with trial.report.check(f"{how} {words[0]}: all threads are {'as nice as any' if fast else 'nicer'}") as line:
                    running = trial.workplace.start(program.command([*words, "-r", repo, *fast]), env=program.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    found = set()
                    while running.poll() is None:
                        found |= set(nice_by_thread(running.pid))
                    # Before it has read its options it is like any other.
                    nices = {nice for name, nice in found if name != own(program)}
                    if len(found) < 2 or nices != {OURS if fast else NICE} or (not fast and (own(program), NICE) not in found):
                        raise Failed(f"threads are {sorted(found)}")
                    line.say(threads=len(found))
    finally:
        writer.close()
        trial.workplace.remove(root)


def own(program):
    """What Linux calls a thread that has no other name."""
    return program.path.name[:15]


def nice_by_thread(pid):
    """(name, nice) of each thread that is there."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            name, rest = task.read_text().split("(", 1)[1].rsplit(")", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.append((name, int(rest.split()[16])))
    return found


def wait_for(what):
    ends = time.monotonic() + 30
    while not what():
        if time.monotonic() > ends:
            raise Failed("it did not come to where it hangs")
        time.sleep(0.01)
