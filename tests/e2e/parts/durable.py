"""What the program says is done survives a power cut: its system calls are followed, and nothing may be named before it is durable."""

import os
from pathlib import Path

from durability import Disk, traced
from report import Failed
from sqlite_writer import SqliteWriter


def run(trial):
    root = trial.workplace.dir("durable")
    program = trial.program()
    (root / "app").mkdir()
    writer = SqliteWriter(trial.workplace, root / "app", journal="wal").finish(2000, close="abrupt")
    (root / "tree" / "deep").mkdir(parents=True)
    for number in range(5):
        (root / "tree" / "deep" / str(number)).write_bytes(trial.random("durable").randbytes(200_000 + number))
    # More than a pack is written directly from.
    (root / "tree" / "large").write_bytes(trial.random("durable").randbytes(3_000_000))
    sources = [writer.source, f"files:{root / 'tree'}"]
    # Directories that are missing above a result are made, and are part of it.
    repo, restored, image = root / "kept" / "repo", root / "back" / "restored", root / "image"
    for name, words, result, moment in [
        ("repo init", ["repo", "init", repo], repo.parent, lambda new: new.name == "stillframe.json"),
        ("backup", ["backup", *sources, "-r", repo], repo, lambda new: new.parent.name == "sealed"),
        ("a second backup", ["backup", *sources, "-r", repo], repo, lambda new: new.parent.name == "sealed"),
        ("restore", ["restore", "latest", "-r", repo, "--to", restored], restored.parent, lambda new: new == restored),
        ("image create", ["image", "create", sources[0], "--to", image], image, lambda new: new == image),
        ("image create of files", ["image", "create", sources[1], "--to", root / "files"], root / "files", lambda new: new == root / "files"),
    ]:
        calls = []
        with trial.report.check(f"durable before it is named: {name}") as line:
            calls = traced(program.command([*words, *(["--reserve", "0"] if words[0] in ("backup", "image") else [])]), root / "trace",
                           env=program.environment(), cwd=root, timeout=120)
            fsyncs, named = follow(root, calls, result, moment)
            if not named:
                raise Failed("the moment from which it counts was not seen")
            line.say(calls=len(calls), fsyncs=fsyncs)
        with trial.report.check(f"the model is sharp: {name}") as line:
            # Without any one kind of fsync it must find something that a power cut could take.
            kinds = {
                "of directories": lambda path: not os.path.isdir(path) and not was_directory(path, calls),
                "of files": lambda path: os.path.isdir(path) or was_directory(path, calls),
            }
            for kind, kept in kinds.items():
                fewer = [call for call in calls if call[0] not in ("fsync", "fdatasync", "syncfs") or (call[0] != "syncfs" and kept(path_of(call)))]
                try:
                    follow(root, fewer, result, moment)
                except Failed as failed:
                    line.say(**{kind.replace(" ", "_"): str(failed).count(";") + 1})
                else:
                    raise Failed(f"nothing is missed without the fsyncs {kind}")
    trial.workplace.remove(root)


def path_of(call):
    return call[1].partition("<")[2].rpartition(">")[0]


def was_directory(path, calls):
    """Whether other paths of the calls are below it: it may be gone by now."""
    return any(f"{path}/" in arguments for _, arguments, _ in calls)


def follow(root, calls, result, moment):
    """All that the result needs must be durable when its last name is given, and that name when the program ends."""
    disk, named = Disk(root, root), False
    for name, arguments, opened in calls:
        if name.startswith(("rename", "link")):
            old, new = disk.paths(arguments)
            if moment(Path(new)):
                named = True
                # What is renamed has its things below the old name yet; only the name itself is not needed any more.
                risks = disk.at_risk(result) + disk.at_risk(old)
                demand([risk for risk in risks if risk != f"the name {old}"], f"before {new} appears")
        disk.call(name, arguments, opened)
    demand(disk.at_risk(result), "at the end")
    return disk.fsyncs, named


def demand(risks, when):
    if risks:
        raise Failed(f"{when} a power cut could take: {'; '.join(risks[:20])}")
