"""What every part of the proof is given."""

import random
from dataclasses import dataclass, field
from pathlib import Path

from program import Program
from report import Report
from workplace import Workplace


#: The checkout.
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Trial:
    report: Report
    workplace: Workplace
    seed: int
    #: Captures per setting.
    captures: int
    #: All settings and releases, as .ci/long wants them.
    long: bool
    #: Paths of the builds: "plain", "failpoints", "sabotage".
    builds: dict
    #: Narrows the settings of a part, by name; empty: all of them.
    only: list = field(default_factory=list)
    #: Those of `only` that a part asked for.
    met: set = field(default_factory=set)

    def random(self, name):
        """A generator of its own for each purpose, so that one part's draws do not move another's."""
        return random.Random(f"{self.seed}/{name}")

    def program(self, build="plain", **env):
        return Program(self.builds[build], self.workplace, env)

    def wants(self, name):
        if name in self.only:
            self.met.add(name)
        return not self.only or name in self.only

    def unmet(self):
        """Names in `only` that mean nothing to the parts that ran: mistyped, or not of this release."""
        return [name for name in self.only if name not in self.met]
