"""Captures of databases that Debian's db_bench writes to at full speed, checked by ldb and sst_dump."""

import os
import shutil
from pathlib import Path

import db_bench
from capturing import demand_weakening, kept_image, through_repository
from program import DAMAGED
from report import Failed


def run(trial):
    if trial.wants("fillseq"):
        sharp(trial)
    for name in db_bench.RUNS:
        if trial.wants(name):
            captures(trial, name)


def captures(trial, name):
    group, program, ordered = f"db_bench {name}", trial.program(), name in db_bench.ORDERED
    draw, repo, bench, root = trial.random(group), trial.workplace.dir("db-bench-repo"), None, None
    least, fresh = 0, False
    try:
        for turn in range(trial.captures):
            if bench is None or not bench.running() or turn % 3 == 0:
                # A new run every few captures keeps an append-only benchmark small.
                if bench is not None:
                    bench.kill()
                    trial.workplace.remove(root)
                root = trial.workplace.dir("db-bench")
                bench = db_bench.DbBench(trial.workplace, root, name).start().wait_tables(draw.randrange(12, 30))
                least, fresh = 0, True
            stored = turn % 5 == 4
            with trial.report.check(f"{group} {turn + 1} {'backup' if stored else 'image'}") as line:
                target, was_running = root / f"image-{turn}", bench.running()
                if stored:
                    through_repository(program, bench.source, repo, target)
                else:
                    snapshot = kept_image(program, bench.source, target)
                    trial.report.window(group, snapshot)
                    demand_weakening(snapshot, "")
                counts = db_bench.check(trial.workplace, target, ordered)
                line.say(rows=sum(counts.values()), families=len(counts), busy=was_running)
                if not was_running:
                    raise Failed("db_bench had ended before the capture: nothing was proven")
                if ordered:
                    if counts["default"] < least:
                        raise Failed(f"{counts['default']} rows, an earlier capture held {least}")
                    least = counts["default"]
                elif not fresh and sum(counts.values()) < 1000:
                    raise Failed(f"only {counts} rows")
                trial.workplace.remove(target)
    finally:
        if bench is not None:
            bench.kill()


def sharp(trial):
    """The checker accepts what a killed db_bench left, and refuses it with a hole."""
    root = trial.workplace.dir("db-bench-sharp")
    bench = db_bench.DbBench(trial.workplace, root, "fillseq").start().wait_tables(20)
    bench.kill()
    with trial.report.check("ldb oracle accepts a killed db_bench's database") as line:
        line.say(rows=db_bench.check(trial.workplace, bench.dir, True, killed=True)["default"])
    for name, spoil in {"a table missing": Path.unlink, "a table damaged": damage}.items():
        with trial.report.check(f"ldb oracle refuses: {name}"):
            state = root / "spoiled"
            shutil.copytree(bench.dir, state)
            # Not just any: the largest or the oldest file may be one that a killed compaction left, which nothing names.
            spoil(db_bench.live_tables(state)[-1])
            try:
                counts = db_bench.check(trial.workplace, state, True, killed=True)
            except Failed:
                pass
            else:
                raise Failed(f"accepted: {counts}")
            shutil.rmtree(state)
    with trial.report.check("sst_dump vouches for a table, and not for a damaged one"):
        table = root / "table.sst"
        shutil.copyfile(db_bench.live_tables(bench.dir)[-1], table)
        db_bench.check_sums(table, 1, root)
        damage(table)
        try:
            db_bench.check_sums(table, 1, root)
        except Failed:
            pass
        else:
            raise Failed("accepted")
    with trial.report.check("ldb oracle refuses: a hole"):
        database = root / "hole"
        shutil.copytree(bench.dir, database)
        db_bench.call("ldb", f"--db={database}", "--hex", "delete", db_bench.key_of(1000))
        try:
            db_bench.check(trial.workplace, database, True, killed=True)
        except Failed:
            pass
        else:
            raise Failed("accepted")
    with trial.report.check("a log that is damaged before its end: the backup tells, nothing calls it sound"):
        program, database, image, repo = trial.program(), root / "damaged-log", root / "image", root / "repo"
        shutil.copytree(bench.dir, database)
        snapshot = program.image(f"rocksdb:{database}", image)
        demand_weakening(snapshot, "")
        # Not one that a killed flush left, which nothing needs.
        logs = [database / file["path"] for file in snapshot["files"] if file["role"] == "log"]
        log = max(logs, key=os.path.getsize)
        if os.path.getsize(log) < 10_000:
            raise Failed(f"{log.name} holds only {os.path.getsize(log)} bytes: nothing to damage")
        program.run("image", "validate", image)
        shutil.rmtree(image)
        damage(log)
        demand_weakening(program.image(f"rocksdb:{database}", image), log.name)
        program.run("image", "validate", image, expect=DAMAGED)
        program.init(repo)
        said = program.run("backup", f"rocksdb:{database}", "-r", repo)
        if f"damaged log {database / log.name}" not in said.err:
            raise Failed(f"nothing was said of {log.name}: {said.err}")
        program.run("verify", "latest", "-r", repo, "--level", "decrypt")
        said = program.run("verify", "latest", "-r", repo, "--level", "open", expect=DAMAGED)
        if log.name not in said.err:
            raise Failed(f"the log is not named: {said.err}")
    with trial.report.check("a table of zeros, as a power cut leaves it, is not called sound"):
        program, image = trial.program(), root / "zeros"
        program.image(f"rocksdb:{bench.dir}", image, "--copy")
        table = db_bench.live_tables(image)[-1]
        table.write_bytes(bytes(os.path.getsize(table)))
        said = program.run("image", "validate", image, expect=DAMAGED)
        if table.name not in said.err:
            raise Failed(f"{table.name} is not named: {said.err}")
    trial.workplace.remove(root)


def damage(table):
    with open(table, "r+b") as file:
        file.seek(os.path.getsize(table) // 2)
        file.write(b"\xff" * 16)
