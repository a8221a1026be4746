"""The demonstration: it holds in under a minute, and says so when something is off."""

import time

from program import DAMAGED
from report import Failed


def run(trial):
    place = trial.workplace.dir("demo")
    with trial.report.check("the demonstration holds, in under a minute") as line:
        began = time.monotonic()
        outcome = trial.program(TMPDIR=str(place)).run("demo")
        took = time.monotonic() - began
        if "everything held" not in outcome.text:
            raise Failed(f"it ended with {outcome.text[-200:]!r}")
        if took >= 60:
            raise Failed(f"it took {took:.0f} s")
        demand_empty(place)
        line.say(seconds=round(took, 1))
    with trial.report.check("the demonstration fails when another state comes back") as line:
        outcome = trial.program("sabotage", STILLFRAME_SABOTAGE="demo-first-again", TMPDIR=str(place)).run("demo", expect=DAMAGED)
        if "backup second is not an exact prefix" not in outcome.text:
            raise Failed(f"it says {outcome.text[-300:]!r}")
        demand_empty(place)
        line.say(said=outcome.text.strip().splitlines()[-1][:120].replace(" ", "_"))


def demand_empty(place):
    left = sorted(path.name for path in place.iterdir())
    if left:
        raise Failed(f"left behind: {left}")
