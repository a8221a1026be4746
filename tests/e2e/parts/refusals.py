"""What the program must say no to, with the right exit code, a message that names the thing, and nothing left behind."""

import os
import shutil
import sys
import time
from pathlib import Path

from inventory import demand_no_leftovers, demand_unchanged, inventory
from program import DAMAGED, FAILED, NO_REPOSITORY, NOT_CAPTURABLE, TOO_BUSY, USAGE, WRONG_PASSPHRASE
from report import Failed
from rocks import NEWEST, SETTINGS, Release, RocksChecker, RocksWriter

NO_BACKUP = 24


def run(trial):
    release = Release(NEWEST, trial.workplace)
    root = trial.workplace.dir("refusals")
    (root / "app").mkdir()
    writer = RocksWriter(release, SETTINGS["default"], root / "app").finish(25_000)
    try:
        spoiled_sources(trial, root, writer)
        other_directories(trial, root, release)
        too_busy(trial, root, writer)
        vanishing(trial, release)
        arguments(trial, root, writer)
        repositories(trial, root, writer)
    finally:
        writer.close()


def refuse(trial, name, source, expect, words=(), flags=(), root=None):
    """The capture fails with one of the codes, names each of the words, leaves nothing and changes nothing."""
    with trial.report.check(f"refused: {name}") as line:
        path = Path(str(source).split(":", 1)[1])
        before = inventory(path) if path.is_dir() else None
        target = trial.workplace.dir("target") / "image"
        outcome = trial.program().run("image", "create", source, "--to", target, *flags, expect=expect)
        for word in words:
            if word not in outcome.text:
                raise Failed(f"{word!r} is not in the message: {outcome.text[-400:]}")
        if target.exists():
            raise Failed("a refused capture left an image")
        demand_no_leftovers(target.parent, path.parent)
        if before is not None:
            demand_unchanged(before, inventory(path))
        line.say(exit=outcome.code, said=outcome.text[-160:].replace(" ", "_"))


def spoiled_sources(trial, root, writer):
    def spoiled(name, spoil):
        state = trial.workplace.dir("state") / name
        shutil.copytree(writer.dir, state)
        spoil(state)
        return f"rocksdb:{state}"

    table = sorted(path.name for path in writer.dir.glob("*.sst"))[-1]
    number = str(int(table.removesuffix(".sst")))
    manifest = (writer.dir / "CURRENT").read_text().strip()

    def cut(path):
        os.truncate(path, path.stat().st_size // 2)

    def garbage(path):
        path.write_bytes(b"\x00\xff" * 500)

    def odd_current(text):
        return lambda state: (state / "CURRENT").write_bytes(text)

    def without_diary(state):
        (state / table).unlink()
        (state / "LOG").unlink()

    refuse(trial, "a live table is missing", spoiled("missing", without_diary), NOT_CAPTURABLE, [number])
    # The copy's LOG still names the original's directory, where a file of that name is: another database's.
    refuse(trial, "a live table is missing in a copied database", spoiled("copied", lambda s: (s / table).unlink()), NOT_CAPTURABLE, [number])
    refuse(trial, "a live table is too short", spoiled("short", lambda s: cut(s / table)), NOT_CAPTURABLE, [table])
    refuse(trial, "no log at all", spoiled("logless", lambda s: [log.unlink() for log in s.glob("*.log")]), USAGE, ["log"])
    refuse(trial, "no CURRENT", spoiled("currentless", lambda s: (s / "CURRENT").unlink()), NOT_CAPTURABLE, ["CURRENT"])
    refuse(trial, "CURRENT without a newline", spoiled("torn-current", odd_current(manifest.encode())), NOT_CAPTURABLE, ["CURRENT"])
    refuse(trial, "CURRENT leads out of the directory", spoiled("leading", odd_current(b"../MANIFEST-000001\n")), NOT_CAPTURABLE, ["CURRENT"])
    refuse(trial, "CURRENT of random bytes", spoiled("encrypted", lambda s: garbage(s / "CURRENT")), NOT_CAPTURABLE, ["CURRENT"])
    refuse(trial, "MANIFEST of random bytes", spoiled("odd-manifest", lambda s: garbage(s / manifest)), NOT_CAPTURABLE, [manifest])
    refuse(trial, "MANIFEST is missing", spoiled("no-manifest", lambda s: (s / manifest).unlink()), NOT_CAPTURABLE, ["MANIFEST"])
    refuse(trial, "stacked BlobDB", spoiled("stacked", lambda s: (s / "blob_dir").mkdir()), NOT_CAPTURABLE, ["blob_dir"])
    refuse(trial, "Titan", spoiled("titan", lambda s: (s / "titandb").mkdir()), NOT_CAPTURABLE, ["titandb"])
    empty = trial.workplace.dir("empty")
    refuse(trial, "a wrong log directory", spoiled("elsewhere", lambda s: None), USAGE, ["log", "--wal-dir"], ["--wal-dir", empty])
    refuse(trial, "an empty directory", f"rocksdb:{trial.workplace.dir('none')}", NOT_CAPTURABLE)
    refuse(trial, "a directory that is not there", f"rocksdb:{root / 'absent'}", NOT_CAPTURABLE, ["absent"])


def other_directories(trial, root, release):
    (root / "paths").mkdir()
    writer = RocksWriter(release, SETTINGS["cf-paths"], root / "paths").finish(25_000)
    try:
        if not list((root / "paths" / "own").glob("*.sst")):
            raise Failed("the writer put no table into its family's own directory")
        refuse(trial, "a family's own directory that nobody named", writer.source, USAGE, ["--cf-path"])
    finally:
        writer.close()


def too_busy(trial, root, writer):
    """A MANIFEST that moves all the time, by bytes behind its end that no reader takes for a record.

    Some thousand empty logs make each attempt longer than the movers can be off the processor on a loaded machine.
    """
    state = trial.workplace.dir("busy") / "db"
    shutil.copytree(writer.dir, state)
    for number in range(900_000, 904_000):
        (state / f"{number}.log").touch()
    manifest = state / (state / "CURRENT").read_text().strip()
    move = f"import os; os.nice(-5); fd = os.open({str(manifest)!r}, os.O_WRONLY | os.O_APPEND)\nwhile True: os.write(fd, b'\\0')"
    movers = [trial.workplace.start([sys.executable, "-c", move]) for _ in range(2)]
    grown, ends = os.path.getsize(manifest) + 1000, time.monotonic() + 20
    while os.path.getsize(manifest) < grown and time.monotonic() < ends:
        time.sleep(0.01)
    try:
        with trial.report.check("too busy: says so, names what moved") as line:
            target, began = trial.workplace.dir("target") / "image", time.monotonic()
            outcome = trial.program().run("image", "create", f"rocksdb:{state}", "--to", target, "--deadline", "2", expect=TOO_BUSY)
            took = time.monotonic() - began
            if "MANIFEST" not in outcome.text:
                raise Failed(f"what moved is not named: {outcome.text}")
            if not 1.5 < took < 30:
                raise Failed(f"it gave up after {took:.1f} s")
            demand_no_leftovers(state.parent, target.parent)
            line.say(seconds=f"{took:.1f}")
    finally:
        for mover in movers:
            trial.workplace.kill(mover)
    with trial.report.check("quiet again: the same source is captured"):
        for log in state.glob("90????.log"):
            log.unlink()
        trial.program().image(f"rocksdb:{state}", trial.workplace.dir("target") / "image")


def vanishing(trial, release):
    """The source is destroyed while it is captured: an exact image, or an error; never half a one."""
    checker, program, draw = RocksChecker(release), trial.program(), trial.random("vanishing")
    try:
        for turn in range(trial.captures):
            with trial.report.check(f"source removed during its capture {turn + 1}") as line:
                root = trial.workplace.dir("vanishing")
                (root / "app").mkdir()
                writer = RocksWriter(release, SETTINGS["default"], root / "app").start().wait(30_000)
                acked = writer.acked()
                running = program.start("image", "create", writer.source, "--to", root / "image")
                time.sleep(draw.random() * 0.06)
                writer.kill()
                shutil.rmtree(writer.dir)
                _, said = running.communicate(timeout=120)
                line.say(exit=running.returncode)
                if running.returncode == 0:
                    line.say(**checker.demand(root / "image", writer.setting, acked, writer.begun()))
                elif running.returncode not in (FAILED, NOT_CAPTURABLE, TOO_BUSY) or (root / "image").exists() or not said.strip():
                    raise Failed(f"exit {running.returncode}, image there: {(root / 'image').exists()}: {said[-300:]}")
                demand_no_leftovers(root)
                writer.close()
                trial.workplace.remove(root)
    finally:
        checker.close()


def arguments(trial, root, writer):
    program = trial.program()
    occupied = trial.workplace.dir("occupied")
    (occupied / "mine").write_text("keep me")
    repo = root / "repo-arguments"
    program.init(repo)
    program.run("backup", writer.source, "-r", repo, "--name", "twin")
    program.run("backup", writer.source, "-r", repo, "--name", "twin")
    for name, words, expect in [
        ("a kept image onto something", ["image", "create", writer.source, "--to", occupied], USAGE),
        ("a restore onto something", ["restore", "latest", "-r", repo, "--to", occupied], USAGE),
        ("an unknown command", ["bakcup"], USAGE),
        ("an unknown flag", ["backup", writer.source, "-r", repo, "--fats"], USAGE),
        ("no source", ["backup", "-r", repo], USAGE),
        ("no repository given", ["snapshots"], USAGE),
        ("an engine nobody knows", ["backup", "mysql:/x", "-r", repo], USAGE),
        ("a reserve that is no size", ["backup", writer.source, "-r", repo, "--reserve", "much"], USAGE),
        ("an ambiguous name", ["restore", "twin", "-r", repo, "--to", root / "twin"], NO_BACKUP),
        ("a backup that is not there", ["restore", "nothing", "-r", repo, "--to", root / "nothing"], NO_BACKUP),
        ("an id that leads elsewhere", ["restore", "../../etc", "-r", repo, "--to", root / "elsewhere"], NO_BACKUP),
    ]:
        with trial.report.check(f"refused: {name}") as line:
            outcome = program.run(*words, expect=expect)
            if not outcome.err.strip():
                raise Failed("it says nothing on standard error")
            line.say(exit=outcome.code)
    with trial.report.check("what was in the way is still there"):
        if [path.name for path in occupied.iterdir()] != ["mine"] or (occupied / "mine").read_text() != "keep me":
            raise Failed("the directory was touched")


def repositories(trial, root, writer):
    program = trial.program()
    repo = root / "repo"
    program.init(repo)
    program.run("backup", writer.source, "-r", repo)
    with trial.report.check("a wrong passphrase is told apart, and shown nowhere"):
        secret = "open sesame of the wrong kind"
        wrong = trial.program(STILLFRAME_PASSPHRASE=secret)
        for words in (["snapshots", "-r", repo], ["backup", writer.source, "-r", repo], ["restore", "latest", "-r", repo, "--to", root / "r"]):
            outcome = wrong.run(*words, expect=WRONG_PASSPHRASE)
            if secret in outcome.text:
                raise Failed("the passphrase is in the message")
    with trial.report.check("no repository is told apart"):
        program.run("snapshots", "-r", root / "no-such-repo", expect=NO_REPOSITORY)
        program.run("backup", writer.source, "-r", trial.workplace.dir("no-repo"), expect=NO_REPOSITORY)
    with trial.report.check("a second init onto a repository is refused"):
        program.run("repo", "init", repo, expect=USAGE)
        program.run("snapshots", "-r", repo)
    with trial.report.check("another passphrase opens it too; both keys are listed"):
        more = root / "second-passphrase"
        more.write_text("a second one\n")
        program.run("key", "add", "-r", repo, "--new-passphrase-file", more)
        trial.program(STILLFRAME_PASSPHRASE="a second one").run("snapshots", "-r", repo)
        keys = program.run("key", "list", "-r", repo, "--json").objects()
        if len([key for key in keys if "id" in key]) != 2 and len(keys[0].get("keys", [])) != 2:
            raise Failed(f"listed: {keys}")
    damaged_repository(trial, program, root, repo)
    no_encryption(trial, root, writer)


def damaged_repository(trial, program, root, repo):
    """One bit in one pack: verify names the pack, restore writes nothing."""
    with trial.report.check("a damaged pack is named; what it belongs to is not restored") as line:
        pack = max((path for path in (repo / "packs").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        good = pack.read_bytes()
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(bad)
        for level in ("hash", "decrypt"):
            outcome = program.run("verify", "latest", "-r", repo, "--level", level, expect=DAMAGED)
            if pack.name[:16] not in outcome.text:
                raise Failed(f"verify --level {level} does not name the pack {pack.name}: {outcome.text[-300:]}")
        program.run("restore", "latest", "-r", repo, "--to", root / "from-damaged", expect=DAMAGED)
        if (root / "from-damaged").exists():
            raise Failed("a restore that failed left its target")
        pack.write_bytes(good)
        program.run("verify", "latest", "-r", repo, "--level", "open")
        line.say(pack=pack.name[:12])
    with trial.report.check("a missing pack is named"):
        pack.rename(root / "pack-elsewhere")
        outcome = program.run("verify", "latest", "-r", repo, "--level", "exists", expect=DAMAGED)
        if pack.name[:16] not in outcome.text:
            raise Failed(f"verify does not name the pack: {outcome.text[-300:]}")
        (root / "pack-elsewhere").rename(pack)
    with trial.report.check("nothing of the source is readable in the repository"):
        for path in repo.rglob("*"):
            if path.is_file() and any(word in path.read_bytes() for word in (b"MANIFEST-0", b"rocksdb.", b"leveldb.Bytewise")):
                raise Failed(f"{path} holds plain text of the source")


def no_encryption(trial, root, writer):
    with trial.report.check("a repository without encryption needs no passphrase"):
        bare = root / "bare"
        program = trial.program(STILLFRAME_PASSPHRASE="")
        program.run("repo", "init", bare, "--no-encryption")
        program.run("backup", writer.source, "-r", bare)
        program.run("verify", "latest", "-r", bare, "--level", "open")
        program.run("restore", "latest", "-r", bare, "--to", root / "from-bare")
        # Whoever gives a passphrase means another one.
        said = trial.program().run("backup", writer.source, "-r", bare, expect=USAGE)
        if "do not use it" not in said.err:
            raise Failed(f"a repository without encryption takes what was to be encrypted: {said.err}")
