"""Real small file systems that are full: under the source, the staging directory, the repository and the target."""

import os
import shutil
import subprocess
import time

from inventory import demand_no_leftovers, demand_unchanged, digest, inventory
from program import NO_SPACE, wait_until_captured
from report import Failed
from rocks import NEWEST, SETTINGS, Release, RocksChecker, RocksWriter
from workplace import free_bytes

MEBI = 1 << 20


def run(trial):
    release = Release(NEWEST, trial.workplace)
    checker = RocksChecker(release)
    try:
        source_disk(trial, release, checker)
        staging_disk(trial, release, checker)
        repository_disk(trial, release)
        target_disk(trial, release)
        reserve(trial, release)
        reserve_of_another_disk(trial, release, "db-paths", "slow", expect=NO_SPACE)
        # Of logs nothing is held: they were copied.
        reserve_of_another_disk(trial, release, "wal-dir", "logs", expect=0)
    finally:
        checker.close()


def fill(place, leave):
    """Takes all but `leave` bytes of a file system."""
    path = place / "filler"
    with open(path, "wb") as file:
        left = free_bytes(place) - leave
        while left > 0:
            try:
                left -= file.write(b"\xa5" * min(left, MEBI))
                file.flush()
            except OSError:
                break
    return path


def demand_said(outcome):
    """What, where and what to do: no bare errno."""
    text = outcome.text.lower()
    if "space" not in text and "full" not in text and "reserve" not in text and "room" not in text:
        raise Failed(f"the message does not say that there is no room: {outcome.text[-300:]}")


def demand_refused(program, disk, *words):
    """For want of room, with nothing left on the disk. Returns the last words."""
    outcome = program.run(*words, expect=NO_SPACE)
    demand_said(outcome)
    left = [path.name for path in disk.iterdir()]
    if left:
        raise Failed(f"left on the disk: {left}")
    return outcome.text[-120:].replace(" ", "_")


def closed(trial, release, root, commits=20_000, **more):
    (root / "app").mkdir()
    return RocksWriter(release, SETTINGS["default"], root / "app", **more).finish(commits)


def source_disk(trial, release, checker):
    program = trial.program()
    disk = trial.workplace.mount_ext4("source-disk", 64)
    writer = None
    try:
        writer = closed(trial, release, disk)
        words = (writer.acked(), writer.begun())
        filler = fill(disk, 12 * 1024)
        before = inventory(disk / "app")

        with trial.report.check("full source disk: a kept image beside the source is refused, nothing is left") as line:
            outcome = program.run("image", "create", writer.source, "--reserve", "0", "--to", disk / "image", expect=NO_SPACE)
            demand_said(outcome)
            if (disk / "image").exists():
                raise Failed("the target is there")
            demand_no_leftovers(disk)
            demand_unchanged(before, inventory(disk / "app"), beside={"."})
            line.say(said=outcome.text[-120:].replace(" ", "_"))

        with trial.report.check("full source disk: staging elsewhere captures it all the same") as line:
            elsewhere = trial.workplace.dir("elsewhere")
            program.run("image", "create", writer.source, "--reserve", "0", "--to", elsewhere / "image", "--staging", elsewhere)
            line.say(**checker.demand(elsewhere / "image", writer.setting, *words))
            demand_no_leftovers(disk, elsewhere)
            demand_unchanged(before, inventory(disk / "app"), beside={"."})

        with trial.report.check("full source disk: a backup below the reserve is refused and lets go"):
            repo = trial.workplace.dir("repo")
            program.init(repo)
            demand_said(program.run("backup", writer.source, "-r", repo, expect=NO_SPACE))
            if program.backups(repo):
                raise Failed("a refused backup is listed")
            demand_no_leftovers(disk)
            demand_unchanged(before, inventory(disk / "app"), beside={"."})

        with trial.report.check("source disk with room again: the same capture succeeds") as line:
            filler.unlink()
            program.run("image", "create", writer.source, "--reserve", "0", "--to", disk / "image")
            line.say(**checker.demand(disk / "image", writer.setting, *words))
    finally:
        if writer:
            writer.close()
        trial.workplace.unmount(disk)


def staging_disk(trial, release, checker):
    """Pins on another file system are copies: they may not fit."""
    program, root = trial.program(), trial.workplace.dir("staging-full")
    for kind in ("tmpfs", "ext4"):
        small = trial.workplace.mount_tmpfs("staging", 4) if kind == "tmpfs" else trial.workplace.mount_ext4("staging", 8)
        place = root / kind
        place.mkdir()
        writer = closed(trial, release, place)
        try:
            with trial.report.check(f"full staging directory ({kind}): refused, nothing is left") as line:
                before = inventory(place)
                outcome = program.run("image", "create", writer.source, "--reserve", "0", "--to", root / f"image-{kind}", "--staging", small, expect=NO_SPACE)
                demand_said(outcome)
                if (root / f"image-{kind}").exists():
                    raise Failed("the target is there")
                demand_no_leftovers(root, small)
                demand_unchanged(before, inventory(place), beside={"app"})
                line.say(said=outcome.text[-120:].replace(" ", "_"))
            with trial.report.check(f"staging where there is room ({kind})"):
                program.run("image", "create", writer.source, "--reserve", "0", "--to", root / f"image-{kind}")
                checker.demand(root / f"image-{kind}", writer.setting, writer.acked(), writer.begun())
        finally:
            writer.close()
            trial.workplace.unmount(small)


def repository_disk(trial, release):
    program, root = trial.program(), trial.workplace.dir("repository-full")
    for kind in ("tmpfs", "ext4"):
        disk = trial.workplace.mount_tmpfs("repo-disk", 24) if kind == "tmpfs" else trial.workplace.mount_ext4("repo-disk", 32)
        repo, place = disk / "repo", root / kind
        place.mkdir()
        writer = closed(trial, release, place, commits=2000)
        reference = None
        try:
            with trial.report.check(f"full repository ({kind}): the backup fails, earlier ones stay whole") as line:
                program.init(repo)
                program.run("backup", writer.source, "-r", repo, "--name", "first")
                program.run("restore", "first", "-r", repo, "--to", place / "reference")
                reference = digest(place / "reference")
                writer.start(limit=60_000)
                writer.process.wait(timeout=120)
                writer.kill()
                before = inventory(place / "app")
                outcome = program.run("backup", writer.source, "-r", repo, "--name", "second", expect=NO_SPACE)
                demand_said(outcome)
                demand_no_leftovers(place, disk)
                demand_unchanged(before, inventory(place / "app"), beside={"."})
                names = [backup.get("name") for backup in program.backups(repo)]
                if names != ["first"]:
                    raise Failed(f"listed are {names}")
                program.run("verify", "first", "-r", repo, "--level", "decrypt")
                program.run("restore", "first", "-r", repo, "--to", place / "restored")
                if digest(place / "restored") != reference:
                    raise Failed("the earlier backup restores to something else")
                line.say(said=outcome.text[-120:].replace(" ", "_"))
            with trial.report.check(f"repository with room again ({kind}): the same backup succeeds") as line:
                if kind == "tmpfs":
                    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
                else:
                    grown = trial.workplace.dir("grown")
                    shutil.copytree(repo, grown / "repo")
                    repo = grown / "repo"
                program.run("backup", writer.source, "-r", repo, "--name", "second")
                program.run("verify", "second", "-r", repo, "--level", "open")
                line.say(backups=len(program.backups(repo)))
        finally:
            writer.close()
            trial.workplace.unmount(disk)


def target_disk(trial, release):
    program, root = trial.program(), trial.workplace.dir("target-full")
    writer = closed(trial, release, root)
    program.init(root / "repo")
    program.run("backup", writer.source, "-r", root / "repo")
    for kind in ("tmpfs", "ext4"):
        disk = trial.workplace.mount_tmpfs("target-disk", 8) if kind == "tmpfs" else trial.workplace.mount_ext4("target-disk", 16)
        try:
            with trial.report.check(f"full target ({kind}): the restore fails and leaves nothing") as line:
                line.say(said=demand_refused(program, disk, "restore", "latest", "-r", root / "repo", "--to", disk / "db"))
            with trial.report.check(f"full target of a kept image ({kind}): nothing is left"):
                demand_refused(program, disk, "image", "create", writer.source, "--reserve", "0", "--to", disk / "image")
                demand_no_leftovers(root)
        finally:
            trial.workplace.unmount(disk)
    # What is free cannot tell this one beforehand: there is room for the bytes, but not for so many files.
    disk = trial.workplace.mount_tmpfs("target-disk", 64, files=8)
    try:
        with trial.report.check("target that fills up in the middle: the restore fails and leaves nothing") as line:
            line.say(said=demand_refused(program, disk, "restore", "latest", "-r", root / "repo", "--to", disk / "db"))
    finally:
        trial.workplace.unmount(disk)
    with trial.report.check("target with room: the same restore succeeds"):
        program.run("restore", "latest", "-r", root / "repo", "--to", root / "db")
    writer.close()


def reserve(trial, release):
    """A live disk must not be filled by what the backup keeps alive."""
    program = trial.program()
    disk = trial.workplace.mount_ext4("reserve-disk", 128)
    repo = trial.workplace.dir("reserve-repo")
    program.init(repo)
    writer = None
    try:
        writer = closed(trial, release, disk)
        before = inventory(disk / "app")
        for value in ("200M", "99%"):
            with trial.report.check(f"--reserve {value} with less than that free: refused at once"):
                outcome = program.run("backup", writer.source, "-r", repo, "--reserve", value, expect=NO_SPACE)
                demand_said(outcome)
                demand_no_leftovers(disk)
                demand_unchanged(before, inventory(disk / "app"), beside={"."})
        with trial.report.check("the disk falls below the reserve during a backup: it stops, lets go and says so") as line:
            running = program.start("backup", writer.source, "-r", repo, "--reserve", "30M", "--limit-bandwidth", "1M")
            wait_until_captured(running)
            time.sleep(1)
            filler = fill(disk, 10 * MEBI)
            began = time.monotonic()
            _, said = running.communicate(timeout=60)
            took = time.monotonic() - began
            filler.unlink()
            if running.returncode != NO_SPACE:
                raise Failed(f"exit {running.returncode}, expected {NO_SPACE}: {said[-300:]}")
            if "reserve" not in said.lower():
                raise Failed(f"the message does not name the reserve: {said[-300:]}")
            demand_no_leftovers(disk)
            demand_unchanged(before, inventory(disk / "app"), beside={"."})
            if program.backups(repo):
                raise Failed("the stopped backup is listed")
            line.say(stopped_after=f"{took:.1f}s")
        with trial.report.check("room again: the backup succeeds under its reserve"):
            program.run("backup", writer.source, "-r", repo, "--reserve", "30M")
            if os.listdir(disk) != ["app"]:
                raise Failed(f"left on the disk: {os.listdir(disk)}")
    finally:
        if writer:
            writer.close()
        trial.workplace.unmount(disk)


def reserve_of_another_disk(trial, release, setting, made, expect):
    """What is kept alive on a disk that only a part of the database lies on fills that one."""
    program, root = trial.program(), trial.workplace.dir(f"reserve-{made}")
    disk = root / "app" / made
    disk.mkdir(parents=True)
    trial.workplace.mount_ext4(f"reserve-{made}-disk", 128, at=disk)
    repo = trial.workplace.dir("reserve-repo-of-others")
    program.init(repo)
    writer = None
    try:
        writer = RocksWriter(release, SETTINGS[setting], root / "app").finish(20_000)
        with trial.report.check(f"a reserve that only the disk of {made} does not have: exit {expect}") as line:
            outcome = program.run("backup", writer.source, "-r", repo, "--reserve", "200M", expect=expect)
            if expect and str(disk) not in outcome.text:
                raise Failed(f"{disk} is not named: {outcome.text[-300:]}")
            demand_no_leftovers(root / "app", disk)
            line.say(said=outcome.text[-120:].replace(" ", "_"))
    finally:
        if writer:
            writer.close()
        trial.workplace.unmount(disk)
