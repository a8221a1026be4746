#!/usr/bin/env python3
"""Runs the end-to-end proof: real engines at full speed, the program as its users call it, every row compared.

    run.py [--part NAME]… [--only SETTING]… [--captures N] [--seed S] [--stillframe PATH] [--long] [--summary FILE]

One line per check; the last line is `N passed, N failed`. Nothing is skipped: what is missing is a failure.
"""

import argparse
import datetime
import importlib
import os
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from report import Report  # noqa: E402
from trial import ROOT, Trial  # noqa: E402
from workplace import Workplace  # noqa: E402

#: In the order in which a run without --part makes them: the cheapest proof that something is wrong comes first.
PARTS = [
    "sharpness", "readme", "year", "demo", "durable", "sqlite", "fjall", "rocksdb", "db_bench", "leveldb", "unchanged_source", "kills", "sweeps", "stopped", "churn", "politeness", "full_disk", "lost_repository", "refusals", "terminal", "sabotage",
]
#: Made by `.ci/build-for-e2e`.
BUILDS = {build: ROOT / "target/e2e" / build / "stillframe" for build in ("plain", "failpoints", "sabotage")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--only", action="append", default=[], metavar="SETTING", help="only these settings of the parts")
    parser.add_argument("--captures", type=int, default=5, help="captures per setting")
    parser.add_argument("--seed", type=int, default=1, help="of all draws")
    parser.add_argument("--long", action="store_true", help="all settings and releases")
    parser.add_argument("--keep", action="store_true", help="keep the working directory")
    parser.add_argument("--summary", metavar="FILE", help="write a summary in Markdown")
    parser.add_argument("--commit", default="not said", help="what the summary says was proven")
    parser.add_argument("--fetch", action="store_true", help="only fetch what the parts need from package registries")
    for build, path in BUILDS.items():
        flag = "--stillframe" if build == "plain" else f"--stillframe-{build}"
        parser.add_argument(flag, dest=build, default=path, help=f"the program ({build} build)")
    wanted = parser.parse_args()
    # An end from outside is an end with a clean-up and a summary that says so.
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGINT, interrupted)

    began = time.monotonic()
    report, workplace = Report(), Workplace(keep=wanted.keep)
    trial = Trial(report, workplace, wanted.seed, wanted.captures, wanted.long, {name: getattr(wanted, name) for name in BUILDS}, wanted.only)
    parts = ["fetch"] if wanted.fetch else wanted.part or PARTS
    seconds = {}
    try:
        for part in parts:
            print(f"== {part}", flush=True)
            started = time.monotonic()
            with whole_part(report, part):
                importlib.import_module(f"parts.{part}").run(trial)
            seconds[part] = time.monotonic() - started
            print(f"      {part}: {seconds[part]:.0f} s", flush=True)
        for name in trial.unmet():
            report.fail(f"--only {name}", "no part that ran has a setting of this name")
    except KeyboardInterrupt:
        report.fail("the run", "interrupted before its end")
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        workplace.close()
        if wanted.summary:
            write_summary(Path(wanted.summary), wanted, report, seconds, time.monotonic() - began)
    report.close()
    sys.exit(1 if report.failed or not report.passed else 0)


def interrupted(number, frame):
    raise KeyboardInterrupt


class whole_part:
    """A part that breaks outside its checks counts as a failure of its own."""

    def __init__(self, report, part):
        self.report, self.part = report, part

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None or isinstance(error, KeyboardInterrupt):
            return False
        with self.report.check(f"{self.part} runs to its end"):
            raise error
        return True


def write_summary(path, wanted, report, seconds, total):
    lines = [
        f"# {' '.join(seconds)}",
        "",
        f"- commit: {wanted.commit}",
        f"- seed: {wanted.seed}",
        f"- captures per setting: {wanted.captures}",
        f"- only: {' '.join(wanted.only) or 'all'}",
        f"- date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores",
        f"- seconds: {total:.0f}",
        f"- result: {report.passed} passed, {report.failed} failed",
        "",
    ]
    rows = report.window_table()
    if rows:
        lines += ["| captured | images | window p50, ms | p99, ms | max, ms | attempts at most |", "|---|---|---|---|---|---|"]
        lines += [f"| {group} | {count} | {p50:.1f} | {p99:.1f} | {longest:.1f} | {attempts} |" for group, count, p50, p99, longest, attempts in rows]
        lines.append("")
    lines += [f"- {note}" for note in report.notes]
    lines += [f"- FAILED: {failure}" for failure in report.failures]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
