"""Captures of RocksDB databases that rocksdbjni writes to at full speed, opened by the release that wrote them."""

from capturing import demand_inside, demand_weakening, kept_image, through_repository
from report import Failed
from rocks import ALL_RELEASES, NEWEST, RELEASES, Release, RocksChecker, RocksWriter, settings_for


def run(trial):
    for name in ALL_RELEASES if trial.long else RELEASES:
        release = Release(name, trial.workplace)
        checker = RocksChecker(release)
        try:
            for setting in settings_for(name, trial.long):
                if trial.wants(setting.name) or trial.wants(name) or trial.wants(f"{setting.name}@{name}"):
                    captures(trial, release, checker, setting)
        finally:
            checker.close()
    if not trial.only or trial.wants("restarts"):
        restarts(trial)


def captures(trial, release, checker, setting):
    group = f"rocksdb {setting.name} {release.name}"
    draw, program = trial.random(group), trial.program()
    root = trial.workplace.dir(f"{setting.name}-{release.name}")
    writer = RocksWriter(release, setting, root)
    try:
        with trial.report.check(f"{group}: writer"):
            writer.start().wait(15_000 if setting.writer.get("pace") else 60_000)
        if writer.process is None:
            return
        for turn in range(trial.captures):
            # One in five takes the long way through a repository.
            stored = turn % 5 == 4
            with trial.report.check(f"{group} {turn + 1} {'backup' if stored else 'image'}") as line:
                one(trial, program, checker, writer, root, turn, stored, line, group)
            writer.wait(draw.randrange(1, 3000))
        with trial.report.check(f"{group}: writer unharmed") as line:
            writer.demand_alive()
            line.say(acked=writer.acked()[0])
    finally:
        writer.close()
        trial.workplace.remove(root)


def one(trial, program, checker, writer, root, turn, stored, line, group):
    setting, target = writer.setting, root / f"image-{turn}"
    # Where paths can be found out from what the database left on disk, every other capture is not told them.
    flags = writer.flags(told=turn % 2 == 0)
    acked = writer.acked()
    if stored:
        through_repository(program, writer.source, root / "repo", target, flags)
    else:
        snapshot = kept_image(program, writer.source, target, flags)
        trial.report.window(group, snapshot)
        demand_weakening(snapshot, setting.weakening)
        line.say(window_ms=snapshot["window_us"] / 1000, attempts=snapshot["attempts"])
    begun = writer.begun()
    demand_inside(target)
    line.say(**checker.demand(target, setting, acked, begun))
    trial.workplace.remove(target)


def restarts(trial):
    """The writer is killed at any moment and started again, also while a capture runs."""
    release = Release(NEWEST, trial.workplace)
    checker, program = RocksChecker(release), trial.program()
    for setting in settings_for(NEWEST):
        if setting.name not in ("default", "recycled", "family-churn", "transactions"):
            continue
        group = f"rocksdb {setting.name} {NEWEST} killed and restarted"
        draw, root = trial.random(group), trial.workplace.dir(f"restarts-{setting.name}")
        writer = RocksWriter(release, setting, root).start()
        try:
            writer.wait(30_000)
            for turn in range(trial.captures):
                with trial.report.check(f"{group} {turn + 1}") as line:
                    acked = writer.acked()
                    capture = program.start("image", "create", writer.source, "--to", root / f"image-{turn}")
                    try:
                        capture.wait(timeout=draw.random() * 0.15)
                    except Exception:
                        pass  # it still runs: that is the point
                    writer.kill()
                    if draw.random() < 0.5:
                        writer.start()
                    _, said = capture.communicate(timeout=120)
                    begun = writer.begun()
                    if capture.returncode != 0:
                        raise Failed(f"exit {capture.returncode}: {said.strip()[-400:]}")
                    line.say(**checker.demand(root / f"image-{turn}", setting, acked, begun))
                    trial.workplace.remove(root / f"image-{turn}")
                if writer.process is None:
                    writer.start()
                writer.wait(draw.randrange(1000, 20_000))
        finally:
            writer.close()
            trial.workplace.remove(root)
    checker.close()
