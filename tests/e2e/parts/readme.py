"""What the README shows, word for word, and what a newcomer tries next."""

import re
import subprocess

from inventory import demand_no_leftovers
from report import Failed
from trial import ROOT

TOUR_DIR = "/tmp/stillframe-tour"
COMMANDS = [
    ["backup"], ["restore"], ["snapshots"], ["show"], ["verify"], ["repo"], ["repo", "init"], ["repo", "info"], ["key"], ["key", "add"],
    ["key", "list"], ["key", "remove"], ["key", "rotate"], ["forget"], ["prune"], ["pin"], ["unpin"], ["check"], ["repair"], ["repair", "index"],
    ["repair", "snapshots"], ["image"], ["image", "create"], ["image", "validate"], ["jobs"], ["jobs", "show"], ["jobs", "cancel"], ["demo"], ["completions"],
]
#: Those that only hold others.
GROUPS = [["repo"], ["key"], ["repair"], ["image"]]


def run(trial):
    program = trial.program()
    with trial.report.check("the README's tour") as line:
        blocks = re.findall(r"^```sh tour\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
        if not blocks:
            raise Failed("the README shows no tour")
        place = trial.workplace.dir("tour")
        # The same words, only the directory is one of this run's own.
        script = "\n".join(blocks).replace(TOUR_DIR, str(place))
        env = {**program.environment(), "PATH": f"{program.path.parent}:{program.environment()['PATH']}"}
        for name in ("STILLFRAME_PASSPHRASE", "STILLFRAME_REPO"):
            env.pop(name, None)
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            raise Failed(f"exit {done.returncode}: {(done.stderr + done.stdout)[-600:]}")
        demand_no_leftovers(place)
        lines = done.stdout.splitlines()
        if "3" not in lines:
            raise Failed(f"the restored database does not count three rows: {lines}")
        if sum("nightly" in line and "sqlite:" in line for line in lines) < 2:
            raise Failed(f"two backups are not listed: {lines}")
        line.say(commands=sum(1 for command in script.splitlines() if command.strip() and not command.startswith("#")))
    for words in [[], *COMMANDS]:
        with trial.report.check(f"help: {' '.join(['stillframe', *words])}"):
            text = program.run(*words, "--help").out
            if "Usage:" not in text:
                raise Failed(f"no usage in {text[:200]!r}")
            if words not in GROUPS and "Examples:" not in text:
                raise Failed("no examples")
    for shell in ("bash", "zsh", "fish"):
        with trial.report.check(f"completions for {shell}"):
            if "stillframe" not in program.run("completions", shell).out:
                raise Failed("an empty script")
    with trial.report.check("completions for bash are a script that bash reads"):
        script = program.run("completions", "bash").out
        if subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode != 0:
            raise Failed("bash refuses it")
