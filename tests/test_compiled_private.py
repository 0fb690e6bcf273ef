"""What is loaded as code is the user's own: nobody else can have put it there."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
from tiny_compilers import Machine

from svite.deployment import private
from svite.deployment.private import intrusion

pytestmark = pytest.mark.xdist_group("deploy")
SOMEBODY = 12345


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def given_away(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.lchown(path, SOMEBODY, SOMEBODY)


def shared(folder: Path) -> None:
    """Writable for a group of several, of which this user is a member."""
    found = [group for group in os.getgroups() if not private._is_own(group)]
    if os.geteuid() and not found:
        pytest.skip("the user is in no group of several")
    os.chown(folder, -1, found[0] if found else SOMEBODY)
    folder.chmod(0o770)


OPEN = {
    "a folder that all may write to": lambda folder: folder.chmod(0o777),
    "a folder that a group may write to": shared,
    "a folder of somebody else's": given_away,
    "a folder above that all may write to": lambda folder: folder.parent.chmod(0o777),
    "a folder above of somebody else's": lambda folder: given_away(folder.parent),
}


@pytest.mark.parametrize("case", OPEN)
def test_nothing_is_loaded_from_where_others_can_write(machine, case):
    assert machine.start() == []
    content = machine.kept.read_bytes()
    OPEN[case](machine.cache)
    (warning,) = machine.start()
    assert warning.startswith(f"Kernels are not kept in {machine.cache}, for ")
    assert warning.endswith("; let SVITE_CACHE name a folder that is yours alone.")
    assert machine.calls == 2  # it is compiled for that process alone
    assert Path(machine.loaded[1]).parent.parent == Path(tempfile.gettempdir())
    assert machine.kept.read_bytes() == content


def link(library: Path) -> None:
    library.rename(library.with_suffix(".1"))
    library.symlink_to(library.with_suffix(".1"))


@pytest.mark.parametrize("change", [lambda library: library.chmod(0o666), given_away, link])
def test_a_library_that_others_can_write_to_is_compiled_again(machine, change):
    machine.start()
    change(machine.kept)
    assert machine.start() == []
    assert machine.calls == 2
    assert stat.S_ISREG(machine.kept.lstat().st_mode)
    assert intrusion(machine.kept) is None


def test_a_cache_that_is_a_link_to_a_folder_of_ones_own_is_used(machine):
    machine.cache.mkdir(parents=True)
    (machine.folder / "cache").symlink_to(machine.cache)
    machine.cache = machine.folder / "cache"
    for _ in range(2):
        assert machine.start() == []
    assert machine.calls == 1


def test_folders_and_libraries_are_the_users_own_whatever_the_mask(machine):
    machine.cache.parent.mkdir()
    before = os.umask(0)
    try:
        assert machine.start() == []
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (machine.kept, machine.cache)] == [0o700, 0o700]


def test_home_is_as_far_as_anybody_looks(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "cache").mkdir(parents=True)
    tmp_path.chmod(0o777)
    assert intrusion(home / "cache") == f"others can write to {tmp_path}"
    monkeypatch.setenv("HOME", str(home))
    assert intrusion(home / "cache") is None
    home.chmod(0o777)
    assert intrusion(home / "cache") == f"others can write to {home}"


def test_a_folder_that_a_users_own_group_may_write_to_is_private(tmp_path, monkeypatch):
    tmp_path.chmod(0o770)
    monkeypatch.setattr(private, "_is_own", lambda group: True)
    assert intrusion(tmp_path) is None
    monkeypatch.setattr(private, "_is_own", lambda group: False)
    assert intrusion(tmp_path) == f"others can write to {tmp_path}"
