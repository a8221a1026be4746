"""Writers and checkers on RocksDB: rocksdbjni of several releases, with the settings that a capture may meet."""

import os
import shutil
import subprocess
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from ledger import Ledger
from report import Failed, Missing
from workplace import call, need

CACHE = Path(__file__).resolve().parents[2] / ".ci" / "cache"
SOURCE = Path(__file__).resolve().parent / "java" / "RocksOracle.java"

RELEASES = ("6.29.5", "8.11.4", "11.8.1")
ALL_RELEASES = ("6.29.5", "7.10.2", "8.11.4", "9.10.0", "10.2.1", "11.8.1")
NEWEST = RELEASES[-1]

CHURN_THREAD = 8


def version(release):
    return tuple(int(part) for part in release.split("."))


@dataclass(frozen=True)
class Setting:
    """One way of writing; `options` go to the writer and the checker alike, `writer` to the writer only."""

    name: str
    options: dict = field(default_factory=dict)
    writer: dict = field(default_factory=dict)
    since: str = "6.29.5"
    #: What must be named among the weakening settings of the image.
    weakening: str = ""
    #: Logs, first and second database directory, directory of family1: made outside the database directory.
    wal_dir: bool = False
    db_paths: bool = False
    cf_paths: bool = False
    #: Commits before the first capture; between two there are up to a twentieth of that. 0: as many as small values allow.
    commits: int = 0
    #: Files of somebody else in the database directory: listing it takes many calls.
    strangers: int = 0
    #: In .ci/long only.
    long: bool = False

    @property
    def threads(self):
        return int(self.options.get("threads", 1))

    @property
    def first_commits(self):
        return self.commits or (15_000 if self.writer.get("pace") else 60_000)

    @property
    def commits_between(self):
        return self.commits // 20 if self.commits else 3000

    def fits(self, release):
        return version(release) >= version(self.since)


SETTINGS = {
    setting.name: setting
    for setting in [
        Setting("default"),
        Setting("threads", {"threads": 4, "families": 2, "slots": 8000}),
        Setting("atomic-flush", {"atomic_flush": "true"}),
        Setting("transactions", {"transactions": "true", "two_pc": "true"}),
        Setting("ingestion", {"ingestion": "true"}),
        Setting("recycled", {"recycle": 4}, since="9.1.0"),
        Setting(
            "slow-deletion", {"table": 500_000},
            {"delete_rate": 1_000_000_000, "delete_chunk": 100_000, "pace": 6000},
        ),
        Setting("blobs", {"blobs": "true"}),
        Setting("wal-dir", wal_dir=True),
        Setting("db-paths", db_paths=True),
        Setting("cf-paths", cf_paths=True),
        Setting("manifest-rollover", {"manifest_bytes": 2000}),
        Setting("family-churn", {"churn": "true"}),
        Setting("manual-wal-flush", {"manual_wal_flush": "true"}, weakening="manual_wal_flush"),
        Setting("rare-families", {"strides": "1,500,1000", "max_total_wal": 8_000_000}),
        # A listing of the directory is no single moment, and logs come and go meanwhile.
        Setting("crowded", {"memtable": 100_000, "merge": 60, "families": 1}, {"pace": 15_000}, strangers=20_000),
        Setting("tiny-memtables", {"memtable": 400_000}, long=True),
        Setting("log-archive", {"wal_ttl": 2}, {"pace": 20_000}, long=True),
        Setting("recycled-families", {"recycle": 4, "strides": "1,7,300", "max_total_wal": 8_000_000}, since="9.1.0", long=True),
        Setting("blobs-atomic-slow", {"blobs": "true", "atomic_flush": "true"}, {"delete_rate": 1_000_000_000}, long=True),
        Setting("log-compression", {"db.wal_compression": "kZSTD"}, since="8.11.4", long=True),
        Setting("tracked-logs", {"db.track_and_verify_wals_in_manifest": "true"}, since="7.10.2", long=True),
        Setting("verified-logs", {"db.track_and_verify_wals": "true"}, since="11.8.1", long=True),
        Setting("precreated-logs", {"db.async_wal_precreate": "true"}, since="11.8.1", long=True),
        # Behind the log in use lies an empty one, and its last record is often half written.
        Setting(
            "precreated-absolute",
            {"db.async_wal_precreate": "true", "recovery": "AbsoluteConsistency", "value": 1_500_000, "slots": 8, "families": 2, "memtable": 12_000_000},
            since="11.8.1", commits=100, long=True,
        ),
        # Logs change often and the MANIFEST seldom: the next log is there before it is used, memtables wait to be flushed together.
        Setting("held-memtables", {"db.async_wal_precreate": "true", "merge": 4, "families": 2}, {"pace": 10_000}, since="11.8.1", long=True),
        Setting("two-queues", {"db.two_write_queues": "true"}, long=True),
        Setting("unordered", {"db.unordered_write": "true"}, long=True),
        Setting("pipelined", {"db.enable_pipelined_write": "true", "threads": 2, "slots": 8000}, long=True),
        Setting("mmap", {"db.allow_mmap_writes": "true"}, long=True),
        Setting("direct-io", {"db.use_direct_io_for_flush_and_compaction": "true"}, long=True),
        Setting("absolute-recovery", {"recovery": "AbsoluteConsistency", "value": 5000, "slots": 1500}, long=True),
    ]
}


def settings_for(release, long=False):
    return [setting for setting in SETTINGS.values() if setting.fits(release) and (long or not setting.long)]


class Release:
    """One release of rocksdbjni: its jar from Maven, its native library beside it, our program compiled against it."""

    def __init__(self, name, workplace):
        self.name = name
        self.workplace = workplace
        self.jar = CACHE / "jars" / f"rocksdbjni-{name}.jar"
        if not self.jar.is_file():
            self.jar.parent.mkdir(parents=True, exist_ok=True)
            call("mvn", "-q", "-B", "dependency:copy", f"-Dartifact=org.rocksdb:rocksdbjni:{name}", f"-DoutputDirectory={self.jar.parent}")
            if not self.jar.is_file():
                raise Missing(f"Maven did not bring {self.jar.name}")
        self.native = CACHE / "native" / name
        if not (self.native / "librocksdbjni.so").is_file():
            self.native.mkdir(parents=True, exist_ok=True)
            machine = {"x86_64": "linux64", "aarch64": "linux-aarch64"}.get(os.uname().machine)
            part = self.native / f"part.{os.getpid()}"
            with zipfile.ZipFile(self.jar) as jar, jar.open(f"librocksdbjni-{machine}.so") as packed, open(part, "wb") as out:
                shutil.copyfileobj(packed, out)
            part.rename(self.native / "librocksdbjni.so")
        self.classes = workplace.root / f"classes-{name}"
        if not self.classes.is_dir():
            call("javac", "-cp", self.jar, "-d", self.classes, SOURCE)

    def java(self, *words):
        return [
            need("java"), "-Xmx768m", "-XX:TieredStopAtLevel=4", f"-Djava.io.tmpdir={self.workplace.root}",
            f"-Djava.library.path={self.native}", "-cp", f"{self.jar}:{self.classes}", "RocksOracle", *map(str, words),
        ]


def words_of(options):
    return [f"{name}={value}" for name, value in options.items()]


class RocksWriter:
    """A database that is being written to, by a process of its own."""

    def __init__(self, release, setting, root, **more):
        self.release, self.setting, self.root = release, setting, Path(root)
        self.dir = self.root / "db"
        self.ledger_path = self.root / "ledger"
        self.ledger = Ledger(self.ledger_path)
        self.more = more
        self.process = None
        self.paths = {}
        if setting.wal_dir:
            self.paths["wal_dir"] = self.root / "logs"
        if setting.db_paths:
            self.paths["db_paths"] = f"{self.root / 'db'}@3000000,{self.root / 'slow'}"
        if setting.cf_paths:
            self.paths["cf_paths.family1"] = self.root / "own"
        if setting.strangers:
            self.dir.mkdir()
            for number in range(setting.strangers):
                (self.dir / f"note-{number:05}").touch()
        for made in ("logs", "slow", "own"):
            if any(made in str(path) for path in self.paths.values()):
                (self.root / made).mkdir(exist_ok=True)

    @property
    def workplace(self):
        return self.release.workplace

    @property
    def source(self):
        return f"rocksdb:{self.dir}"

    def flags(self, told=True):
        """What the program must be told of this database. `told`: also what it could find out by itself."""
        flags = []
        if told and self.setting.wal_dir:
            flags += ["--wal-dir", self.root / "logs"]
        if told and self.setting.db_paths:
            flags += ["--db-path", self.dir, "--db-path", self.root / "slow"]
        if self.setting.cf_paths:
            flags += ["--cf-path", f"family1={self.root / 'own'}"]
        return flags

    def directories(self):
        """Every directory of the database."""
        return [self.dir] + [self.root / made for made in ("logs", "slow", "own") if (self.root / made).is_dir()]

    def start(self, **more):
        options = {**self.setting.options, **self.setting.writer, **self.paths, **self.more, **more}
        self.log = open(self.root / "writer.log", "ab")
        self.process = self.workplace.start(
            self.release.java("write", self.dir, self.ledger_path, *words_of(options)), stdout=self.log, stderr=self.log
        )
        return self

    def finish(self, commits):
        """Writes that many commits per thread and closes the database as a program does."""
        self.start(limit=commits)
        if self.process.wait(timeout=300) != 0:
            raise Failed(f"the writer failed: {self.said()}")
        self.kill()
        return self

    def wait(self, commits, timeout=60):
        """Until thread 0 was acknowledged that many commits more."""
        target, ends = max(0, self.ledger.acked()[0]) + commits, time.monotonic() + timeout
        while self.ledger.acked()[0] < target:
            self.demand_alive()
            if time.monotonic() > ends:
                raise Failed(f"the writer made no {commits} commits in {timeout} s: {self.said()}")
            time.sleep(0.01)
        return self

    def demand_alive(self):
        if self.process.poll() is not None:
            raise Failed(f"the writer died with {self.process.returncode}: {self.said()}")

    def said(self):
        return (self.root / "writer.log").read_text(errors="replace")[-600:]

    def kill(self):
        if self.process is not None:
            self.workplace.kill(self.process)
            self.log.close()
            self.process = None

    def close(self):
        self.kill()
        self.ledger.close()

    # The churn of families has its own line of the ledger, behind those of the threads.
    def lines(self):
        return (*range(self.setting.threads), CHURN_THREAD)

    def acked(self):
        return self.ledger.acked(self.lines())

    def begun(self):
        return self.ledger.begun(self.lines())


class RocksChecker:
    """Opens copies with one release and compares every row. One process serves many checks."""

    def __init__(self, release):
        self.release = release
        self.process = None

    def _ask(self, line):
        if self.process is None or self.process.poll() is not None:
            self.process = self.release.workplace.start(
                self.release.java("check"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                stderr=open(self.release.workplace.root / f"checker-{self.release.name}.log", "a"),
            )
            if self.process.stdout.readline().strip() != "ready":
                raise Failed(f"the checker for {self.release.name} did not start")
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer:
            code = self.process.wait()
            self.process = None
            return f"wrong the engine died over it (exit {code})"
        return answer

    def verdict(self, image, setting, acked, begun):
        """`ok …` or `wrong …`, for a throw-away copy of the image: opening changes it."""
        copy = self.release.workplace.dir("copy")
        try:
            target = copy / "db"
            shutil.copytree(image, target, symlinks=True)
            options = {**setting.options, **placed(target, setting)}
            if setting.name == "ingestion" and version(self.release.name) < (7,):
                options["skip_verify"] = "true"
            return self._ask("\t".join([str(target), ",".join(map(str, acked)), ",".join(map(str, begun)), *words_of(options)]))
        finally:
            self.release.workplace.remove(copy)

    def demand(self, image, setting, acked, begun):
        answer = self.verdict(image, setting, acked, begun)
        if not answer.startswith("ok "):
            raise Failed(answer)
        return dict(word.split("=", 1) for word in answer[3:].split())

    def close(self):
        if self.process is not None:
            self.release.workplace.kill(self.process)
            self.process = None


def placed(image, setting):
    """Where the parts of an image lie that were outside the database directory: in named directories below it."""
    places = {}
    if setting.wal_dir and (image / "wal_dir").is_dir():
        places["wal_dir"] = image / "wal_dir"
    if setting.db_paths:
        found = [image / f"db_path-{n}" if (image / f"db_path-{n}").is_dir() else image for n in range(2)]
        places["db_paths"] = f"{found[0]}@3000000,{found[1]}"
    if setting.cf_paths:
        own = image / "cf_path-family1-0"
        places["cf_paths.family1"] = own if own.is_dir() else image
    return places
