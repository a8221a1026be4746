"""A repository that goes away while a backup is written to it: renamed, unmounted, removed, or another one in its place."""

import os
import shutil
import subprocess
import time

from inventory import demand_no_leftovers
from program import DAMAGED, FAILED, NO_REPOSITORY, OK, PERMISSION, wait_until_captured
from report import Failed
from workplace import NOBODY

MEBI = 1 << 20


def run(trial):
    source = trial.workplace.dir("source")
    (source / "data").write_bytes(trial.random("lost repository").randbytes(30 * MEBI))
    for name in ("renamed", "renamed and a directory in its place", "removed and made anew"):
        with trial.report.check(f"a repository that is {name} during a backup: no success") as line:
            renamed_or_removed(trial, source, name, line)
    with trial.report.check("a repository whose disk is unmounted during a backup: no success, nothing on the disk below") as line:
        unmounted(trial, source, line)
    with trial.report.check("a repository of a user that root backs up into, verifies and restores from stays that user's"):
        shared_with_root(trial)


def begin(trial, source, repo):
    """A backup that will go on for some seconds, once it is at work."""
    program = trial.program()
    backup = program.start("backup", f"files:{source}", "-r", repo, "--limit-bandwidth", "8MiB", "--reserve", "0")
    said = wait_until_captured(backup)
    time.sleep(1.0)
    if backup.poll() is not None:
        raise Failed(f"it ended before anything happened: {said}")
    return program, backup


def demand_failed(backup, line):
    _, said = backup.communicate(timeout=120)
    if backup.returncode not in (FAILED, NO_REPOSITORY, DAMAGED):
        raise Failed(f"exit {backup.returncode}: {said}")
    if "panicked" in said or "no longer the directory that was opened" not in said:
        raise Failed(f"it does not say what happened: {said}")
    line.say(exit=backup.returncode)


def renamed_or_removed(trial, source, how, line):
    root = trial.workplace.dir("lost")
    repo, away = root / "repo", root / "away"
    trial.program().init(repo)
    program, backup = begin(trial, source, repo)
    repo.rename(away)
    if "directory" in how:
        repo.mkdir()
    if "anew" in how:
        shutil.rmtree(away)
        program.init(repo)
    demand_failed(backup, line)
    demand_no_leftovers(source.parent)
    if "anew" in how:
        if program.backups(repo):
            raise Failed("the new repository has a backup of the old one")
        program.run("backup", f"files:{source}", "-r", repo, "--reserve", "0")
        program.run("verify", "-r", repo)
        return
    if repo.exists() and any(repo.iterdir()):
        raise Failed(f"it made {sorted(path.name for path in repo.iterdir())} where another directory is now")
    if not repo.exists():
        program.run("snapshots", "-r", repo, expect=NO_REPOSITORY)
    else:
        repo.rmdir()
    # What was lost is found again.
    away.rename(repo)
    program.run("backup", f"files:{source}", "-r", repo, "--reserve", "0", expect=OK)
    program.run("verify", "-r", repo, "--level", "hash")
    if len(program.backups(repo)) != 1:
        raise Failed("the backup that failed is listed")


def unmounted(trial, source, line):
    disk = trial.workplace.mount_ext4("usb", 96)
    repo = disk / "repo"
    trial.program().init(repo)
    program, backup = begin(trial, source, repo)
    done = subprocess.run(["umount", "-l", str(disk)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(done.stderr)
    trial.workplace.mounts.remove(disk)
    demand_failed(backup, line)
    if any(disk.iterdir()):
        raise Failed(f"on the disk below the mount point: {sorted(path.name for path in disk.iterdir())}")


def shared_with_root(trial):
    """Root's objects are the owner's, who goes on as before; nobody else can read anything."""
    program, root = trial.program(), trial.workplace.dir("shared")
    source, repo, target = root / "source", root / "repo", root / "restored"
    source.mkdir()
    for path in (root, source):
        os.chown(path, NOBODY, NOBODY)
    write = lambda text: ((source / "data").write_text(text), os.chown(source / "data", NOBODY, NOBODY))
    write("first")
    program.run("repo", "init", repo, user=NOBODY)
    program.run("backup", f"files:{source}", "-r", repo, "--name", "mine", user=NOBODY)
    write("second" + "x" * (3 * MEBI))
    program.run("backup", f"files:{source}", "-r", repo, "--name", "roots")
    program.run("verify", "mine", "-r", repo)
    program.run("pin", "roots", "-r", repo)
    foreign = [path for path in [repo, *repo.rglob("*")] if os.lstat(path).st_uid != NOBODY or os.lstat(path).st_mode & 0o077]
    if foreign:
        raise Failed(f"not its owner's alone: {foreign[:5]}")
    if len(program.backups(repo, user=NOBODY)) != 2:
        raise Failed("its owner does not see both")
    program.run("check", "--read-data", "-r", repo, user=NOBODY)
    program.run("restore", "roots", "-r", repo, "--to", target, user=NOBODY)
    if not (target / "data").read_text().startswith("second"):
        raise Failed("what came back is something else")
    program.run("backup", f"files:{source}", "-r", repo, user=NOBODY)
    program.run("unpin", "roots", "-r", repo, user=NOBODY)
    program.run("forget", "roots", "-r", repo, "--prune", user=NOBODY)
    # What may not be read is not called damaged.
    (hidden,) = [path for path in (repo / "sealed").iterdir() if path.name == program.backups(repo)[-1]["id"]]
    os.chown(hidden, 0, 0)
    program.run("snapshots", "-r", repo, user=NOBODY, expect=PERMISSION)
    program.run("restore", "latest", "-r", repo, "--to", root / "again", user=NOBODY, expect=PERMISSION)
