"""Nothing in a source changes: directories are compared before and after captures, in every state and as several users."""

import os
import signal
import shutil
import sqlite3
import subprocess
from pathlib import Path

from fjall import FjallWriter
from inventory import demand_no_leftovers, demand_unchanged, extra_links, inventory
from leveldb import LeveldbWriter
from parts.sharpness import wait_stopped
from program import NOT_CAPTURABLE, PERMISSION
from report import Failed
from rocks import NEWEST, SETTINGS, Release, RocksChecker, RocksWriter
from sqlite_writer import SqliteWriter, demand_exact
from workplace import NOBODY, as_user, need

PROTECTED = Path("/proc/sys/fs/protected_hardlinks")


def run(trial):
    if PROTECTED.read_text().strip() != "1":
        PROTECTED.write_text("1")
    release = Release(NEWEST, trial.workplace)
    kinds = {
        "rocksdb": lambda root: RocksWriter(release, SETTINGS["default"], root),
        "rocksdb recycled": lambda root: RocksWriter(release, SETTINGS["recycled"], root),
        "rocksdb blobs": lambda root: RocksWriter(release, SETTINGS["blobs"], root),
        "rocksdb wal-dir": lambda root: RocksWriter(release, SETTINGS["wal-dir"], root),
        "leveldb": lambda root: LeveldbWriter(trial.workplace, root),
        "fjall": lambda root: FjallWriter(trial, root),
        "fjall churn": lambda root: FjallWriter(trial, root, "churn"),
        "sqlite wal": lambda root: SqliteWriter(trial.workplace, root, journal="wal"),
        "sqlite delete": lambda root: SqliteWriter(trial.workplace, root, journal="delete"),
        "sqlite persist": lambda root: SqliteWriter(trial.workplace, root, journal="persist"),
    }
    for name, make in kinds.items():
        if trial.wants(name):
            states(trial, name, make)
    if not trial.only or trial.wants("users"):
        other_users(trial, release)
        in_user_namespace(trial)


def commits_for(name):
    return 1500 if name.startswith(("sqlite", "fjall")) else 25_000


def states(trial, name, make):
    """Closed, live (stopped for the comparison, so that every difference is ours) and crashed."""
    root = trial.workplace.dir("unchanged")
    place = root / "app"
    place.mkdir()
    writer = make(place)
    try:
        writer.finish(commits_for(name))
        unchanged(trial, f"{name} closed", root, writer)
        read_only(trial, f"{name} closed", root, writer)
        writer.start().wait(max(20, commits_for(name) // 5))
        os.kill(writer.process.pid, signal.SIGSTOP)
        wait_stopped(writer.process.pid)
        if name in ("sqlite delete", "sqlite persist"):
            # A process that stands still inside a transaction holds its lock for ever: locked, by name, and unchanged.
            unchanged(trial, f"{name} live", root, writer, verbs=("image",), may_be_locked=True)
        else:
            unchanged(trial, f"{name} live", root, writer)
        writer.kill()
        unchanged(trial, f"{name} crashed", root, writer, may_be_locked=name in ("sqlite delete", "sqlite persist"))
    finally:
        writer.close()
        trial.workplace.remove(root)


def sqlite_indexes(writer):
    """The files that SQLite itself may make beside a WAL database that nobody has open. A WAL that is there is data."""
    path = getattr(writer, "path", None)
    if path is None:
        return set()
    return {f"app/{path.name}-shm"} | ({f"app/{path.name}-wal"} if not Path(f"{path}-wal").exists() else set())


def source_path(writer):
    return Path(writer.source.split(":", 1)[1])


def flags_of(writer):
    return writer.flags() if hasattr(writer, "flags") else []


def unchanged(trial, name, root, writer, verbs=("image", "backup"), may_be_locked=False):
    program = trial.program()
    for verb in verbs:
        with trial.report.check(f"unchanged: {name}, {verb}") as line:
            before, allow = inventory(root), sqlite_indexes(writer)
            expect = (0, 20, 21) if may_be_locked else 0
            flags = flags_of(writer)
            if verb == "image":
                target = trial.workplace.dir("target") / "image"
                outcome = program.run("image", "create", writer.source, "--to", target, *flags, expect=expect)
            else:
                target = trial.workplace.dir("repo")
                program.init(target)
                outcome = program.run("backup", writer.source, "-r", target, *flags, expect=expect)
            line.say(exit=outcome.code)
            # A copy elsewhere that shares files with the source would show as links; a kept image may have them.
            shutil.rmtree(target if verb == "backup" else target.parent)
            demand_no_leftovers(root)
            demand_unchanged(before, inventory(root), allow=allow, beside={"app"})
            linked = extra_links(root)
            if linked:
                raise Failed(f"links remain on {linked[:5]}")


def read_only(trial, name, root, writer):
    """Directories without write permission, and file systems mounted read-only."""
    program, source = trial.program(), source_path(writer)
    engine = writer.source.split(":", 1)[0]
    place = root / "app"
    with trial.report.check(f"unchanged: {name}, read-only directory"):
        modes = {path: path.stat().st_mode for path in [place, *place.rglob("*")]}
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        before = inventory(root)
        target = trial.workplace.dir("target") / "image"
        staging = trial.workplace.dir("staging")
        program.run("image", "create", writer.source, "--to", target, "--staging", staging, *flags_of(writer))
        demand_no_leftovers(root, staging)
        demand_unchanged(before, inventory(root), allow=sqlite_indexes(writer))
        shutil.rmtree(target.parent)
        for path, mode in modes.items():
            if path.exists():
                path.chmod(mode)
    if name.startswith("rocksdb wal-dir"):
        return  # its logs lie in another directory, outside the mount
    with trial.report.check(f"unchanged: {name}, read-only mount") as line:
        view = trial.workplace.mount_read_only("view", place)
        try:
            before = inventory(view)
            target = trial.workplace.dir("target") / "image"
            seen = f"{engine}:{view / source.relative_to(place)}"
            refused = program.run("image", "create", seen, "--to", target, expect=None)
            if refused.code not in (0, PERMISSION):
                raise Failed(f"without --staging: exit {refused.code}: {refused.text[-300:]}")
            if refused.code == PERMISSION and "--staging" not in refused.text:
                raise Failed(f"the refusal does not name --staging: {refused.text[-300:]}")
            if refused.code == 0:
                shutil.rmtree(target)
            staging = trial.workplace.dir("staging")
            program.run("image", "create", seen, "--to", target, "--staging", staging)
            program.run("image", "validate", target)
            demand_no_leftovers(staging, view, target.parent)
            demand_unchanged(before, inventory(view))
            line.say(without_staging=refused.code)
            shutil.rmtree(target.parent)
        finally:
            trial.workplace.unmount(view)


# --------------------------------------------------------------------------------------------------------- other users


def give(path, user):
    """To another user, with everything below."""
    for each in [path, *path.rglob("*")]:
        os.chown(each, user, user)


def other_users(trial, release):
    program = trial.program()
    checker = RocksChecker(release)
    try:
        root = trial.workplace.dir("users")
        (root / "app").mkdir()
        writer = RocksWriter(release, SETTINGS["default"], root / "app").finish(25_000)
        acked, begun = writer.acked(), writer.begun()

        with trial.report.check("another user: files of root, links refused, open handles instead") as line:
            before = inventory(root)
            own = trial.workplace.dir("own")
            give(own, NOBODY)
            program.run("image", "create", writer.source, "--to", own / "image", "--staging", own, user=NOBODY)
            demand_no_leftovers(own, root)
            demand_unchanged(before, inventory(root))
            owners = {os.lstat(path).st_uid for path in (own / "image").rglob("*")}
            if owners != {NOBODY}:
                raise Failed(f"files in the image belong to {owners}")
            line.say(**checker.demand(own / "image", writer.setting, acked, begun))

        with trial.report.check("another user: no place to stage is an error that names --staging"):
            before = inventory(root)
            own = trial.workplace.dir("own")
            give(own, NOBODY)
            outcome = program.run("image", "create", writer.source, "--to", own / "image", user=NOBODY, expect=PERMISSION)
            if "--staging" not in outcome.text:
                raise Failed(f"the message does not say what to do: {outcome.text}")
            demand_unchanged(before, inventory(root))

        with trial.report.check("another user: one unreadable file is named"):
            table = next(iter(sorted(writer.dir.glob("*.sst"))))
            mode = table.stat().st_mode
            table.chmod(0o600)
            before = inventory(root)
            own = trial.workplace.dir("own")
            give(own, NOBODY)
            outcome = program.run("image", "create", writer.source, "--to", own / "image", "--staging", own, user=NOBODY, expect=PERMISSION)
            if table.name not in outcome.text:
                raise Failed(f"{table.name} is not named: {outcome.text}")
            if (own / "image").exists():
                raise Failed("a refused capture left an image")
            demand_no_leftovers(own, root)
            demand_unchanged(before, inventory(root))
            table.chmod(mode)

        with trial.report.check("another user: an unreadable directory is a permission error"):
            writer.dir.chmod(0o700)
            own = trial.workplace.dir("own")
            give(own, NOBODY)
            program.run("image", "create", writer.source, "--to", own / "image", "--staging", own, user=NOBODY, expect=PERMISSION)
            writer.dir.chmod(0o755)

        with trial.report.check("the owner, not root: links beside the source, nothing changed") as line:
            give(root, NOBODY)
            before = inventory(root)
            program.run("image", "create", writer.source, "--to", root / "image", user=NOBODY)
            if not extra_links(root / "image"):
                raise Failed("no table of the image is linked to the source")
            line.say(linked=len(extra_links(root / "image")), **checker.demand(root / "image", writer.setting, acked, begun))
            shutil.rmtree(root / "image")
            demand_no_leftovers(root)
            demand_unchanged(before, inventory(root), beside={".", "app"})

        with trial.report.check("the owner, not root: its own directory without write permission"):
            writer.dir.chmod(0o555)
            before = inventory(writer.dir)
            program.run("image", "create", writer.source, "--to", root / "image", user=NOBODY)
            shutil.rmtree(root / "image")
            demand_unchanged(before, inventory(writer.dir))
            writer.dir.chmod(0o755)
        writer.close()
        trial.workplace.remove(root)
    finally:
        checker.close()
    attributes(trial, release)
    sqlite_as_another(trial)


def attributes(trial, release):
    with trial.report.check("mode, owner and time of files come back"):
        program, root = trial.program(), trial.workplace.dir("attributes")
        (root / "app").mkdir()
        writer = RocksWriter(release, SETTINGS["default"], root / "app").finish(5000)
        for number, path in enumerate(sorted(writer.dir.glob("*.sst"))):
            path.chmod(0o640 if number % 2 else 0o600)
            os.chown(path, 1234, 4321 + number)
            os.utime(path, ns=(10**18, 10**18 + number))
        program.init(root / "repo")
        program.run("backup", writer.source, "-r", root / "repo")
        program.run("restore", "latest", "-r", root / "repo", "--to", root / "restored")
        facts = lambda path: (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid, path.stat().st_mtime_ns, path.read_bytes())
        restored = sorted(path.name for path in (root / "restored").glob("*.sst"))
        if restored != sorted(path.name for path in writer.dir.glob("*.sst")):
            raise Failed(f"other tables were restored: {restored}")
        for name in restored:
            if facts(writer.dir / name) != facts(root / "restored" / name):
                raise Failed(f"{name}: {facts(writer.dir / name)[:4]} became {facts(root / 'restored' / name)[:4]}")
        writer.close()


def sqlite_as_another(trial):
    """Another user who opens a WAL database leaves files that stop its application."""
    program = trial.program()
    root = trial.workplace.dir("sqlite-users")
    (root / "app").mkdir()
    (root / "app").chmod(0o777)
    writer = SqliteWriter(trial.workplace, root / "app", journal="wal").finish(300)
    with trial.report.check("another user: an unopened WAL database of somebody else is refused") as line:
        before = inventory(root)
        own = trial.workplace.dir("own")
        give(own, NOBODY)
        outcome = program.run(
            "image", "create", writer.source, "--to", own / "image", "--staging", own, user=NOBODY, expect=NOT_CAPTURABLE
        )
        if "--force" not in outcome.text:
            raise Failed(f"--force is not named: {outcome.text}")
        demand_unchanged(before, inventory(root))
        line.say(exit=outcome.code)
    with trial.report.check("another user: a WAL database in use is captured, its application goes on") as line:
        writer.start().wait(100)
        own = trial.workplace.dir("own")
        give(own, NOBODY)
        acked = writer.acked()
        program.run("image", "create", writer.source, "--to", own / "image", "--staging", own, user=NOBODY)
        line.say(n=demand_exact(trial.workplace, own / "image" / writer.path.name, acked, writer.begun()))
        writer.wait(100)
        foreign = [path.name for path in (root / "app").iterdir() if path.stat().st_uid == NOBODY]
        if foreign:
            raise Failed(f"left as another user: {foreign}")
    writer.close()
    trial.workplace.remove(root)


def in_user_namespace(trial):
    """Root of a user namespace that does not know the database's owner is not root: what SQLite makes would lock the application out."""
    with trial.report.check("another user, root in a namespace of its own: an SQLite database is refused, nothing is left beside it"):
        owner, me = 2000, 1000
        place = trial.workplace.dir("shared")
        place.chmod(0o777)
        database = sqlite3.connect(place / "app.db")
        database.execute("PRAGMA journal_mode=wal")
        database.execute("CREATE TABLE t(n)")
        database.close()
        give(place / "app.db", owner)
        before = sorted(path.name for path in place.iterdir())
        own = trial.workplace.dir("own")
        give(own, me)
        program = trial.program()
        words = program.command(["image", "create", f"sqlite:{place / 'app.db'}", "--staging", own, "--to", own / "image", "--reserve", "0"])
        done = subprocess.run([*as_user(me), need("unshare"), "--map-root-user", *words], env=program.environment(me), capture_output=True, text=True, timeout=60)
        if done.returncode != NOT_CAPTURABLE or "--force" not in done.stderr:
            raise Failed(f"exit {done.returncode}: {done.stderr}")
        if sorted(path.name for path in place.iterdir()) != before:
            raise Failed(f"beside it are {sorted(path.name for path in place.iterdir())}")
