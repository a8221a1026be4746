"""Brings what the other parts need from package registries, so that it is known and timed by itself."""

import leveldb
from rocks import ALL_RELEASES, RELEASES, Release


def run(trial):
    for name in ALL_RELEASES if trial.long else RELEASES:
        with trial.report.check(f"rocksdbjni {name}"):
            Release(name, trial.workplace)
    with trial.report.check("plyvel"):
        leveldb.interpreter()
