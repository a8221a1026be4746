"""What a directory holds, to the last attribute that nobody may change who only reads."""

import hashlib
import os
import stat
from pathlib import Path

from report import Failed


def inventory(root):
    """Name → (kind, inode, size, mode, owner, group, time of change in ns) of everything in and below `root`."""
    root = Path(root)
    found = {".": _facts(os.lstat(root), with_time=True)}
    for base, dirs, files in os.walk(root):
        for name in dirs + files:
            path = Path(base) / name
            found[str(path.relative_to(root))] = _facts(os.lstat(path), with_time=True)
    return found


def _facts(of, with_time):
    return (
        stat.S_IFMT(of.st_mode), of.st_ino, of.st_size, stat.S_IMODE(of.st_mode), of.st_uid, of.st_gid,
        of.st_mtime_ns if with_time else 0,
    )


def demand_unchanged(before, after, allow=(), beside=()):
    """Fails with the first differences.

    `allow`: names that may appear or change, never vanish (SQLite's own index files). `beside`: directories in which a staging
    directory may have come and gone, which moves their time and nothing else.
    """
    differences = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if name in beside and old and new:
            old, new = (*old[:2], 0, *old[3:6], 0), (*new[:2], 0, *new[3:6], 0)
        if old == new or (name in allow and new is not None):
            continue
        differences.append(f"{name}: {_say(old)} → {_say(new)}")
    if differences:
        raise Failed(f"the source changed in {len(differences)} places: " + "; ".join(differences[:5]))


def _say(facts):
    if facts is None:
        return "absent"
    kind, inode, size, mode, uid, gid, time = facts
    return f"(inode {inode}, {size} bytes, mode {mode:o}, {uid}:{gid}, time {time})"


def leftovers(*roots):
    """Names of ours that lie in one of the directories or anywhere below."""
    found = []
    for root in roots:
        for base, dirs, files in os.walk(root):
            found += [os.path.join(base, name) for name in dirs + files if name.startswith(".stillframe-")]
    return found


def demand_no_leftovers(*roots):
    found = leftovers(*roots)
    if found:
        raise Failed(f"left behind: {', '.join(found[:5])}")


def extra_links(root):
    """Regular files below `root` that have another name somewhere."""
    extra = []
    for base, _, files in os.walk(root):
        for name in files:
            facts = os.lstat(os.path.join(base, name))
            if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1:
                extra.append(name)
    return sorted(extra)


def digest(root, without=("snapshot.json",), attributes=True):
    """One hash over names, kinds, bytes and (if wanted) modes and times of all files below `root`."""
    root, whole = Path(root), hashlib.sha256()
    if root.is_file():
        return hashlib.sha256(root.read_bytes()).hexdigest()
    for base, dirs, files in os.walk(root):
        dirs.sort()
        for name in sorted(files):
            path = Path(base) / name
            relative = str(path.relative_to(root))
            if relative in without:
                continue
            facts = os.lstat(path)
            whole.update(f"{relative}\0{facts.st_size}\0".encode())
            if attributes:
                whole.update(f"{stat.S_IMODE(facts.st_mode):o}\0{facts.st_mtime_ns}\0".encode())
            with open(path, "rb") as file:
                for part in iter(lambda: file.read(1 << 20), b""):
                    whole.update(part)
    return whole.hexdigest()
