"""What is loaded as code: nobody else's, of this compiler, and whole; what is left behind goes."""

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
import torch
from tiny_compilers import handing_out, library, making, said, start

from svite.deployment import compiled, private, swept
from svite.deployment.compiler import Compiler
from svite.deployment.private import intrusion
from svite.store.files import HOUR, is_alive

pytestmark = pytest.mark.xdist_group("deploy")
SOMEBODY = 12345


class Machine:
    """Loads kernels as a new process does, again and again: what it loads, it only writes down."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch, self.compiler = folder, patch, handing_out(folder / "compiler")
        self.cache, self.loaded = folder / "above" / "cache", []
        patch.setattr(torch.ops, "load_library", self.loaded.append)

    def start(self, compiler: Path | str | None = None) -> list[str]:
        """The warnings; every other thing went well."""
        self.patch.setenv("SVITE_CACHE", str(self.cache))
        self.patch.setenv("CXX", str(compiler or self.compiler))
        Compiler.identity.cache_clear()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert compiled._load.__wrapped__()
        return [str(warning.message) for warning in told]

    @property
    def calls(self) -> int:
        """Of the compiler."""
        return len((self.folder / "calls").read_text().split())

    @property
    def kept(self) -> Path:
        (library,) = self.cache.glob("*.so")
        return library


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


# Bad libraries


def test_a_damaged_library_is_made_again(machine):
    machine.start()
    content = machine.kept.read_bytes()
    machine.kept.write_bytes(content[:5000])
    assert machine.start() == []
    assert machine.kept.read_bytes() == content


JUNK = {
    "nothing": "true",
    "text": 'echo "not a library" >"$2"',
    "half a library": 'head -c 100000 {library} >"$2"',
    "the head of a library": 'head -c 64 {library} >"$2"',
    "a library for another processor": 'cp {library} "$2"; printf "\\377\\177" | dd of="$2" bs=1 seek=18 conv=notrunc',
    "another library": 'cp {other} "$2"',
    "no file": 'rm "$2"',
}
AGAIN_AND_AGAIN = """
import os, sys, warnings
from svite.deployment import compiled
for name in sys.argv[1:]:
    os.environ["CXX"] = name
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        print(compiled._load.__wrapped__(), *(w.message for w in told), len(os.listdir(os.environ["SVITE_CACHE"])))
"""


def test_a_compiler_that_makes_no_library_is_told_and_the_next_one_works(tmp_path):
    names = {"library": library(), "other": torch._C.__file__}
    scripts = [making(tmp_path / f"compiler{n}", junk.format(**names)) for n, junk in enumerate(JUNK.values())]
    scripts.append(handing_out(tmp_path / "compiler"))
    (out,) = said(start(tmp_path / "cache", "", *map(str, scripts), program=AGAIN_AND_AGAIN))
    *junk, last = out.splitlines()
    assert last == "True 1"
    assert len(junk) == len(JUNK)
    for script, line in zip(scripts, junk, strict=False):
        assert line.startswith(
            f"False Sparse layers run as dense ones, for the sparse kernels can't be used: '{script}' made"
        )
        assert line.endswith(". 0")  # nothing was kept


def test_a_kept_library_that_can_not_be_loaded_is_compiled_again(tmp_path, machine):
    machine.start()
    content, name = machine.kept.read_bytes(), machine.kept.name.rpartition("-")[0]
    for junk in (b"", b"junk", content[:100000]):
        machine.kept.unlink()
        (machine.cache / f"{name}-{hashlib.sha256(junk).hexdigest()[:16]}.so").write_bytes(junk)
        (out,) = said(start(machine.cache, "", str(machine.compiler), program=AGAIN_AND_AGAIN))
        assert out == "True 1"
        assert machine.kept.read_bytes() == content


# The compiler


def test_another_compiler_or_version_compiles_again(machine):
    first, second = machine.folder / "first", machine.folder / "second"
    for script, version, expected in ((first, "1.0", 1), (first, "1.1", 2), (second, "1.1", 3), (first, "1.0", 3)):
        assert machine.start(handing_out(script, version)) == []
        assert machine.calls == expected
    assert machine.start(f"env {first}") == []
    assert machine.calls == 4


BROKEN = {
    'g++ "': "CXX is 'g++ \"', which is no command (No closing quotation)",
    "/nowhere/c++ -O1": "there is no compiler '/nowhere/c++ -O1' (CXX names another)",
    "/": "'/' can't be started (Permission denied)",
    __file__: f"'{__file__}' can't be started (Permission denied)",
}


@pytest.mark.parametrize("named", BROKEN)
def test_a_compiler_that_is_none_is_one_sentence(tmp_path, monkeypatch, named):
    assert warned(tmp_path, monkeypatch, named) == BROKEN[named]


def warned(folder: Path, patch: pytest.MonkeyPatch, named: Path | str) -> str:
    """Why the kernels can't be used; the cache is left empty."""
    patch.setenv("SVITE_CACHE", str(folder / "cache"))
    patch.setenv("CXX", str(named))
    with pytest.warns(match="Sparse layers run as dense ones, for the sparse kernels can't be used: ") as told:
        assert not compiled._load.__wrapped__()
    assert not list(folder.glob("cache/*"))
    (warning,) = told
    return str(warning.message).partition("used: ")[2].removesuffix(".")


@pytest.mark.parametrize("when", ["asked for its version", "at work"])
def test_a_compiler_that_hangs_is_ended_with_what_it_started(tmp_path, monkeypatch, when):
    monkeypatch.setattr("svite.deployment.compiler.MINUTES", 0.02)
    script = making(tmp_path / "compiler", f"echo $$ >{tmp_path}/pid; (sleep 600 & echo $! >>{tmp_path}/pid; wait)")
    if when == "asked for its version":
        script.write_text(script.read_text().replace("exec echo 1.0", f"(echo $$ >{tmp_path}/pid; sleep 600)"))
    assert warned(tmp_path, monkeypatch, script) == f"'{script}' has not ended after 0.02 minutes"
    for pid in (tmp_path / "pid").read_text().split():
        assert gone(int(pid))


def gone(pid: int) -> bool:
    """Whether a process ends soon; a dead one may still have its number."""
    for _ in range(200):
        state = Path(f"/proc/{pid}/stat")
        if not is_alive(pid) or (state.exists() and state.read_text().rpartition(")")[2].split()[0] in "ZX"):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("sentence", [r"\377\376 too old", "error writing to a.s: No space left on device"])
def test_a_compiler_is_quoted_whatever_it_says(tmp_path, monkeypatch, sentence):
    script = making(tmp_path / "compiler", f"printf 'fatal error: {sentence}\n' >&2; exit 1")
    said = warned(tmp_path, monkeypatch, script)
    assert said.startswith(f"'{script}' can't compile kernels.cpp (fatal error: ")
    assert sentence.split()[-1] in said


# What is left behind


def test_only_what_is_old_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    folder, dead = tmp_path / "cache", subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder.mkdir()
    names = [(folder, "{}.part"), (folder, "{}.so"), (tmp_path / "tmp", "svite-{}")]
    names += [(tmp_path / "tmp", f"svite-kernels-{pid}-{{}}") for pid in (dead.pid, os.getpid())]
    for where, name in names:
        for age, seconds in (("young", 60), ("old", 2 * HOUR)):
            path = where / name.format(age)
            path.mkdir(parents=True) if where != folder else path.touch()
            os.utime(path, (time.time() - seconds,) * 2)
    swept.sweep(folder)
    left = {
        path.relative_to(tmp_path).as_posix() for where in ("cache", "tmp") for path in (tmp_path / where).iterdir()
    }
    assert left == {
        *("cache/young.part", "cache/young.so", "cache/old.so", f"tmp/svite-kernels-{dead.pid}-young"),
        *(f"tmp/svite-kernels-{os.getpid()}-{age}" for age in ("young", "old")),
        *("tmp/svite-young", "tmp/svite-old"),
    }


def test_what_a_killed_compile_left_is_swept_when_it_is_old(machine):
    machine.cache.mkdir(parents=True)
    left = machine.cache / "tmp1.part"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert machine.start() == []
    assert list(machine.cache.iterdir()) == [machine.kept]
