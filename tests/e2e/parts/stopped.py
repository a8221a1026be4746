"""Writers and prunings that stop for as long as it takes, beside other machines whose clocks are hours off: nothing that is listed is lost, whatever
somebody else thinks of how long ago a sign of life is."""

import shutil
import signal
import time

from inventory import demand_no_leftovers, digest
from program import FAILED, OK
from report import Failed

FILES, LENGTH, CHANGED = 60, 100_000, 25


def run(trial):
    were_there = {"a backup": 0, "a pruning": 0}
    for turn in range(trial.captures if trial.long else 2):
        for who in were_there:
            with trial.report.check(f"{who} that stops for long, {turn + 1}") as line:
                were_there[who] += Scene(trial, f"{who} {turn}").play(who, line)
    with trial.report.check("they were stopped while they were at work") as line:
        line.say(times=list(were_there.values()))
        if not all(were_there.values()):
            raise Failed("every one had ended before: nothing was proven")


class Scene:
    """A repository with three backups, two of which go."""

    def __init__(self, trial, name):
        self.trial, self.draw = trial, trial.random(f"stopped {name}")
        self.root = trial.workplace.dir("stopped")
        self.data, self.repo = self.root / "data", self.root / "repo"
        self.data.mkdir()
        self.here = trial.program()
        self.here.init(self.repo)
        self.digests = {}
        for number in range(FILES):
            self.write(number)
        for _ in range(3):
            self.backup(self.here)
            for number in self.draw.sample(range(FILES), CHANGED):
                self.write(number)

    def write(self, number):
        (self.data / f"{number:03}").write_bytes(self.draw.randbytes(LENGTH))

    def machine(self, name, hours):
        """Another one, with its own state and a clock of its own."""
        places = {"STILLFRAME_STATE_DIR": str(self.root / name / "state"), "STILLFRAME_CACHE_DIR": str(self.root / name / "cache")}
        other = self.here.with_env(FAKETIME_DONT_FAKE_MONOTONIC="1", **places)
        other.below = ["faketime", "-f", f"{hours:+}h"]
        return other

    def backup(self, program, *flags, expect=OK):
        outcome = program.run("backup", f"files:{self.data}", "-r", self.repo, *flags, expect=expect)
        self.note()
        return outcome

    def note(self):
        """What each new backup restores to. The data do not change while one is made."""
        for backup in [entry["id"] for entry in self.here.backups(self.repo)]:
            if backup not in self.digests:
                self.digests[backup] = self.restored(backup)
                if self.digests[backup] != digest(self.data):
                    raise Failed(f"backup {backup} is not what was backed up")

    def restored(self, backup):
        target = self.root / "restored"
        self.here.run("restore", backup, "-r", self.repo, "--to", target)
        try:
            return digest(target)
        finally:
            shutil.rmtree(target)

    def play(self, who, line):
        try:
            late, early = self.machine("late", 30), self.machine("early", -7)
            if who == "a backup":
                words = ["backup", f"files:{self.data}", "-r", self.repo, "--anew", "--limit-bandwidth", "3MiB"]
            else:
                self.here.run("forget", "--keep-last", "1", "-r", self.repo)
                words = ["prune", "-r", self.repo, "--limit-bandwidth", "3MiB"]
            stopped = self.here.start(*words)
            time.sleep(0.2 + self.draw.random() * (1.8 if who == "a backup" else 1.0))
            was_there = stopped.poll() is None
            stopped.send_signal(signal.SIGSTOP)
            # To both the one that stopped has been silent for longer than any sign of life counts, or has a clock that nobody believes.
            for other in self.draw.sample([late, early], 2):
                other.run("forget", "--keep-last", "1", "-r", self.repo)
                other.run("prune", "-r", self.repo)
            if who == "a pruning":
                for number in self.draw.sample(range(FILES), CHANGED):
                    self.write(number)
                self.backup(late)
                self.backup(early, "--anew")
            stopped.send_signal(signal.SIGCONT)
            _, said = stopped.communicate(timeout=120)
            if stopped.returncode not in (OK, FAILED) or "panicked" in said:
                raise Failed(f"exit {stopped.returncode}: {said[-500:]}")
            self.demand_whole(is_backup=who == "a backup", code=stopped.returncode)
            line.say(was_there=was_there, exit=stopped.returncode)
            return was_there
        finally:
            self.trial.workplace.remove(self.root)

    def demand_whole(self, is_backup, code):
        before = set(self.digests)
        self.note()
        listed = [entry["id"] for entry in self.here.backups(self.repo)]
        if is_backup and (code == OK) != bool(set(self.digests) - before):
            raise Failed(f"the backup ended with {code}; listed are {listed}, before {sorted(before)}")
        if not listed:
            raise Failed("nothing is left")
        for backup in listed:
            if self.restored(backup) != self.digests[backup]:
                raise Failed(f"backup {backup} restores to something else")
        self.here.run("check", "--read-data", "-r", self.repo)
        self.here.run("prune", "-r", self.repo)
        self.here.run("check", "--read-data", "-r", self.repo)
        demand_no_leftovers(self.data, self.repo)
