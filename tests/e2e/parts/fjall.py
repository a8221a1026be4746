"""Captures of fjall databases: atomic batches over keyspaces, large values, keyspaces that come and go, kills and restarts."""

import shutil

from capturing import demand_weakening, kept_image, through_repository
from fjall import LOADS, FjallWriter
from report import Failed

#: A database that has grown beyond this is left for a new one.
MOST_BYTES = 60 << 20


def run(trial):
    sharp(trial)
    for load in LOADS:
        if trial.wants(load):
            captures(trial, load)
    if not trial.only or trial.wants("restarts"):
        captures(trial, "batches", restarts=True)
    if not trial.only or trial.wants("tmpfs"):
        captures(trial, "batches", on_tmpfs=True)


def captures(trial, load, restarts=False, on_tmpfs=False):
    group = f"fjall {load}{' killed and restarted' if restarts else ''}{' on tmpfs' if on_tmpfs else ''}"
    program, draw = trial.program(), trial.random(group)
    home = trial.workplace.mount_tmpfs("fjall-tmpfs", 4096) if on_tmpfs else trial.workplace.dir("fjall")
    writer, number = None, 0
    try:
        for turn in range(trial.captures):
            if writer is not None and writer.bytes() > MOST_BYTES:
                writer.close()
                trial.workplace.remove(root)
                writer = None
            if writer is None:
                root = home / f"{number}"
                number += 1
                root.mkdir()
                writer = FjallWriter(trial, root, load).start().wait(2000)
            stored = turn % 5 == 4
            with trial.report.check(f"{group} {turn + 1} {'backup' if stored else 'image'}") as line:
                target, before = root / f"image-{turn}", writer.acked_lines()
                if stored:
                    through_repository(program, writer.source, root / "repo", target)
                else:
                    snapshot = kept_image(program, writer.source, target)
                    trial.report.window(group, snapshot)
                    # What the builder of the database was told is stored nowhere; that may be said, nothing else.
                    demand_weakening(snapshot, "")
                    line.say(window_ms=snapshot["window_us"] / 1000, attempts=snapshot["attempts"])
                line.say(n=writer.demand_exact(target, before, writer.begun_lines()))
                trial.workplace.remove(target)
            if restarts:
                writer.kill()
                writer.start()
            writer.wait(draw.randrange(5, 600))
        with trial.report.check(f"{group}: writer unharmed") as line:
            writer.demand_alive()
            line.say(acked=writer.acked())
    finally:
        if writer is not None:
            writer.close()
        if on_tmpfs:
            trial.workplace.unmount(home)
        trial.workplace.remove(home)


def sharp(trial):
    """The checker accepts what a killed writer left and refuses what was spoiled."""
    root = trial.workplace.dir("fjall-sharp")
    writer = FjallWriter(trial, root).start()
    try:
        writer.wait(6000)
        writer.kill()
        before, after = writer.acked_lines(), writer.begun_lines()
        with trial.report.check("fjall oracle accepts a killed writer's database") as line:
            line.say(n=writer.demand_exact(writer.dir, before, after))
        for name, spoil in {
            "the journals lost": lambda state: [path.unlink() for path in state.glob("*.jnl")],
            "a keyspace lost": lambda state: shutil.rmtree(state / "keyspaces" / "2"),
            "the newest journal cut": cut_journal,
        }.items():
            with trial.report.check(f"fjall oracle refuses: {name}") as line:
                state = root / "spoiled"
                shutil.copytree(writer.dir, state)
                spoil(state)
                try:
                    n = writer.demand_exact(state, before, after)
                except Failed as failed:
                    line.say(why=str(failed)[:120].replace(" ", "_"))
                else:
                    raise Failed(f"accepted at {n}")
                shutil.rmtree(state)
    finally:
        writer.close()
        trial.workplace.remove(root)


def cut_journal(state):
    newest = max(state.glob("*.jnl"), key=lambda path: int(path.stem))
    content = newest.read_bytes().rstrip(b"\0")
    newest.write_bytes(content[: len(content) // 2])
