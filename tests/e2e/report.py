"""One line per check, and the count at the end."""

import contextlib
import sys
import time
import traceback


class Failed(Exception):
    """A check that did not hold; the text says what was expected and what was found."""


class Missing(Failed):
    """An outside program, library or right that the proof needs is not there. Never a reason to skip."""


class Line:
    """What a check that holds has to say for itself."""

    def __init__(self):
        self.parts = []

    def say(self, **facts):
        self.parts += [f"{name}={value}" for name, value in facts.items()]


class Report:
    def __init__(self, out=sys.stdout):
        self.out = out
        self.passed = 0
        self.failed = 0
        self.failures = []
        self.windows_us = {}
        self.attempts = {}
        self.notes = []

    @contextlib.contextmanager
    def check(self, name):
        """Prints the outcome of the block under `name`. A failure is printed and counted; the run goes on."""
        line, began = Line(), time.monotonic()
        try:
            yield line
        except KeyboardInterrupt:
            raise
        except Failed as failed:
            self.fail(name, str(failed), time.monotonic() - began)
        except Exception as broken:  # the check itself is broken: just as loud
            self.fail(name, f"the check broke: {broken!r}", time.monotonic() - began)
            traceback.print_exc()
        else:
            self.passed += 1
            facts = " ".join(line.parts)
            print(f"ok    {name}  {facts}  ({time.monotonic() - began:.1f} s)", file=self.out, flush=True)

    def fail(self, name, why, seconds=0.0):
        """Counts and prints a failure."""
        self.failed += 1
        self.failures.append(f"{name}: {why}")
        print(f"FAIL  {name}: {why}  ({seconds:.1f} s)", file=self.out, flush=True)

    def window(self, group, snapshot):
        """Keeps the window and attempts of one accepted capture."""
        self.windows_us.setdefault(group, []).append(snapshot["window_us"])
        self.attempts.setdefault(group, []).append(snapshot["attempts"])

    def note(self, text):
        self.notes.append(text)
        print(f"      {text}", file=self.out, flush=True)

    def window_table(self):
        """Rows of (group, captures, p50, p99, max of the window in ms, most attempts)."""
        rows = []
        for group, windows in self.windows_us.items():
            ordered = sorted(windows)
            at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000
            rows.append((group, len(ordered), at(0.5), at(0.99), ordered[-1] / 1000, max(self.attempts[group])))
        return rows

    def close(self):
        for group, count, p50, p99, longest, attempts in self.window_table():
            print(
                f"      window {group}: {count} captures, p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {longest:.1f} ms, "
                f"attempts ≤ {attempts}",
                file=self.out,
            )
        for failure in self.failures:
            print(f"FAILED {failure}", file=self.out)
        print(f"{self.passed} passed, {self.failed} failed", file=self.out, flush=True)
