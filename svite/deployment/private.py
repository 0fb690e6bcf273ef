"""What is loaded as code must be the user's own: whether anybody else can put something in its place."""

import grp
import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path


def intrusion(path: Path) -> str | None:
    """How somebody else could change a file or folder, or a folder above it as far as the user's home; None if nobody.

    Root may. The path has no symbolic links (`Path.resolve`); one that has is an intrusion.
    """
    home = _home()
    for place in (path, *path.parents):
        found = place.lstat()
        if found.st_uid not in (os.geteuid(), 0):
            return f"{place} belongs to another user"
        if stat.S_ISLNK(found.st_mode):
            return f"{place} is a symbolic link"
        sticky = place != path and found.st_mode & stat.S_ISVTX  # as /tmp: each may replace what is theirs only
        shared = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _is_own(found.st_gid))
        if shared and not sticky:
            return f"others can write to {place}"
        if place == home:
            break
    return None


def _home() -> Path | None:
    with suppress(RuntimeError):  # from a user without one
        return Path.home().resolve()


def _is_own(group: int) -> bool:
    """Whether it is the group that many systems give each user, with nobody else in it."""
    try:
        user, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == user and set(found.gr_mem) <= {user}
