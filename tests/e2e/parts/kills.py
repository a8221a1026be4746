"""kill -9 of the program between any two of its durable steps and at random; of writers at random; Ctrl-C."""

import shutil
import signal
import subprocess
import time

from fjall import FjallWriter
from inventory import demand_no_leftovers, demand_unchanged, digest, inventory, leftovers
from program import CANCELLED, KILLED, wait_until_captured
from report import Failed
from rocks import NEWEST, SETTINGS, Release, RocksChecker, RocksWriter
from sqlite_writer import SqliteWriter


def run(trial):
    release = Release(NEWEST, trial.workplace)
    kinds = {
        "rocksdb": lambda root: RocksWriter(release, SETTINGS["default"], root).finish(4000),
        "fjall": lambda root: FjallWriter(trial, root).finish(300),
        "sqlite": lambda root: SqliteWriter(trial.workplace, root, journal="wal").finish(300),
    }
    for name, make in kinds.items():
        if trial.wants(name):
            enumerated(trial, name, make)
    if not trial.only or trial.wants("random"):
        at_random(trial, release)
    if not trial.only or trial.wants("cancel"):
        cancelled(trial, release)


class Scene:
    """A closed database, a repository with one backup of it, and what a restored copy must look like."""

    def __init__(self, trial, name, make):
        self.trial, self.name = trial, name
        # One of them with a passphrase; deriving keys from it takes most of the time of so short a run.
        self.options, self.env = ([], {}) if name == "rocksdb" else (["--no-encryption"], {"STILLFRAME_PASSPHRASE": ""})
        self.plain, self.root = self.program("plain"), trial.workplace.dir(f"kills-{name}")
        self.app = self.root / "app"
        self.app.mkdir()
        self.writer = make(self.app)
        self.source = self.writer.source
        self.repo = self.root / "repo"
        self.init(self.repo)
        self.plain.run("backup", self.source, "-r", self.repo, "--name", "first")
        self.plain.run("restore", "first", "-r", self.repo, "--to", self.root / "reference")
        self.reference = digest(self.root / "reference")
        self.before = inventory(self.app)

    def program(self, build, **env):
        return self.trial.program(build, **self.env, **env)

    def init(self, repo):
        self.plain.init(repo, *self.options)

    def demand_source_unchanged(self):
        # What lies beside the database belongs to it too, but leftovers of a killed run may lie there until the next one.
        now = {name: facts for name, facts in inventory(self.app).items() if not name.startswith(".stillframe-")}
        indexes = {f"{self.writer.path.name}{suffix}" for suffix in ("-shm", "-wal")} if self.name == "sqlite" else set()
        demand_unchanged(self.before, now, allow=indexes, beside={"."})

    def demand_every_listed_backup_restores(self, repo):
        ids = [backup["id"] for backup in self.plain.backups(repo)]
        for number, backup in enumerate(ids):
            target = self.root / f"restored-{number}"
            self.plain.run("restore", backup, "-r", repo, "--to", target)
            if digest(target) != self.reference:
                raise Failed(f"backup {backup} is listed and restores to something else")
            shutil.rmtree(target)
        return ids

    def close(self):
        self.writer.close()
        self.trial.workplace.remove(self.root)


def enumerated(trial, name, make):
    scene = Scene(trial, name, make)
    try:
        for verb, words, after in (
            ("image create", lambda scratch: ["image", "create", scene.source, "--to", scratch / "target"], after_image),
            ("backup", lambda scratch: ["backup", scene.source, "-r", scratch / "repo"], after_backup),
            ("first backup", lambda scratch: ["backup", scene.source, "-r", scratch / "repo"], after_backup),
            ("restore", lambda scratch: ["restore", "first", "-r", scratch / "repo", "--to", scratch / "target"], after_restore),
        ):
            if verb != "first backup" or name == "rocksdb" or trial.long:
                each_failpoint(trial, scene, verb, words, after)
    finally:
        scene.close()


def scratch_with_repository(scene, verb):
    scratch = scene.trial.workplace.dir("killed")
    if verb == "first backup":
        scene.init(scratch / "repo")
    elif verb != "image create":
        shutil.copytree(scene.repo, scratch / "repo", symlinks=True)
    return scratch


def each_failpoint(trial, scene, verb, words, after):
    log = trial.workplace.root / "failpoints.log"
    with trial.report.check(f"kill {scene.name} {verb}: steps are counted") as line:
        log.unlink(missing_ok=True)
        scratch = scratch_with_repository(scene, verb)
        scene.program("failpoints", STILLFRAME_FAILPOINT_LOG=str(log)).run(*words(scratch))
        shutil.rmtree(scratch)
        steps = [entry.split(" ", 1)[1] for entry in log.read_text().splitlines()]
        if len(set(steps)) < 3:
            raise Failed(f"only {sorted(set(steps))}: is this the build with failpoints?")
        line.say(steps=len(steps), names=len(set(steps)))
    if not log.exists():
        return
    for number in chosen(trial, f"{scene.name} {verb}", steps):
        with trial.report.check(f"kill {scene.name} {verb} at {number} of {len(steps)}, {steps[number - 1]}") as line:
            scratch = scratch_with_repository(scene, verb)
            try:
                # Steps of parallel tasks change places from run to run: a run that passes fewer of them may end well.
                code = scene.program("failpoints", STILLFRAME_KILL_AT=str(number)).run(*words(scratch), expect=(KILLED, 0)).code
                if code == 0 and number < len(steps) * 3 // 4:
                    raise Failed("it was not killed")
                scene.demand_source_unchanged()
                after(scene, scratch, line, words)
                demand_no_leftovers(scene.root, scratch)
                scene.demand_source_unchanged()
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


def chosen(trial, name, steps):
    """All steps in .ci/long; otherwise the first and last of each name and a few more."""
    everything = range(1, len(steps) + 1)
    if trial.long or len(steps) <= 16:
        return list(everything)
    picked = set()
    for step in set(steps):
        places = [number for number in everything if steps[number - 1] == step]
        picked |= {places[0], places[-1]}
    rest = sorted(set(everything) - picked)
    return sorted(picked | set(trial.random(f"kills {name}").sample(rest, min(4, len(rest)))))


def after_image(scene, scratch, line, words):
    target = scratch / "target"
    whole = target.exists()
    if whole:
        scene.plain.run("image", "validate", target)
        if not (target / "snapshot.json").is_file():
            raise Failed("the target is there without its description")
        shutil.rmtree(target)
    scene.plain.run(*words(scratch))
    scene.plain.run("image", "validate", target)
    line.say(target="whole" if whole else "absent")


def after_restore(scene, scratch, line, words):
    target = scratch / "target"
    whole = target.exists()
    if whole:
        if digest(target) != scene.reference:
            raise Failed("the target is there and is not whole")
        shutil.rmtree(target)
    scene.plain.run(*words(scratch))
    if digest(target) != scene.reference:
        raise Failed("the next restore is not whole")
    line.say(target="whole" if whole else "absent")


def after_backup(scene, scratch, line, words):
    repo = scratch / "repo"
    listed = scene.demand_every_listed_backup_restores(repo)
    scene.plain.run(*words(scratch))
    again = scene.demand_every_listed_backup_restores(repo)
    if len(again) != len(listed) + 1:
        raise Failed(f"{len(listed)} backups were listed, {len(again)} after one more")
    for backup in again:
        scene.plain.run("verify", backup, "-r", repo, "--level", "hash")
    line.say(listed=len(listed))


# ----------------------------------------------------------------------------------------------------------- at random


def at_random(trial, release):
    """A busy writer; the program killed at any moment, sometimes the writer too; then a whole backup must come."""
    program, checker = trial.program(), RocksChecker(release)
    draw, root = trial.random("kills random"), trial.workplace.dir("kills-random")
    (root / "app").mkdir()
    writer = RocksWriter(release, SETTINGS["default"], root / "app").start()
    repo, bounds = root / "repo", {}
    program.init(repo)
    try:
        writer.wait(60_000)
        began = time.monotonic()
        note_bounds(program, writer, repo, bounds)
        usual, kills = time.monotonic() - began, 0
        for turn in range(trial.captures * 2):
            with trial.report.check(f"random kill {turn + 1}") as line:
                delay, kill_writer = draw.random() * usual, draw.random() < 0.3
                acked = writer.acked()
                running = program.start("backup", writer.source, "-r", repo)
                try:
                    running.wait(timeout=delay)
                except subprocess.TimeoutExpired:
                    pass
                if kill_writer:
                    writer.kill()
                code = running.poll()
                kills += code is None
                trial.workplace.kill(running)
                unknown = [backup["id"] for backup in program.backups(repo) if backup["id"] not in bounds]
                for backup in unknown:
                    bounds[backup] = (acked, writer.begun())
                if code == 0 and not unknown:
                    raise Failed("a backup that reported success is not listed")
                if writer.process is None:
                    writer.start().wait(500)
                note_bounds(program, writer, repo, bounds)
                demand_no_leftovers(root)
                # The newest, the killed one if it is listed, and any other.
                backups = {list(bounds)[-1], draw.choice(list(bounds)), *unknown}
                for backup in backups:
                    program.run("restore", backup, "-r", repo, "--to", root / "restored")
                    checker.demand(root / "restored", writer.setting, *bounds[backup])
                    shutil.rmtree(root / "restored")
                line.say(after_ms=int(delay * 1000), killed=code is None, writer_killed=kill_writer, listed=len(unknown), restored=len(backups))
            if writer.process is None:
                writer.start()
            writer.wait(draw.randrange(100, 5000))
        with trial.report.check("every backup of the random kills verifies") as line:
            for backup in program.backups(repo):
                program.run("verify", backup["id"], "-r", repo, "--level", "hash")
            line.say(backups=len(bounds), kills=kills)
            if not kills:
                raise Failed("every backup ended before it was killed: nothing was proven")
    finally:
        writer.close()
        checker.close()
        trial.workplace.remove(root)


def note_bounds(program, writer, repo, bounds):
    acked = writer.acked()
    known = set(bounds)
    program.run("backup", writer.source, "-r", repo)
    new = [backup["id"] for backup in program.backups(repo) if backup["id"] not in known]
    if len(new) != 1:
        raise Failed(f"one backup was made, {len(new)} are new in the list")
    bounds[new[0]] = (acked, writer.begun())


# --------------------------------------------------------------------------------------------------------------- Ctrl-C


def wait_for(what, name, pause=0.01):
    ends = time.monotonic() + 30
    while not what():
        if time.monotonic() > ends:
            raise Failed(f"{name} did not come")
        time.sleep(pause)


def cancelled(trial, release):
    program, root = trial.program(), trial.workplace.dir("cancelled")
    (root / "app").mkdir()
    writer = RocksWriter(release, SETTINGS["default"], root / "app").finish(60_000)
    before, repo = inventory(root / "app"), root / "repo"
    program.init(repo)
    try:
        # Some shells and timeout(1) signal a process and its group: two at once are one wish.
        for name, signals in (("Ctrl-C", 1), ("Ctrl-C, told twice at once,", 2)):
            with trial.report.check(f"{name} ends a slow backup cleanly") as line:
                running = program.start("backup", writer.source, "-r", repo, "--limit-bandwidth", "1M")
                wait_until_captured(running)
                time.sleep(0.5)
                began = time.monotonic()
                for _ in range(signals):
                    running.send_signal(signal.SIGINT)
                    time.sleep(0.05)
                _, said = running.communicate(timeout=30)
                took = time.monotonic() - began
                if running.returncode != CANCELLED:
                    raise Failed(f"exit {running.returncode}, expected {CANCELLED}: {said[-300:]}")
                if took > 5:
                    raise Failed(f"it took {took:.1f} s")
                demand_no_leftovers(root)
                demand_unchanged(before, inventory(root / "app"), beside={"."})
                if program.backups(repo):
                    raise Failed("a cancelled backup is listed")
                line.say(seconds=f"{took:.2f}")
        with trial.report.check("Ctrl-C twice stops at once what does not end by itself") as line:
            hanging = trial.program("failpoints", STILLFRAME_HANG_AT="rocksdb::log copied", STILLFRAME_FAILPOINT_LOG=str(root / "places"))
            running = hanging.start("backup", writer.source, "-r", repo)
            wait_for(lambda: (root / "places").exists() and "log copied" in (root / "places").read_text(), "the place to hang")
            running.send_signal(signal.SIGINT)
            time.sleep(1)
            if running.poll() is not None:
                raise Failed(f"it ended with {running.returncode} though it hangs")
            began = time.monotonic()
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=30)
            took = time.monotonic() - began
            if running.returncode != CANCELLED or "once more" not in said or took > 2:
                raise Failed(f"exit {running.returncode} after {took:.1f} s: {said[-300:]}")
            line.say(seconds=f"{took:.2f}")
        with trial.report.check("after cancelled backups the next one succeeds and sweeps") as line:
            program.run("backup", writer.source, "-r", repo)
            demand_no_leftovers(root)
            line.say(backups=len(program.backups(repo)))
        with trial.report.check("Ctrl-C ends a restore cleanly") as line:
            large = trial.workplace.dir("large")
            for number in range(10):
                (large / str(number)).write_bytes(trial.random(f"large {number}").randbytes(40 << 20))
            program.run("backup", f"files:{large}", "-r", repo, "--fast")
            running = program.start("restore", "latest", "-r", repo, "--to", root / "restored")
            wait_for(lambda: leftovers(root), "its staging directory", pause=0.0005)
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=30)
            if running.returncode != CANCELLED:
                raise Failed(f"exit {running.returncode}: {said[-300:]}")
            if (root / "restored").exists():
                raise Failed("a cancelled restore left its target")
            demand_no_leftovers(root)
            trial.workplace.remove(large)
            line.say(exit=running.returncode)
    finally:
        writer.close()
        trial.workplace.remove(root)
