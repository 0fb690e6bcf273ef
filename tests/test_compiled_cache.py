"""Libraries that can't be loaded, compilers that are none, and what they leave behind."""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from tiny_compilers import Machine, handing_out, library, making, said, start

from svite.deployment import compiled, swept
from svite.io.files import HOUR, is_alive

pytestmark = pytest.mark.xdist_group("deploy")


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


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


def test_a_folder_that_is_called_half_written_is_in_nobodys_way(machine):
    (machine.cache / "tmp1.part").mkdir(parents=True)
    os.utime(machine.cache / "tmp1.part", (0, 0))
    assert machine.start() == []
    assert {*machine.cache.iterdir()} == {machine.kept, machine.cache / "tmp1.part"}


def test_what_a_killed_compile_left_is_swept_when_it_is_old(machine):
    machine.cache.mkdir(parents=True)
    left = machine.cache / "tmp1.part"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert machine.start() == []
    assert list(machine.cache.iterdir()) == [machine.kept]
