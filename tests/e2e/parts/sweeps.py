"""kill -9 between any two durable steps of whatever deletes or mends: forget, prune, repair, and keys that come and go. Nothing that is listed is
lost, and the same command brings it to its end."""

import random
import shutil

from inventory import demand_no_leftovers, digest
from parts.kills import chosen
from program import DAMAGED, KILLED
from report import Failed

FILES, CHANGED, LENGTH, BACKUPS, KEPT = 40, 16, 60_000, 4, 2


def run(trial):
    scene = Scene(trial)
    try:
        for name, prepare, words in (
            ("forget", [], ["forget", "--keep-last", str(KEPT), "--prune"]),
            ("prune", [["forget", "--keep-last", str(KEPT)]], ["prune"]),
            ("key rotate", [], ["key", "rotate", "--remove-others"]),
            ("key remove", [], ["key", "remove", scene.second_key]),
            ("pin", [], ["pin", "latest", "--why", "audit"]),
            ("repair index", [], ["repair", "index"]),
        ):
            if trial.wants(name):
                each_step(trial, scene, name, prepare, words)
        if trial.wants("repair snapshots"):
            repair_snapshots(trial, scene)
    finally:
        trial.workplace.remove(scene.root)


class Scene:
    """A repository with some backups of a tree that changed between them, and what each restores to."""

    def __init__(self, trial):
        self.trial, self.plain = trial, trial.program()
        self.root = trial.workplace.dir("sweeps")
        data, self.repo = self.root / "data", self.root / "repo"
        data.mkdir()
        draws: random.Random = trial.random("sweeps")
        for number in range(FILES):
            (data / f"{number:03}").write_bytes(draws.randbytes(LENGTH))
        self.plain.init(self.repo)
        self.digests = {}
        for number in range(BACKUPS):
            self.plain.run("backup", f"files:{data}", "-r", self.repo, "--name", f"n{number}")
            newest = self.plain.backups(self.repo)[-1]["id"]
            self.digests[newest] = self.digest_of(self.repo, newest)
            for changed in draws.sample(range(FILES), CHANGED):
                (data / f"{changed:03}").write_bytes(draws.randbytes(LENGTH))
        self.ids = [backup["id"] for backup in self.plain.backups(self.repo)]
        second = self.plain.with_env(STILLFRAME_NEW_PASSPHRASE="of the second")
        self.second_key = second.run("key", "add", "-r", self.repo, "--json").objects()[-1]["id"]

    def digest_of(self, repo, backup):
        target = self.root / "restored"
        self.plain.run("restore", backup, "-r", repo, "--to", target)
        found = digest(target)
        shutil.rmtree(target)
        return found

    def copy(self, prepare):
        repo = self.trial.workplace.dir("swept") / "repo"
        shutil.copytree(self.repo, repo)
        for words in prepare:
            self.plain.run(*words, "-r", repo)
        return repo

    def demand_whole(self, repo):
        """Every backup that is listed restores to what it was. Returns their ids."""
        ids = [backup["id"] for backup in self.plain.backups(repo)]
        for backup in ids:
            if self.digest_of(repo, backup) != self.digests[backup]:
                raise Failed(f"backup {backup} restores to something else")
        return ids

    def state(self, repo):
        """What a run that was not disturbed must have come to, whatever names were drawn."""
        info = self.plain.run("repo", "info", "-r", repo, "--json").objects()[-1]
        facts = {name: info[name] for name in ("backups", "unfinished", "keys", "marks")}
        return {**facts, "epochs": len(info["epochs"])}, info["pack_bytes"]


def each_step(trial, scene, name, prepare, words):
    log = trial.workplace.root / "failpoints.log"
    steps, wanted, stored = [], None, 0
    with trial.report.check(f"{name}: steps are counted") as line:
        log.unlink(missing_ok=True)
        repo = scene.copy(prepare)
        trial.program("failpoints", STILLFRAME_FAILPOINT_LOG=str(log)).run(*words, "-r", repo)
        steps = [entry.split(" ", 1)[1] for entry in log.read_text().splitlines()]
        if not steps:
            raise Failed("no step was passed: is this the build with failpoints?")
        scene.demand_whole(repo)
        wanted, stored = scene.state(repo)
        shutil.rmtree(repo.parent)
        line.say(steps=len(steps), **wanted)
    for number in chosen(trial, name, steps):
        with trial.report.check(f"{name} is killed at {number} of {len(steps)}, {steps[number - 1]}"):
            repo = scene.copy(prepare)
            # Deletions side by side change places from run to run, and so may their number before the end.
            trial.program("failpoints", STILLFRAME_KILL_AT=str(number)).run(*words, "-r", repo, expect=(KILLED, 0))
            left = scene.demand_whole(repo)
            if missing := set(scene.ids[-KEPT:]) - set(left):
                raise Failed(f"{missing} should be there")
            again(scene, name, words, repo)
            scene.demand_whole(repo)
            found, bytes_now = scene.state(repo)
            if name != "key rotate":
                # A rotation that is done again begins one more epoch.
                if found != wanted:
                    raise Failed(f"{found} and not {wanted}")
            elif found["keys"] != 1 or found["epochs"] < 2:
                raise Failed(f"{found} after a second rotation")
            if bytes_now > stored * 3 // 2:
                raise Failed(f"{bytes_now} bytes are stored, {stored} after a run that was not disturbed")
            for backup in left[-KEPT:]:
                scene.plain.run("verify", backup, "-r", repo)
            demand_no_leftovers(repo.parent)
            shutil.rmtree(repo.parent)


def repair_snapshots(trial, scene):
    """The newest backup lost a file. What is left of it becomes a backup, or it stays as it is: never both gone, never one that is not whole."""
    name, words = "repair snapshots", ["repair", "snapshots", "--forget"]
    log = trial.workplace.root / "failpoints.log"

    def damaged():
        repo = scene.copy([])
        packs = sorted((repo / "packs").glob("*/*"), key=lambda pack: pack.stat().st_mtime_ns)
        # The first chunk of the newest pack is of a file that changed before the newest backup; lists come behind.
        with open(packs[-1], "r+b") as pack:
            pack.seek(200)
            byte = pack.read(1)[0]
            pack.seek(200)
            pack.write(bytes([byte ^ 1]))
        scene.plain.run("check", "--read-data", "-r", repo, expect=DAMAGED)
        return repo

    def repaired(repo):
        """What the backups that are not of before restore to."""
        new = [backup["id"] for backup in scene.plain.backups(repo) if backup["id"] not in scene.ids]
        return {backup: scene.digest_of(repo, backup) for backup in new}

    steps, left = [], None
    with trial.report.check(f"{name}: steps are counted") as line:
        log.unlink(missing_ok=True)
        repo = damaged()
        trial.program("failpoints", STILLFRAME_FAILPOINT_LOG=str(log)).run(*words, "-r", repo)
        steps = [entry.split(" ", 1)[1] for entry in log.read_text().splitlines()]
        ids = [backup["id"] for backup in scene.plain.backups(repo)]
        (left,) = repaired(repo).values()
        if ids[:-1] != scene.ids[:-1] or left == scene.digests[scene.ids[-1]]:
            raise Failed(f"{ids} are left")
        shutil.rmtree(repo.parent)
        line.say(steps=len(steps))
    for number in chosen(trial, name, steps):
        with trial.report.check(f"{name} is killed at {number} of {len(steps)}, {steps[number - 1]}"):
            repo = damaged()
            trial.program("failpoints", STILLFRAME_KILL_AT=str(number)).run(*words, "-r", repo, expect=(KILLED, 0))
            for _ in range(2):
                ids = [backup["id"] for backup in scene.plain.backups(repo)]
                for backup in scene.ids[:-1]:
                    if scene.digest_of(repo, backup) != scene.digests[backup]:
                        raise Failed(f"{backup} restores to something else")
                found = repaired(repo)
                if any(digest != left for digest in found.values()) or not (found or scene.ids[-1] in ids):
                    raise Failed(f"{found}, listed are {ids}")
                scene.plain.run(*words, "-r", repo)
            if scene.ids[-1] in ids or not found:
                raise Failed(f"after a second run {ids} are left")
            scene.plain.run("check", "-r", repo)
            demand_no_leftovers(repo.parent)
            shutil.rmtree(repo.parent)


def again(scene, name, words, repo):
    """The same command; a key that is gone already is named so."""
    outcome = scene.plain.run(*words, "-r", repo, expect=(0, 2) if name == "key remove" else (0,))
    if outcome.code == 2 and "there is no key" not in outcome.text:
        raise Failed(outcome.text)
