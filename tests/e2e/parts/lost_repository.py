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
    with trial.report.check("a repository of which its owner may not read all is not called damaged"):
        forbidden(trial)


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


def forbidden(trial):
    """Root was there. Its objects are root's alone, which is told before; the owner is refused, and learns by whom."""
    program, root = trial.program(), trial.workplace.dir("shared")
    source, repo = root / "source", root / "repo"
    source.mkdir()
    (source / "data").write_text("something")
    for path in (root, source, source / "data"):
        os.chown(path, NOBODY, NOBODY)
    program.run("repo", "init", repo, user=NOBODY)
    program.run("backup", f"files:{source}", "-r", repo, "--name", "mine", user=NOBODY)
    said = program.run("verify", "mine", "-r", repo).text
    if f"belongs to user {NOBODY}" not in said:
        raise Failed(f"root is not told whose it is: {said}")
    # What was verified hides nothing.
    said = program.run("snapshots", "-r", repo, user=NOBODY).text
    if "mine" not in said or "how backups were verified is not known" not in said:
        raise Failed(f"its owner is told: {said}")
    (hidden,) = (repo / "sealed").iterdir()
    os.chown(hidden, 0, 0)
    program.run("snapshots", "-r", repo, user=NOBODY, expect=PERMISSION)
    program.run("restore", "latest", "-r", repo, "--to", root / "again", user=NOBODY, expect=PERMISSION)
