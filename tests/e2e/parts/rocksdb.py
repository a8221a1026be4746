"""Captures of RocksDB databases that rocksdbjni writes to at full speed, opened by the release that wrote them."""

import shutil
import struct

from capturing import demand_inside, demand_weakening, kept_image, through_repository
from report import Failed
from rocks import ALL_RELEASES, NEWEST, RELEASES, Release, RocksChecker, RocksWriter, Setting, settings_for


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
    if not trial.only or trial.wants("damaged-logs"):
        damaged_logs(trial)


def captures(trial, release, checker, setting):
    group = f"rocksdb {setting.name} {release.name}"
    draw, program = trial.random(group), trial.program()
    if setting.strangers:
        program = program.that_lists_slowly(2)
    root = trial.workplace.dir(f"{setting.name}-{release.name}")
    writer = RocksWriter(release, setting, root)
    try:
        with trial.report.check(f"{group}: writer"):
            writer.start().wait(setting.first_commits)
        if writer.process is None:
            return
        for turn in range(trial.captures):
            # One in five takes the long way through a repository.
            stored = turn % 5 == 4
            with trial.report.check(f"{group} {turn + 1} {'backup' if stored else 'image'}") as line:
                one(trial, program, checker, writer, root, turn, stored, line, group)
            writer.wait(draw.randrange(1, setting.commits_between))
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
        # Politely, and as fast as it goes.
        fast = ["--fast"] if turn % 2 else []
        through_repository(program, writer.source, root / "repo", target, [*flags, *fast])
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


def damaged_logs(trial):
    """One bit is another in a recycled log: whatever is captured of it, an engine must not go on over the gap."""
    release = Release(NEWEST, trial.workplace)
    checker, program, root = RocksChecker(release), trial.program(), trial.workplace.dir("damaged-logs")
    # Memtables wait for each other, so that several logs are needed.
    setting = Setting("recycled", {"recycle": 4, "merge": 6, "families": 1, "memtable": 400_000}, {"pace": 2000})
    writer = RocksWriter(release, setting, root)
    logs, image = [], root / "whole"
    try:
        with trial.report.check("several recycled logs are needed") as line:
            for turn in range(30):
                writer.start().wait(2000 + 300 * turn)
                writer.kill()
                trial.workplace.remove(image)
                snapshot = kept_image(program, writer.source, image)
                logs = sorted(file["path"] for file in snapshot["files"] if file["role"] == "log" and file["size"] > 50_000)
                if len(logs) >= 3:
                    break
            else:
                raise Failed("never so many that one could be damaged")
            acked, begun = writer.acked(), writer.begun()
            line.say(logs=len(logs), turns=turn + 1, **checker.demand(image, setting, acked, begun))
        draw = trial.random("damaged logs")
        for name in logs[:3]:
            records = records_of(writer.dir / name)
            last, middle = records[-1], records[len(records) // 2]
            behind_padding = [at for at in records if at > 0 and at % 32_768 == 0][-1:]
            places = [(f"byte {byte} of the last record", last + byte) for byte in range(11)]
            places += [(f"a byte of {what}", at + draw.randrange(11, 40)) for what, at in (("the first record", 0), ("a record in the middle", middle), ("the last record", last))]
            places += [(f"byte {byte} of a block's first record", at + byte) for at in behind_padding for byte in (0, 4, 6, 20)]
            for what, at in places:
                damaged(trial, f"{what} in {name}", name, at, draw.randrange(8), writer, checker, setting, begun)
            damaged(trial, f"cut in the last record of {name}", name, last + draw.randrange(1, 11), None, writer, checker, setting, begun)
    finally:
        writer.close()
        checker.close()
        trial.workplace.remove(root)


def damaged(trial, what, name, at, bit, writer, checker, setting, begun):
    """The engine makes the same of the image as of the source: an exact prefix, a refusal, or a gap that it does not see itself."""
    with trial.report.check(f"damaged log: {what}") as line:
        database, image = writer.root / "damaged", writer.root / "image"
        try:
            shutil.copytree(writer.dir, database)
            with open(database / name, "r+b") as file:
                if bit is None:
                    file.truncate(at)
                else:
                    file.seek(at)
                    byte = file.read(1)[0]
                    file.seek(at)
                    file.write(bytes([byte ^ 1 << bit]))
            trial.program().run("image", "create", f"rocksdb:{database}", "--to", image, "--copy")
            of_source, of_image = (checker.verdict(place, setting, [-1], begun).replace(str(place), "") for place in (database, image))
            if not of_source.startswith(("ok ", "wrong ")):
                raise Failed(of_source)
            if of_source != of_image and not (of_source.startswith("wrong ") and of_image.startswith("ok ")):
                raise Failed(f"source: {of_source}; image: {of_image}")
            line.say(engine=of_image[:80].replace(" ", "_"), source=of_source[:60].replace(" ", "_"))
        finally:
            trial.workplace.remove(database)
            trial.workplace.remove(image)


def records_of(log):
    """Where the physical records of a recycled log begin, by its own number."""
    data, number, at, found = log.read_bytes(), int(log.stem), 0, []
    while at + 11 <= len(data):
        if 32_768 - at % 32_768 < 11:
            at += 32_768 - at % 32_768
            continue
        length, kind, own = struct.unpack_from("<HBI", data, at + 4)
        if kind == 0 and length == 0:
            at += 32_768 - at % 32_768
        elif kind in (5, 6, 7, 8) and own == number:
            found.append(at)
            at += 11 + length
        elif kind == 9:
            at += 7 + length
        else:
            break
    return found
