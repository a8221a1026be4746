"""A year of backups in minutes: a hundred rounds beside a busy RocksDB and a busy SQLite database. In each the data change, one backup comes, others
go, their room comes back, and something is killed in between. All that is listed stays what it was, and neither the repository nor the work grows."""

import contextlib
import random
import resource
import shutil
import statistics
import subprocess
import time

from inventory import demand_no_leftovers, digest
from report import Failed
from rocks import NEWEST, SETTINGS, Release, RocksChecker, RocksWriter
from sqlite_writer import SqliteWriter, demand_exact

#: Kept by the policy; one more is pinned for a third of the rounds.
KEPT = 4
#: Every so many rounds the room is compared with that of a new repository, which holds only what is needed.
MEASURED = 10


def run(trial):
    rounds = 100 if trial.long else 6
    churn = Churn(trial)
    try:
        with trial.report.check("churn: the first backup"):
            churn.begin()
        for number in range(1, rounds + 1):
            with trial.report.check(f"churn {number} of {rounds}") as line:
                churn.round(number, rounds, line)
        with trial.report.check("churn: the whole repository is sound"):
            churn.plain.run("check", "--read-data", "-r", churn.repo)
        with trial.report.check("churn: no round costs more than those before") as line:
            churn.demand_flat(line)
        churn.tell(trial.report)
    finally:
        churn.close()


class Churn:
    def __init__(self, trial):
        self.trial, self.plain = trial, trial.program()
        self.root = trial.workplace.dir("churn")
        for name in ("rocks", "lite"):
            (self.root / name).mkdir()
        release = Release(NEWEST, trial.workplace)
        self.checker = RocksChecker(release)
        # Paced: at full speed nothing would be left of the backup before, and nothing would be shared.
        self.rocks = RocksWriter(release, SETTINGS["default"], self.root / "rocks", pace=3000)
        self.lite = SqliteWriter(trial.workplace, self.root / "lite", journal="wal", pause=0.004)
        self.repo = self.root / "repo"
        self.draw: random.Random = trial.random("churn")
        #: What each backup that is listed restores to.
        self.digests = {}
        self.pinned = None
        self.usual = {"backup": 1.0, "forget": 0.5, "prune": 0.5}
        self.costs, self.kills = [], 0

    def begin(self):
        self.plain.init(self.repo)
        self.rocks.finish(60_000).start()
        self.lite.start().wait(300)
        self.examine(*self.backup())

    # ------------------------------------------------------------------------------------------------------------- a round

    def round(self, number, rounds, line):
        self.rocks.wait(self.draw.randrange(300, 3000))
        self.lite.wait(self.draw.randrange(20, 200))
        killed = [verb for verb in ("backup", "forget", "prune") if self.draw.random() < 0.3 and self.killed(verb)]
        cpu, began = processor_time(), time.monotonic()
        new, acked, begun = self.backup()
        if number == max(1, rounds // 5):
            self.plain.run("pin", new, "-r", self.repo, "--why", "the audit")
            self.pinned = new
        if number == rounds * 3 // 5:
            self.plain.run("unpin", self.pinned, "-r", self.repo)
            self.pinned = None
        for verb in ("forget", "prune"):
            self.timed(verb)
        cost = {"cpu": processor_time() - cpu, "seconds": time.monotonic() - began}
        self.examine(new, acked, begun)
        self.demand_listed()
        self.demand_unchanged()
        demand_no_leftovers(self.root / "rocks", self.root / "lite", self.repo)
        cost |= self.room(number, rounds)
        self.costs.append(cost)
        line.say(killed="+".join(killed) or "-", backups=len(self.digests), cpu=f"{cost['cpu']:.2f}", stored=cost["stored"], live=cost["live"])

    def words(self, verb):
        return {
            "backup": ["backup", self.rocks.source, self.lite.source, "-r", self.repo, "--name", "churn"],
            "forget": ["forget", "--name", "churn", "--keep-last", KEPT, "-r", self.repo],
            "prune": ["prune", "-r", self.repo],
        }[verb]

    def timed(self, verb):
        outcome = self.plain.run(*self.words(verb))
        self.usual[verb] = outcome.seconds

    def killed(self, verb):
        """Starts it and kills it, whatever it is at. Whether it was still there to be killed."""
        acked = self.acked()
        running = self.plain.start(*self.words(verb), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            running.wait(timeout=self.draw.random() * self.usual[verb])
        except subprocess.TimeoutExpired:
            pass
        was_there = running.poll() is None
        self.trial.workplace.kill(running)
        begun = self.begun()
        if self.draw.random() < 0.3:
            # The machine, so to say: the writer dies with it and comes back.
            self.rocks.kill()
            self.rocks.start().wait(100)
        self.kills += was_there
        # What it forgot, or brought to its end, all the same.
        listed = self.listed()
        self.digests = {backup: found for backup, found in self.digests.items() if backup in listed}
        for backup in listed:
            if backup not in self.digests:
                self.examine(backup, acked, begun)
        return was_there

    def backup(self):
        """Makes one. Returns its id, what was acknowledged before it began, and what was begun when it had ended."""
        acked = self.acked()
        self.timed("backup")
        begun = self.begun()
        new = [backup for backup in self.listed() if backup not in self.digests]
        if len(new) != 1:
            raise Failed(f"one backup was made, {len(new)} are new in the list")
        return new[0], acked, begun

    def acked(self):
        return self.rocks.acked(), self.lite.acked()

    def begun(self):
        return self.rocks.begun(), self.lite.begun()

    def listed(self):
        return [backup["id"] for backup in self.plain.backups(self.repo)]

    # ------------------------------------------------------------------------------------------------------------ demands

    def demand_listed(self):
        """The newest ones and the pinned one, no others."""
        expected = list(self.digests)[-KEPT:]
        if self.pinned and self.pinned not in expected:
            expected.insert(0, self.pinned)
        listed = self.listed()
        if listed != expected:
            raise Failed(f"listed are {listed}, not {expected}")
        self.digests = {backup: self.digests[backup] for backup in expected}

    def demand_unchanged(self):
        for backup, before in self.digests.items():
            with self.restored(backup) as target:
                if digest(target) != before:
                    raise Failed(f"backup {backup} restores to something else than before")

    def examine(self, backup, acked, begun):
        """It holds all that was acknowledged before it began, row for row. From then on it must stay what it is."""
        with self.restored(backup) as target:
            self.digests[backup] = digest(target)
            (rocks_acked, lite_acked), (rocks_begun, lite_begun) = acked, begun
            self.checker.demand(target / "db", self.rocks.setting, rocks_acked, rocks_begun)
            demand_exact(self.trial.workplace, target / "app.sqlite" / "app.sqlite", lite_acked, lite_begun)

    @contextlib.contextmanager
    def restored(self, backup):
        target = self.root / "restored"
        try:
            self.plain.run("restore", backup, "-r", self.repo, "--to", target)
            yield target
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def room(self, number, rounds):
        """Bytes and objects of the repository; what the program itself says is needed; every so often what a new repository would need."""
        stored, objects = size(self.repo)
        plan = self.plain.run("prune", "--dry-run", "-r", self.repo, "--json").objects()[-1]
        live = plan["live_bytes"]
        if plan["lost_chunks"]:
            raise Failed(f"{plan['lost_chunks']} chunks are lost")
        if number % MEASURED == 0 or number == rounds:
            new = self.in_a_new_repository()
            if live > 1.2 * new:
                raise Failed(f"{live} bytes are called needed, a new repository of the same backups has {new}")
        if stored > 1.5 * live:
            raise Failed(f"{stored} bytes are stored, {live} are needed")
        return {"stored": stored, "live": live, "objects": objects}

    def in_a_new_repository(self):
        repo = self.root / "new"
        try:
            self.plain.init(repo)
            for backup in self.digests:
                with self.restored(backup) as target:
                    sources = f"rocksdb:{target / 'db'}", f"sqlite:{target / 'app.sqlite' / 'app.sqlite'}"
                    self.plain.run("backup", *sources, "-r", repo)
            return size(repo)[0]
        finally:
            shutil.rmtree(repo, ignore_errors=True)

    def demand_flat(self, line):
        """Of the first and of the last rounds the median. Processor time, since others may use the machine; objects, since each is a request."""
        if not self.kills:
            raise Failed("every run ended before it was killed: nothing was proven")
        tenth = max(2, len(self.costs) // 10)
        early, late = self.costs[tenth : 2 * tenth], self.costs[-tenth:]
        # A few rounds are all beginning.
        for what, limit in (("cpu", 1.3), ("objects", 1.3), ("stored", 1.3)) if len(self.costs) >= 50 else ():
            before, after = (statistics.median(cost[what] for cost in costs) for costs in (early, late))
            line.say(**{what: f"{before:.4g}→{after:.4g}"})
            if after > limit * before:
                raise Failed(f"{what}: {after:.4g} in the last rounds, {before:.4g} in the first ones")
        line.say(kills=self.kills)

    def tell(self, report):
        step = max(1, len(self.costs) // 10)
        for number in range(step, len(self.costs) + 1, step):
            cost = self.costs[number - 1]
            facts = f"{cost['cpu']:.2f} s of processor, {cost['seconds']:.1f} s, {cost['stored']} bytes stored, {cost['live']} needed"
            report.note(f"churn round {number}: {facts}, {cost['objects']} objects")

    def close(self):
        for process in (self.rocks, self.lite, self.checker):
            process.close()
        self.trial.workplace.remove(self.root)


def processor_time():
    """Of all children that have ended: the writers have not."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def size(repo):
    files = [path for path in repo.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files), len(files)
