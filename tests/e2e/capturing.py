"""One capture, in each of the ways a user has, checked by whoever knows the content."""

from inventory import demand_no_leftovers
from report import Failed


def demand_weakening(snapshot, name):
    """The setting must be named where it weakens the guarantee, and nothing may be named where nothing does."""
    named = [entry["setting"] for entry in snapshot.get("weakening", [])]
    if name and not any(name in setting for setting in named):
        raise Failed(f"{name} weakens the guarantee, but the image names {named or 'nothing'}")
    if not name and named:
        told = [f"{entry['setting']}: {entry['effect']}" for entry in snapshot["weakening"]]
        raise Failed(f"the image names {told}, but nothing weakens this source")


def demand_inside(image):
    """Nothing in an image may lead a restored database back to the live one: not a link, and not a line of OPTIONS."""
    for path in image.rglob("*"):
        if path.is_symlink():
            raise Failed(f"{path} is a symbolic link")
    for options in image.glob("OPTIONS-*"):
        for line in options.read_text(errors="replace").splitlines():
            name, _, value = line.strip().partition("=")
            if name == "wal_dir" and value and not value.replace("\\", "").startswith(str(image)):
                raise Failed(f"{options.name} names a log directory outside the image: {value}")


def kept_image(program, source, to, flags=()):
    """`image create`, `image validate`, and nothing left beside it."""
    snapshot = program.image(source, to, *flags)
    program.run("image", "validate", to)
    demand_no_leftovers(to.parent)
    return snapshot


def through_repository(program, source, repo, to, flags=()):
    """`backup`, `verify`, `restore`: the restored directory, without a description."""
    if not (repo / "stillframe.json").exists():
        program.init(repo)
    program.run("backup", source, "-r", repo, *flags)
    program.run("verify", "latest", "-r", repo, "--level", "decrypt")
    program.run("restore", "latest", "-r", repo, "--to", to)
    demand_no_leftovers(to.parent)


