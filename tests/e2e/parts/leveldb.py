"""Captures of a LevelDB database that plyvel writes to at full speed."""

import os
import shutil

from capturing import demand_weakening, kept_image, through_repository
from leveldb import LeveldbWriter
from report import Failed


def run(trial):
    group, program = "leveldb plyvel", trial.program()
    draw, root = trial.random(group), trial.workplace.dir("leveldb")
    writer = LeveldbWriter(trial.workplace, root).start()
    try:
        writer.wait(50_000)
        sharp(trial, writer, root)
        for turn in range(trial.captures):
            stored = turn % 5 == 4
            with trial.report.check(f"{group} {turn + 1} {'backup' if stored else 'image'}") as line:
                target, acked = root / f"image-{turn}", writer.ledger.get(1)
                if stored:
                    through_repository(program, writer.source, root / "repo", target)
                else:
                    snapshot = kept_image(program, writer.source, target)
                    trial.report.window(group, snapshot)
                    demand_weakening(snapshot, "")
                line.say(said=writer.demand_exact(target, acked, writer.ledger.get(0)))
                trial.workplace.remove(target)
            writer.wait(draw.randrange(10, 3000))
        with trial.report.check(f"{group}: writer unharmed"):
            writer.demand_alive()
    finally:
        writer.close()
        trial.workplace.remove(root)


def sharp(trial, writer, root):
    """The checker accepts what a killed writer left, and refuses it when its log is cut."""
    writer.kill()
    # Only what the newest log holds is nowhere else: an older one may be in a table already, and the newest may have just begun.
    while newest_log(writer.dir).stat().st_size < 64 << 10:
        writer.start().wait(2000).kill()
    acked, begun = writer.ledger.get(1), writer.ledger.get(0)
    with trial.report.check("leveldb oracle accepts a killed writer's database") as line:
        line.say(said=writer.demand_exact(writer.dir, acked, begun))
    with trial.report.check("leveldb oracle refuses a cut log"):
        shutil.copytree(writer.dir, root / "cut")
        log = newest_log(root / "cut")
        os.truncate(log, log.stat().st_size // 2)
        try:
            said = writer.demand_exact(root / "cut", acked, begun)
        except Failed:
            pass
        else:
            raise Failed(f"accepted: {said}")
    writer.start().wait(2000)


def newest_log(directory):
    return max(directory.glob("*.log"), key=lambda path: int(path.stem))
