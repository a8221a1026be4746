"""Where a run keeps its files, processes and mounts; all of it is gone when the run ends."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from report import Failed, Missing

NOBODY = 65534


def need(program):
    """The path of an outside program; loud when it is missing."""
    found = shutil.which(program)
    if found is None:
        raise Missing(f"{program} is not installed, and the proof needs it")
    return found


class Workplace:
    def __init__(self, keep=False):
        self.root = Path(tempfile.mkdtemp(prefix="stillframe-e2e-"))
        # Another user must be able to walk in.
        self.root.chmod(0o755)
        self.keep = keep
        self.processes = []
        self.mounts = []
        self.count = 0

    def dir(self, name):
        """A new, empty directory."""
        self.count += 1
        path = self.root / f"{self.count:04}-{name}"
        path.mkdir(mode=0o755)
        return path

    def remove(self, path):
        if not self.keep:
            shutil.rmtree(path, ignore_errors=True)

    def start(self, words, **how):
        """Starts a process that is killed, by its own id, at the end at the latest."""
        how.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen([str(word) for word in words], **how)
        self.processes.append(process)
        return process

    def kill(self, process, sig=signal.SIGKILL):
        """Ends a process of ours and waits for its end."""
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(sig)
        process.wait(timeout=60)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
        if process in self.processes:
            self.processes.remove(process)

    # ------------------------------------------------------------------------------------------------- file systems

    def mount_ext4(self, name, mebibytes, at=None):
        """A real small file system in a file of its own."""
        place = at or self.dir(name)
        image = self.root / f"{place.name}.ext4"
        with open(image, "wb") as file:
            file.truncate(mebibytes << 20)
        # No blocks are kept back: a full disk is full for everybody.
        call("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "root_owner=0:0", image)
        call("mount", "-o", "loop", image, place)
        self.mounts.append(place)
        lost = place / "lost+found"
        if lost.exists():
            lost.rmdir()
        return place

    def mount_tmpfs(self, name, mebibytes, files=0):
        """With room for that many files and directories; 0: for any number."""
        place = self.dir(name)
        call("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,nr_inodes={files},mode=755", "tmpfs", place)
        self.mounts.append(place)
        return place

    def mount_read_only(self, name, of):
        """A read-only view of the directory `of`."""
        place = self.dir(name)
        call("mount", "--bind", of, place)
        self.mounts.append(place)
        call("mount", "-o", "remount,ro,bind", place)
        return place

    def unmount(self, place):
        for _ in range(50):
            if subprocess.run(["umount", str(place)], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        else:
            raise Failed(f"{place} could not be unmounted: somebody still uses it")
        self.mounts.remove(place)

    def close(self):
        for process in list(self.processes):
            self.kill(process)
        for place in reversed(list(self.mounts)):
            self.unmount(place)
        if self.keep:
            print(f"      kept: {self.root}", flush=True)
        else:
            shutil.rmtree(self.root, ignore_errors=True)


def call(program, *words, **how):
    """Runs an outside program that must succeed; its output is returned."""
    done = subprocess.run(
        [need(program), *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL, **how
    )
    if done.returncode != 0:
        raise Failed(f"{program} {' '.join(map(str, words))}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout


def as_user(uid):
    """Words that run the rest as another user with nothing but that id."""
    return [need("setpriv"), f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


def free_bytes(path):
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
