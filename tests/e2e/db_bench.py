"""Debian's `db_bench` as a writer nobody here wrote, and its sister tools as checkers."""

import re
import shutil
import time
from pathlib import Path

from report import Failed
from workplace import call, need

COMMON = [
    "--write_buffer_size=2097152", "--target_file_size_base=2097152", "--max_bytes_for_level_base=8388608",
    "--compression_type=none", "--value_size=400",
]
#: Name → its flags. All of it stays below 200 MB: a run that has written that much is started anew.
RUNS = {
    "fillseq": ["--benchmarks=fillseq", "--num=420000"],
    "fillseq direct": ["--benchmarks=fillseq", "--num=420000", "--use_direct_io_for_flush_and_compaction=true"],
    "overwrite": ["--benchmarks=overwrite", "--num=60000", "--duration=3600", "--threads=4"],
    "overwrite blobs": ["--benchmarks=overwrite", "--num=60000", "--duration=3600", "--threads=4", "--enable_blob_files=true", "--enable_blob_garbage_collection=true"],
    "overwrite families": ["--benchmarks=overwrite", "--num=60000", "--duration=3600", "--threads=4", "--num_column_families=2"],
    "readwhilewriting": ["--benchmarks=readwhilewriting", "--num=60000", "--duration=3600", "--threads=2"],
}
ORDERED = ("fillseq", "fillseq direct")


class DbBench:
    """One run of db_bench on a database of its own."""

    def __init__(self, workplace, root, name):
        self.workplace, self.root, self.name = workplace, Path(root), name
        self.dir = self.root / "db"
        self.process = None

    @property
    def source(self):
        return f"rocksdb:{self.dir}"

    def start(self):
        self.log = open(self.root / "db_bench.log", "ab")
        self.process = self.workplace.start(
            [need("db_bench"), f"--db={self.dir}", *RUNS[self.name], *COMMON], stdout=self.log, stderr=self.log
        )
        return self

    def wait_tables(self, count, timeout=30):
        """Until that many tables have been made (their numbers grow): memtables were flushed, compactions ran."""
        ends = time.monotonic() + timeout
        while time.monotonic() < ends:
            numbers = [int(path.stem) for path in self.dir.glob("*.sst")] if self.dir.is_dir() else []
            if max(numbers, default=0) >= count:
                return self
            if self.process.poll() is not None:
                raise Failed(f"db_bench ended: {(self.root / 'db_bench.log').read_text(errors='replace')[-300:]}")
            time.sleep(0.01)
        raise Failed(f"db_bench made no {count} tables in {timeout} s")

    def running(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        if self.process is not None:
            self.workplace.kill(self.process)
            self.log.close()
            self.process = None


def live_tables(database):
    """The tables that the database names, by what the engine's own tool says of it."""
    named = re.findall(r"^\S*/(\d+\.sst)$", call("ldb", f"--db={database}", "list_live_files_metadata"), re.MULTILINE)
    if not named:
        raise Failed(f"ldb names no live table of {database}")
    return sorted(Path(database) / name for name in named)


def key_of(number):
    """fillseq's key: the number, big endian, then `0` up to 16 bytes."""
    return f"0x{number:016X}" + "30" * 8


def check(workplace, image, ordered, killed=False):
    """Opens throw-away copies of the image with the engine's own tools. Returns how many rows each family has.

    `killed`: what a killed process left, in which half-written tables may lie that nothing names. An image has none.
    """
    copy = workplace.dir("copy")
    try:
        shutil.copytree(image, copy / "db")
        call("ldb", f"--db={copy / 'db'}", "checkconsistency")
        tables = list((copy / "db").glob("*.sst"))
        if tables and not killed:
            check_sums(copy / "db", len(tables), copy)
        families = re.findall(r"[\w.-]+", call("ldb", f"--db={copy / 'db'}", "list_column_families").partition("{")[2])
        counts = {family: count(copy / "db", family) for family in families}
        if ordered:
            exact_prefix(copy / "db", counts["default"])
        return counts
    finally:
        workplace.remove(copy)


def check_sums(place, tables, cwd):
    """Every block of so many tables, or of one, has the checksum that it was written with. Without the flag nothing is read."""
    said = call("sst_dump", f"--file={place}", "--command=verify", "--verify_checksum", cwd=cwd)
    if said.count("The file is ok") != tables:
        raise Failed(f"sst_dump vouches for {said.count('The file is ok')} of {tables} tables: {said[-400:]}")


def count(database, family):
    said = call("ldb", f"--db={database}", f"--column_family={family}", "dump", "--count_only")
    found = re.search(r"Keys in range: (\d+)", said)
    if not found:
        raise Failed(f"ldb dump counts nothing: {said[-300:]}")
    return int(found.group(1))


def exact_prefix(database, rows):
    """fillseq writes 0, 1, 2, …: as many rows as the largest key says means that none is missing."""
    if rows:
        call("ldb", f"--db={database}", "--hex", "get", key_of(rows - 1))
    try:
        call("ldb", f"--db={database}", "--hex", "get", key_of(rows))
    except Failed as failed:
        if "NotFound" not in str(failed):
            raise
    else:
        raise Failed(f"{rows} rows, but key {rows} is there: an earlier one is missing")
