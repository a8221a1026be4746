"""The README's year of backups, in small: its words at dates that go on, and what must be there at the end of it. The schedules that
`docs/schedule.md` shows, as they are written there."""

import datetime
import json
import random
import re
import shutil
import sqlite3
import subprocess

from program import DAMAGED, OK
from report import Failed
from trial import ROOT
from workplace import call, need

FIRST = datetime.date(2027, 1, 1)
#: What the configuration of the README promises: the newest backups of so many days, weeks and months.
KEPT = (("%Y-%m-%d", 7), ("%G-%V", 5), ("%Y-%m", 12))
#: Where the README has its files; here they are below a directory of this run.
PLACES = ("/etc/stillframe", "/var/lib/node", "/backups", "/restored", "/var/lib/stillframe", "/var/cache/stillframe")


def run(trial):
    year = Year(trial)
    try:
        year.run()
        scheduled(trial, year)
    finally:
        trial.workplace.remove(year.root)


class Year:
    def __init__(self, trial):
        self.trial, self.report, self.root = trial, trial.report, trial.workplace.dir("year")
        page = (ROOT / "README.md").read_text()
        self.blocks = dict(re.findall(r"^```sh year (\w+)\n(.*?)^```", page, re.M | re.S))
        configurations = re.findall(r"^```toml year\n(.*?)^```", page, re.M | re.S)
        if len(configurations) != 1 or len(self.blocks) < 8:
            raise Failed(f"the README shows {len(configurations)} configurations and {sorted(self.blocks)}")
        for place in PLACES:
            self.here(place).parent.mkdir(parents=True, exist_ok=True)
        for place in ("/etc/stillframe", "/var/lib/node", "/var/lib/stillframe", "/var/cache/stillframe", "/bin"):
            self.here(place).mkdir()
        self.config = self.here("/etc/stillframe/stillframe.toml")
        self.config.write_text(self.moved(configurations[0]))
        self.here("/etc/stillframe/passphrase").write_text("of the first year\n")
        self.here("/etc/stillframe/passphrase.new").write_text("of those who stay\n")
        self.mails = self.here("/mails")
        mail = self.here("/bin/mail")
        mail.write_text(f'#!/bin/sh\necho "$*" >> {self.mails}\ncat >> {self.mails}\n')
        mail.chmod(0o755)
        self.here("/bin/stillframe").symlink_to(trial.program().path)
        #: Night of each backup that must be there, by its date.
        self.nights = {}
        self.pinned = set()

    def here(self, place):
        return self.root / place.lstrip("/")

    def moved(self, text):
        """The same words, only the places are below a directory of this run."""
        return re.sub("|".join(PLACES), lambda found: str(self.here(found[0])), text)

    def environment(self):
        path = f"{self.here('/bin')}:/usr/local/bin:/usr/bin:/bin"
        return {
            "PATH": path, "HOME": str(self.root), "STILLFRAME_CONFIG": str(self.config), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "TZ": "UTC",
            "STILLFRAME_STATE_DIR": str(self.here("/var/lib/stillframe")), "STILLFRAME_CACHE_DIR": str(self.here("/var/cache/stillframe")),
        }

    def say(self, day, block, expect=()):
        """What the README says there, line by line, on that day. `expect`: what the first lines end with, where that is not 0."""
        said = []
        for number, words in enumerate(self.moved(self.blocks[block]).splitlines()):
            wanted = expect[number] if number < len(expect) else OK
            wanted = wanted if isinstance(wanted, tuple) else (wanted,)
            done = subprocess.run(
                [need("faketime"), f"{day} 03:00:00", "bash", "-euo", "pipefail", "-c", words], env=self.environment(),
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
            )
            if done.returncode not in wanted:
                raise Failed(f"{day}: `{words}`: exit {done.returncode}, expected {wanted}: {(done.stderr + done.stdout)[-600:]}")
            said.append(done.stdout)
        return "\n".join(said)

    # ----------------------------------------------------------------------------------------------------------- the year

    def run(self):
        days = self.days()
        with self.report.check("year: the first day"):
            self.change(0)
            self.say(days[0], "first")
            self.nights[days[0]] = 0
        with self.report.check("year: every night, week and month") as line:
            for night, day in enumerate(days[1:], 1):
                self.night(night, day, days[night - 1])
            line.say(nights=len(days), kept=len(self.listed()), last=days[-1])
        today = days[-1]
        with self.report.check("year: what is kept is what the rules promise, and is what it was") as line:
            line.say(backups=len(self.demand_kept()))
        with self.report.check("year: somebody leaves"):
            self.say(today, "leaves")
            if "of the first year" in self.here("/etc/stillframe/passphrase").read_text():
                raise Failed("the passphrase is still the old one")
            self.demand_kept()
        with self.report.check("year: a disk rots") as line:
            self.rot()
            # The new backup is saved; where an older one cannot be walked any more, nothing can be pruned, and it ends as the check.
            self.say(today, "rots", expect=(DAMAGED, (OK, DAMAGED)))
            self.demand_restored("latest", len(days) - 1)
            line.say(backups=len(self.listed()))
        with self.report.check("year: the machine is gone"):
            for place in ("/var/lib/node", "/var/lib/stillframe", "/var/cache/stillframe"):
                shutil.rmtree(self.here(place))
            self.config.unlink()
            self.config.touch()
            self.say(today, "gone")
            self.demand_night(self.here("/restored"), len(days) - 1)

    def days(self):
        """Every day of the year in .ci/long; otherwise the first days of it one by one, then every eleventh."""
        year = [FIRST + datetime.timedelta(days=number) for number in range(366)]
        return year if self.trial.long else year[:10] + year[10::11]

    def night(self, night, day, before):
        self.change(night)
        if night == 5:
            self.fail(day)
        self.say(day, "night")
        self.nights[day] = night
        if day.isocalendar().week != before.isocalendar().week and (self.trial.long or night < 20):
            self.say(day, "week")
        if day.month != before.month:
            said = self.say(day, "month")
            if f"sound at level open on {day}" not in said:
                raise Failed(f"{day}: the list does not say that the newest backup was looked at: {said[-400:]}")
        if night == 8:
            self.say(day, "upgrade")
            self.pinned.add(day)
        self.nights = {kept: self.nights[kept] for kept in expected(self.nights) | self.pinned}

    def fail(self, day):
        """A night on which a database is not there: somebody is told, and all that was there stays."""
        database, before = self.here("/var/lib/node/db"), self.listed()
        database.rename(database.with_name("gone"))
        self.say(day, "night", expect=(20,))
        database.with_name("gone").rename(database)
        text = self.mails.read_text()
        first, outcome = text.split("\n", 1)
        if "backup failed" not in first or json.loads(outcome)["exit_code"] != 20:
            raise Failed(f"what was sent is {text!r}")
        if self.listed() != before:
            raise Failed("a night that failed changed what is listed")

    def change(self, night):
        """Both databases say which night it is, and change besides."""
        node = self.here("/var/lib/node")
        if not night:
            call("db_bench", "--benchmarks=fillrandom", "--num=20000", f"--db={node / 'db'}")
        call("ldb", f"--db={node / 'db'}", "put", "night", str(night))
        call("ldb", f"--db={node / 'db'}", "put", f"night-{night:03}", random.Random(night).randbytes(5000).hex())
        with sqlite3.connect(node / "app.db") as database:
            database.execute("PRAGMA journal_mode=wal")
            database.execute("CREATE TABLE IF NOT EXISTS nights (night INTEGER PRIMARY KEY)")
            database.execute("INSERT INTO nights VALUES (?)", (night,))
        database.close()

    def demand_night(self, restored, night):
        opened = sqlite3.connect(restored / "app.db" / "app.db")
        found = opened.execute("SELECT max(night), count(*) FROM nights").fetchone()
        opened.close()
        if found != (night, night + 1):
            raise Failed(f"restored of SQLite is night {found}, not {night}")
        found = call("ldb", f"--db={restored / 'db'}", "get", "night").strip()
        if found != str(night):
            raise Failed(f"restored of RocksDB is night {found}, not {night}")

    def listed(self):
        """Ids by date."""
        words = ["stillframe", "snapshots", "--json", "-r", self.here("/backups/node")]
        done = subprocess.run(words, env=self.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise Failed(f"snapshots: exit {done.returncode}: {done.stderr[-400:]}")
        found = [json.loads(line) for line in done.stdout.splitlines()]
        return {datetime.date.fromisoformat(entry["created"][:10]): entry["id"] for entry in found if entry["type"] == "snapshot"}

    def demand_kept(self):
        listed = self.listed()
        if sorted(listed) != sorted(self.nights):
            raise Failed(f"kept are {[str(day) for day in sorted(listed)]}, not {[str(day) for day in sorted(self.nights)]}")
        for day, backup in listed.items():
            self.demand_restored(backup, self.nights[day])
        return listed

    def demand_restored(self, backup, night):
        words = ["stillframe", "restore", backup, "-r", self.here("/backups/node"), "--to", self.here("/looked-at")]
        subprocess.run(words, env=self.environment(), check=True, capture_output=True, timeout=60)
        self.demand_night(self.here("/looked-at"), night)
        shutil.rmtree(self.here("/looked-at"))

    def rot(self):
        """The largest pack is not what was written, in many places."""
        packs = self.here("/backups/node/packs").rglob("*")
        largest = max((path for path in packs if path.is_file()), key=lambda path: path.stat().st_size)
        largest.chmod(0o600)
        with open(largest, "r+b") as file:
            for place in range(100, largest.stat().st_size, 2000):
                file.seek(place)
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes([byte ^ 0x10]))


def expected(days):
    """What the rules keep, by the calendar."""
    kept = set()
    for period, count in KEPT:
        newest = {}
        for day in sorted(days):
            newest[day.strftime(period)] = day
        kept |= set(sorted(newest.values())[-count:])
    return kept


# ------------------------------------------------------------------------------------------------------------ the schedule


def scheduled(trial, year):
    page = (ROOT / "docs/schedule.md").read_text()
    units = dict(re.findall(r"^`/etc/systemd/system/([^`]+)`\n\n```ini\n(.*?)^```", page, re.M | re.S))
    crontab = re.findall(r"^```cron\n(.*?)^```", page, re.M | re.S)
    repo, node = year.root / "backups" / "scheduled", year.here("/var/lib/node")
    node.mkdir(exist_ok=True)
    for place in ("/var/lib/stillframe", "/var/cache/stillframe"):
        year.here(place).mkdir(exist_ok=True)
    (node / "file").write_text("of the node\n")
    passphrase = year.here("/etc/stillframe/passphrase")
    year.config.write_text(f'repo = "{repo}"\npassphrase-file = "{passphrase}"\n[backup]\nsources = ["files:{node}"]\nkeep-daily = 7\nprune = true\n')
    subprocess.run(["stillframe", "repo", "init", repo], env=year.environment(), check=True, capture_output=True)
    with trial.report.check("schedule: systemd takes the units") as line:
        if sorted(units) != ["stillframe@.service", "stillframe@backup.timer", "stillframe@check.timer"]:
            raise Failed(f"the page shows {sorted(units)}")
        place = year.root / "units"
        place.mkdir()
        for name, text in units.items():
            (place / name).write_text(text.replace("/usr/local/bin/stillframe", str(trial.program().path)))
        for instance in ("backup", "check"):
            shutil.copy(place / "stillframe@.service", place / f"stillframe@{instance}.service")
        names = [place / name for name in ("stillframe@backup.service", "stillframe@backup.timer", "stillframe@check.service", "stillframe@check.timer")]
        done = subprocess.run([need("systemd-analyze"), "verify", *names], capture_output=True, text=True)
        if done.returncode != 0 or "stillframe" in done.stderr:
            raise Failed(f"exit {done.returncode}: {done.stderr[-500:]}")
        for timer in ("backup", "check"):
            (when,) = re.findall(r"^OnCalendar=(.*)$", units[f"stillframe@{timer}.timer"], re.M)
            call("systemd-analyze", "calendar", when)
        line.say(units=len(units))
    for instance in ("backup", "check"):
        with trial.report.check(f"schedule: what the service of {instance} starts"):
            service = year.moved(units["stillframe@.service"])
            (words,) = re.findall(r"^ExecStart=(.*)$", service, re.M)
            (environment,) = re.findall(r"^Environment=(.*)$", service, re.M)
            words = words.replace("/usr/local/bin/stillframe", str(trial.program().path)).replace("%i", instance)
            start(words.split(), {**dict(pair.split("=", 1) for pair in environment.split()), "PATH": "/usr/bin:/bin"}, year)
    (table,) = crontab
    (path,) = re.findall(r"^PATH=(.*)$", table, re.M)
    lines = [line.split(None, 6) for line in table.splitlines() if re.match(r"[0-9*]", line)]
    if len(lines) != 2:
        raise Failed(f"the page shows {len(lines)} lines for cron")
    for *when, user, command in lines:
        with trial.report.check(f"schedule: cron's `{command}`") as line:
            if len(when) != 5 or user != "root":
                raise Failed(f"{when} {user}")
            said = start(["sh", "-c", command], {"PATH": f"{year.here('/bin')}:{path}", "LOGNAME": "root", "SHELL": "/bin/sh", "HOME": str(year.root)}, year)
            line.say(said=repr(said))
    with trial.report.check("schedule: each made its backup"):
        listed = subprocess.run(["stillframe", "snapshots", "--json"], env=year.environment(), check=True, capture_output=True, text=True).stdout
        # The two have their state in different places, so neither forgets what the other made.
        if listed.count('"type":"snapshot"') != 2:
            raise Failed(f"listed are {listed}")


def start(words, environment, year):
    """With nothing in the environment but what is given, and where the configuration is."""
    environment = {**environment, "STILLFRAME_CONFIG": str(year.config)}
    done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise Failed(f"exit {done.returncode}: {(done.stderr + done.stdout)[-500:]}")
    return done.stderr + done.stdout
