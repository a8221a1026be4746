"""What a power cut at a given moment may take: a model of what a program's system calls have made durable.

POSIX promises that bytes are on the disk after `fsync` of their file, and a name after `fsync` of its directory; `syncfs` does both for
all that came before. Whatever a file system does beyond that is luck.
"""

import os
import re
import subprocess

from report import Failed

CALLS = (
    "open,openat,creat,mkdir,mkdirat,link,linkat,symlink,symlinkat,rename,renameat,renameat2,write,writev,pwrite64,pwritev,"
    "copy_file_range,sendfile,ftruncate,fallocate,fsync,fdatasync,syncfs"
)
LINE = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+)(?:<(.*?)>)?")
WRITES = ("write", "writev", "pwrite64", "pwritev", "ftruncate", "fallocate", "copy_file_range", "sendfile")


def traced(command, trace, **how):
    """Runs a command to its end under strace. Returns the calls that succeeded: (name, arguments, the path of what was opened)."""
    done = subprocess.run(["strace", "-f", "-y", "-s", "0", "-e", f"trace={CALLS}", "-o", trace, *command], capture_output=True, text=True, **how)
    if done.returncode != 0:
        raise Failed(f"strace of {command[0]}: exit {done.returncode}: {(done.stderr + done.stdout)[-400:]}")
    calls, halves = [], {}
    for line in trace.read_text(errors="replace").splitlines():
        thread, _, rest = line.strip().partition(" ")
        rest = rest.lstrip()
        if rest.endswith("<unfinished ...>"):
            halves[thread] = rest.removesuffix("<unfinished ...>").rstrip()
            continue
        if rest.startswith("<... "):
            rest = halves.pop(thread, "") + re.sub(r"^<\.\.\. \w+ resumed>", "", rest)
        found = LINE.match(rest)
        if found and int(found[3]) >= 0:
            calls.append((found[1], found[2], found[4] or ""))
    return calls


class Disk:
    """Follows calls. Knows of each path that was made or written below `root` what a power cut could still take."""

    def __init__(self, root, cwd):
        self.root, self.cwd = os.path.realpath(root), os.path.realpath(cwd)
        #: Files with bytes that are not on the disk, and names that their directory does not have for sure.
        self.bytes, self.names = set(), set()
        self.fsyncs = 0

    def path(self, text, base=None):
        return os.path.normpath(os.path.join(base or self.cwd, text))

    def paths(self, arguments):
        """The paths of a call's arguments, each with the directory handle before it, if there is one."""
        parts = re.findall(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"', arguments)
        return [self.path(name, base or None) for base, name in parts]

    def call(self, name, arguments, opened):
        if name in ("open", "openat", "creat"):
            if "O_CREAT" in arguments or name == "creat":
                # Whether it was there before cannot be seen: a file that was made by somebody else is none of ours.
                self.made(opened)
                if "O_TRUNC" in arguments:
                    self.bytes.add(opened)
        elif name in ("mkdir", "mkdirat", "symlink", "symlinkat", "link", "linkat"):
            self.made(self.paths(arguments)[-1])
        elif name.startswith("rename"):
            old, new = self.paths(arguments)
            self.move(old, new)
        elif name in WRITES:
            handles = re.findall(r"\d+<([^>]*)>", arguments)
            self.bytes.add(handles[1] if name == "copy_file_range" else handles[0])
        elif name in ("fsync", "fdatasync"):
            self.fsyncs += 1
            path = re.findall(r"\d+<([^>]*)>", arguments)[0]
            self.bytes.discard(path)
            self.names = {other for other in self.names if os.path.dirname(other) != path}
        elif name == "syncfs":
            self.fsyncs += 1
            self.bytes.clear()
            self.names.clear()

    def made(self, path):
        self.names.add(path)

    def move(self, old, new):
        below = lambda path: path == old or path.startswith(old + "/")
        moved = lambda path: new + path[len(old):] if below(path) else path
        self.bytes = {moved(path) for path in self.bytes}
        self.names = {moved(path) for path in self.names if path != old} | {new}

    def at_risk(self, below):
        """What a power cut could take of what is there now."""
        below = os.path.realpath(below) if os.path.exists(below) else str(below)
        inside = lambda path: path == below or path.startswith(below + "/")
        return sorted([f"bytes of {path}" for path in self.bytes if inside(path)] + [f"the name {path}" for path in self.names if inside(path)])
