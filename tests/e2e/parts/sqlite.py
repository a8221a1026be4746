"""Captures of SQLite databases in use, by writers that are not ours, in both journal modes."""

import os
import shutil
import signal
import sqlite3
import sys
import time
from pathlib import Path

import sqlite_oracle
from capturing import kept_image, through_repository
from inventory import demand_no_leftovers, demand_unchanged, inventory
from program import NOT_CAPTURABLE
from report import Failed
from sqlite_writer import ShellWriter, SqliteWriter, demand_exact
from workplace import NOBODY

#: Name → (writer, its settings, whether a refused commit is the application's own choice).
SETTINGS = {
    "wal": (SqliteWriter, {"journal": "wal", "synchronous": "normal"}, False),
    "wal full speed without checkpoints": (SqliteWriter, {"journal": "wal", "synchronous": "off", "wal_autocheckpoint": 0, "pause": 0.0005}, False),
    "wal no busy timeout": (SqliteWriter, {"journal": "wal", "synchronous": "normal", "timeout": 0}, False),
    "wal pages of 512": (SqliteWriter, {"journal": "wal", "synchronous": "normal", "page_size": 512}, False),
    "wal pages of 65536": (SqliteWriter, {"journal": "wal", "synchronous": "normal", "page_size": 65536}, False),
    "wal shell": (ShellWriter, {"journal": "wal"}, False),
    "delete": (SqliteWriter, {"journal": "delete"}, False),
    "truncate": (SqliteWriter, {"journal": "truncate"}, False),
    "persist": (SqliteWriter, {"journal": "persist"}, False),
    "delete no busy timeout": (SqliteWriter, {"journal": "delete", "timeout": 0}, True),
    "delete shell": (ShellWriter, {"journal": "delete"}, False),
}


def run(trial):
    sharp(trial)
    for name, (kind, settings, may_refuse) in SETTINGS.items():
        if trial.wants(name):
            captures(trial, name, kind, settings, may_refuse)
    if not trial.only:
        crashed_wal(trial)
        stale_index(trial)
        killed_among_others(trial)
        hot_journal(trial)
        empty(trial)


def captures(trial, name, kind, settings, may_refuse):
    group, program = f"sqlite {name}", trial.program()
    draw, root = trial.random(group), trial.workplace.dir("sqlite")
    (root / "db").mkdir()
    writer = kind(trial.workplace, root / "db", **settings).start()
    try:
        writer.wait(300)
        for turn in range(trial.captures):
            stored = turn % 5 == 4
            with trial.report.check(f"{group} {turn + 1} {'backup' if stored else 'image'}") as line:
                target = root / f"image-{turn}"
                writer.longest_ms()
                refused, acked = writer.refused(), writer.acked()
                if stored:
                    through_repository(program, writer.source, root / "repo", target)
                else:
                    snapshot = kept_image(program, writer.source, target)
                    trial.report.window(group, snapshot)
                begun = writer.begun()
                line.say(n=demand_exact(trial.workplace, target / writer.path.name, acked, begun), longest_commit_ms=writer.longest_ms())
                refused = writer.refused() - refused
                line.say(refused=refused)
                if refused and not may_refuse:
                    raise Failed(f"{refused} commits of the application failed because of the backup")
                trial.workplace.remove(target)
            writer.wait(draw.randrange(5, 200))
        with trial.report.check(f"{group}: writer unharmed") as line:
            writer.demand_alive()
            writer.kill()
            line.say(n=demand_exact(trial.workplace, writer.path, writer.acked(), writer.begun()))
    finally:
        writer.close()
        trial.workplace.remove(root)


def sharp(trial):
    """The checker itself: a sound copy passes, a copied file without its WAL, a torn page and an old state do not."""
    root = trial.workplace.dir("sqlite-sharp")
    writer = SqliteWriter(trial.workplace, root, journal="wal", synchronous="off", wal_autocheckpoint=0)
    try:
        with trial.report.check("sqlite oracle accepts a killed writer's database"):
            writer.start().wait(200)
            writer.kill()
            acked, begun = writer.acked(), writer.begun()
            demand_exact(trial.workplace, writer.path, acked, begun)

        def spoil_row(database):
            connection = sqlite3.connect(database)
            connection.execute("UPDATE t SET v = zeroblob(300) WHERE id = 17")
            connection.commit()
            connection.close()

        def tear(database):
            connection = sqlite3.connect(database)
            connection.execute("UPDATE c1 SET n = n - 1")
            connection.commit()
            connection.close()

        for name, spoil in {
            "the WAL left out": lambda database: os.remove(f"{database}-wal"),
            "one row": spoil_row,
            "a torn transaction": tear,
            "damaged pages": lambda database: damage(database),
        }.items():
            with trial.report.check(f"sqlite oracle refuses: {name}"):
                copy = trial.workplace.dir("spoiled")
                for path in root.glob("app.sqlite*"):
                    (copy / path.name).write_bytes(path.read_bytes())
                spoil(copy / "app.sqlite")
                wrong, _ = sqlite_oracle.check(copy / "app.sqlite", acked, begun)
                if not wrong:
                    raise Failed("accepted")
    finally:
        writer.close()
        trial.workplace.remove(root)


def damage(database):
    for path in (database, f"{database}-wal"):
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            file.write(os.urandom(9000))


def crashed_wal(trial):
    """The hard case: opening and closing such a database as usual would checkpoint it and remove its WAL."""
    with trial.report.check("sqlite crashed WAL database is captured whole and stays as it was") as line:
        root = trial.workplace.dir("sqlite-crashed")
        (root / "db").mkdir()
        writer = SqliteWriter(trial.workplace, root / "db", journal="wal", synchronous="off", wal_autocheckpoint=0).start()
        writer.wait(500)
        writer.kill()
        acked, begun = writer.acked(), writer.begun()
        for turn in range(trial.captures):
            # Once with the index file of the crashed process, once without it, as after a reboot.
            if turn == 1:
                os.remove(f"{writer.path}-shm")
            # SQLite's own index of an unopened WAL database may be made or made anew; nothing else.
            before = inventory(root / "db")
            kept_image(trial.program(), writer.source, root / f"image-{turn}")
            demand_unchanged(before, inventory(root / "db"), allow={f"{writer.path.name}-shm"}, beside={"."})
            last = demand_exact(trial.workplace, root / f"image-{turn}" / writer.path.name, acked, begun)
        line.say(n=last, wal=os.path.getsize(f"{writer.path}-wal"))
        writer.close()


def stale_index(trial):
    """The index is never synced: after a crash of the machine, or in a snapshot of its disk, it speaks of an earlier log. Who may not write it reads the
    log itself, as SQLite does."""
    for name in ("behind", "behind a checkpoint", "of an empty log"):
        root = trial.workplace.dir("sqlite-stale")
        (root / "db").mkdir()
        writer = SqliteWriter(trial.workplace, root / "db", journal="wal", synchronous="off", wal_autocheckpoint=0).start()
        index, kept = Path(f"{writer.path}-shm"), root / "shm"
        writer.wait(20)
        # Between two transactions, or nothing can be checkpointed.
        while True:
            writer.process.send_signal(signal.SIGSTOP)
            if name != "of an empty log" or checkpointed(writer.path, "TRUNCATE"):
                break
            writer.process.send_signal(signal.SIGCONT)
            time.sleep(0.01)
        shutil.copy(index, kept)
        writer.process.send_signal(signal.SIGCONT)
        writer.wait(300)
        if name == "behind a checkpoint":
            if not checkpointed(writer.path, "PASSIVE"):
                raise Failed("nothing was checkpointed")
            writer.wait(100)
        writer.kill()
        acked, begun = writer.acked(), writer.begun()
        shutil.copy(kept, index)
        for who in ("on a read-only file system", "under another user"):
            with trial.report.check(f"sqlite index {name}, {who}") as line:
                own = trial.workplace.dir("own")
                own.chmod(0o777)
                view = trial.workplace.mount_read_only("view", root / "db") if who.startswith("on") else root / "db"
                user = NOBODY if who.startswith("under") else None
                try:
                    before = inventory(root / "db")
                    trial.program().image(f"sqlite:{view / writer.path.name}", own / "image", "--staging", own, user=user)
                    demand_unchanged(before, inventory(root / "db"))
                    line.say(n=demand_exact(trial.workplace, own / "image" / writer.path.name, acked, begun))
                finally:
                    if user is None:
                        trial.workplace.unmount(view)
        writer.close()
        trial.workplace.remove(root)


def checkpointed(path, how):
    database = sqlite3.connect(path, timeout=0)
    try:
        (busy, _, _), = database.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
        return not busy
    except sqlite3.OperationalError:
        return False
    finally:
        database.close()


#: One that is killed in the middle of a commit, and others that go on: rewrites a run of rows of one of two tables.
REWRITER = """
import random, sqlite3, sys
path, tables, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
draw = random.Random(seed)
database = sqlite3.connect(path, isolation_level=None, timeout=60)
database.execute("PRAGMA synchronous=full")
while True:
    table, low, rows = draw.choice(tables), draw.randrange(2000), draw.choice([20, 300, 1000])
    database.execute("BEGIN IMMEDIATE")
    database.execute(f"UPDATE {table} SET v = randomblob(900) WHERE id BETWEEN ? AND ?", (low, low + rows))
    database.execute("COMMIT")
"""


def killed_among_others(trial):
    """A writer that is killed may leave whole commits in the log that were never published; another one overwrites them while the
    file is being copied, which takes a while."""
    root = trial.workplace.dir("sqlite-killed")
    (root / "db").mkdir()
    path, draw = root / "db" / "app.sqlite", trial.random("sqlite killed among others")
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=wal")
    database.execute("BEGIN")
    for table in ["ballast", *"abcd"]:
        database.execute(f"CREATE TABLE {table}(id INTEGER PRIMARY KEY, v BLOB)")
    database.executemany("INSERT INTO ballast VALUES(?, randomblob(1000000))", [(n,) for n in range(150)])
    for table in "abcd":
        database.executemany(f"INSERT INTO {table} VALUES(?, randomblob(900))", [(n,) for n in range(3000)])
    database.execute("COMMIT")
    database.close()
    start = lambda tables: trial.workplace.start([sys.executable, "-c", REWRITER, path, tables, str(draw.randrange(1 << 30))])
    others = start("cd")
    try:
        for turn in range(trial.captures * 2):
            with trial.report.check(f"sqlite a writer killed among others {turn + 1}"):
                killed = start("ab")
                time.sleep(0.3 + draw.random() * 0.3)
                killed.kill()
                killed.wait()
                kept_image(trial.program(), f"sqlite:{path}", root / "image")
                if others.poll() is not None:
                    raise Failed("the other writer died")
                image = sqlite3.connect(root / "image" / path.name)
                said = image.execute("PRAGMA integrity_check(3)").fetchall()
                image.close()
                if said != [("ok",)]:
                    raise Failed(f"the image is corrupt: {said}")
                trial.workplace.remove(root / "image")
    finally:
        others.kill()
        others.wait()
        trial.workplace.remove(root)


def hot_journal(trial):
    """A writer of rollback mode died in a transaction: only its application may roll that back."""
    with trial.report.check("sqlite hot journal is refused by name and left alone") as line:
        root = trial.workplace.dir("sqlite-hot")
        (root / "db").mkdir()
        path = root / "db" / "app.sqlite"
        sqlite_oracle.create(path, {"journal": "delete"}).close()
        child = os.fork()
        if child == 0:
            database = sqlite3.connect(path, isolation_level=None)
            database.execute("PRAGMA cache_size = 5")
            database.execute("BEGIN IMMEDIATE")
            database.execute("UPDATE t SET v = zeroblob(500)")
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        if os.path.getsize(f"{path}-journal") == 0:
            raise Failed("the test made no hot journal")
        before = inventory(root / "db")
        outcome = trial.program().run("image", "create", f"sqlite:{path}", "--to", root / "image", expect=NOT_CAPTURABLE)
        demand_unchanged(before, inventory(root / "db"), beside={"."})
        demand_no_leftovers(root)
        if (root / "image").exists():
            raise Failed("a refused capture left an image")
        if "recovery" not in outcome.text and "application" not in outcome.text:
            raise Failed(f"the message does not say what to do: {outcome.text}")
        line.say(said=outcome.text.replace(" ", "_")[:160])


def empty(trial):
    """A database of no bytes is one: an empty one."""
    with trial.report.check("sqlite empty database"):
        root = trial.workplace.dir("sqlite-empty")
        (root / "app.sqlite").touch()
        kept_image(trial.program(), f"sqlite:{root / 'app.sqlite'}", root / "image")
        connection = sqlite3.connect(root / "image" / "app.sqlite")
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
            raise Failed("the image is not empty")
        connection.close()
