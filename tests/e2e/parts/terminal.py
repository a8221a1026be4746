"""What only a terminal shows: the prompt and its echo, the bar, and terminals that cannot draw one."""

import os
import pty
import select
import signal
import subprocess
import termios
import time

from program import CANCELLED, OK, PASSPHRASE, WRONG_PASSPHRASE
from report import Failed

MEBI = 1 << 20


class Screen:
    """The program on a terminal of its own."""

    def __init__(self, trial, *words, term="xterm", passphrase=None, cwd=None):
        self.ours, self.its = pty.openpty()
        program = trial.program(TERM=term)
        environment = program.environment()
        del environment["STILLFRAME_PASSPHRASE"]
        if passphrase:
            environment["STILLFRAME_PASSPHRASE"] = passphrase
        # A session of its own, so that this is its controlling terminal: keys become signals there.
        self.process = subprocess.Popen(
            program.command(words), env=environment, stdin=self.its, stdout=self.its, stderr=self.its,
            cwd=cwd, start_new_session=True, preexec_fn=lambda: __import__("fcntl").ioctl(0, termios.TIOCSCTTY, 0),
        )
        trial.workplace.processes.append(self.process)
        self.trial, self.shown = trial, ""

    def echoes(self):
        return bool(termios.tcgetattr(self.its)[3] & termios.ECHO)

    def read(self, seconds):
        if select.select([self.ours], [], [], seconds)[0]:
            self.shown += os.read(self.ours, 65536).decode(errors="replace")

    def wait_for(self, text, timeout=60):
        ends = time.monotonic() + timeout
        while text not in self.shown:
            self.read(0.1)
            if time.monotonic() > ends:
                raise Failed(f"{text!r} was not shown in {timeout} s: {self.shown[-400:]!r}")

    def type(self, keys):
        # Between the prompt and its reading the terminal is set up.
        ends = time.monotonic() + 10
        while self.echoes():
            if time.monotonic() > ends:
                raise Failed("what is typed would be shown")
            time.sleep(0.01)
        os.write(self.ours, keys)

    def end(self, expect, timeout=60):
        ends = time.monotonic() + timeout
        while self.process.poll() is None:
            self.read(0.1)
            if time.monotonic() > ends:
                raise Failed(f"it did not end in {timeout} s: {self.shown[-400:]!r}")
        self.read(0.1)
        echoes = self.echoes()
        self.trial.workplace.processes.remove(self.process)
        os.close(self.ours)
        os.close(self.its)
        if self.process.returncode != expect:
            raise Failed(f"exit {self.process.returncode}, expected {expect}: {self.shown[-400:]!r}")
        if not echoes:
            raise Failed("the terminal does not show any more what is typed")
        return self.shown


def run(trial):
    root = trial.workplace.dir("terminal")
    program = trial.program()
    repo, source = root / "repo", root / "source"
    program.init(repo)
    source.mkdir()
    (source / "data").write_bytes(trial.random("terminal").randbytes(20 * MEBI))
    backup = ("backup", f"files:{source}", "-r", repo, "--reserve", "0")
    program.run(*backup)

    with trial.report.check("prompt: the passphrase opens the repository and is not shown"):
        screen = Screen(trial, "snapshots", "-r", repo)
        screen.wait_for("Passphrase:")
        screen.type(PASSPHRASE.encode() + b"\r")
        if PASSPHRASE in screen.end(OK) or "source" not in screen.shown:
            raise Failed(f"shown: {screen.shown!r}")

    for name, stop in (
        ("Ctrl-C", lambda screen: screen.type(b"\x03")),
        ("SIGTERM", lambda screen: screen.process.send_signal(signal.SIGTERM)),
    ):
        for words in (("snapshots", "-r", repo), backup):
            with trial.report.check(f"prompt of {words[0]}: {name} ends it, and the terminal shows again what is typed"):
                screen = Screen(trial, *words)
                screen.wait_for("Passphrase:")
                while screen.echoes():
                    time.sleep(0.01)
                stop(screen)
                screen.end(CANCELLED)

    with trial.report.check("prompt: a new passphrase is asked for twice, and two that differ make nothing"):
        screen = Screen(trial, "repo", "init", root / "new")
        screen.wait_for("New passphrase:")
        screen.type(b"first\r")
        screen.wait_for("Again:")
        screen.type(b"second\r")
        screen.end(WRONG_PASSPHRASE)
        if (root / "new").exists():
            raise Failed("a repository was made")

    with trial.report.check("terminal: a bar while there is something to do, and whole lines around it"):
        screen = Screen(trial, *backup, "--limit-bandwidth", "10MiB", "--anew", passphrase=PASSPHRASE)
        shown = screen.end(OK)
        if "%" not in shown or "\x1b[" not in shown or "warning: " not in shown or "saved in" not in shown:
            raise Failed(f"shown: {shown[-600:]!r}")

    with trial.report.check("terminal that draws nothing: plain lines, every warning, no codes"):
        screen = Screen(trial, *backup, "--limit-bandwidth", "2MiB", "--anew", term="dumb", passphrase=PASSPHRASE)
        shown = screen.end(OK)
        if "\x1b" in shown or any(line not in shown for line in ("warning: ", "captured ", "transferring: ", "saved in")):
            raise Failed(f"shown: {shown[-600:]!r}")

    with trial.report.check("Ctrl-C during a backup: it ends cleanly and leaves nothing") as line:
        before = len(program.backups(repo))
        screen = Screen(trial, *backup, "--limit-bandwidth", "2MiB", "--anew", passphrase=PASSPHRASE)
        screen.wait_for("captured ")
        os.write(screen.ours, b"\x03")
        screen.wait_for("cancelling")
        screen.end(CANCELLED)
        if len(program.backups(repo)) != before:
            raise Failed("there is a backup more")
        line.say(backups=before)
