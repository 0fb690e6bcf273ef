"""Compiling the kernels: no compiler, a full or foreign cache, several at once, one that was killed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from svite.deployment import compiled

pytestmark = pytest.mark.xdist_group("deploy")
PROGRAM = """
import sys, threading, warnings
import svite._torchvision, timm, torch
from svite.deployment import compiled
from svite.deployment.deploy import deploy
if len(sys.argv) > 1:
    threads = [threading.Thread(target=compiled.kernels_are_there) for _ in range(4)]
    [thread.start() for thread in threads]
small = {"img_size": 12, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}
model = timm.create_model("vit_tiny_patch16_224", **small)
images = torch.randn(2, 1, 12, 12)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    names = [f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    models = [deploy(model, images, choice=dict.fromkeys(names, "csr")) for _ in range(2)]
assert torch.allclose(models[0](images), model.eval()(images), atol=1e-4)
print(compiled.kernels_are_there(), *(str(w.message) for w in told if "Sparse layers" in str(w.message)), sep="|")
"""


@pytest.fixture(scope="module")
def library() -> Path:
    """The library that this machine's compiler makes."""
    assert compiled.kernels_are_there()
    folder = next(compiled._folders())
    return compiled._kept(folder) or compiled._compile(folder)


@pytest.fixture
def compiler(tmp_path, library) -> Path:
    """A compiler that takes a moment to hand out what the real one made, and keeps count."""
    script = tmp_path / "compiler"
    script.write_text(
        f'#!/bin/sh\nsleep 0.3\nwhile [ "$1" != -o ]; do shift; done\ncp {library} "$2"\necho x >>{tmp_path}/calls\n'
    )
    script.chmod(0o755)
    return script


def start(cache: Path | str, compiler: Path | str, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"SVITE_CACHE": str(cache), "CXX": str(compiler)}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def said(process: subprocess.Popen) -> list[str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip().split("|")


def test_without_a_compiler_models_run_dense_with_one_warning(tmp_path):
    there, *warning = said(start(tmp_path, "/nowhere/c++"))
    assert there == "False"
    assert warning == [
        "Sparse layers run as dense ones, for the sparse kernels can't be used: there is no compiler '/nowhere/c++' "
        "(CXX names another)."
    ]
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path):
    script = tmp_path / "compiler"
    script.write_text("#!/bin/sh\necho kernels.cpp:1: error: too old >&2\nexit 1\n")
    script.chmod(0o755)
    there, warning = said(start(tmp_path / "cache", script))
    assert there == "False"
    assert f"'{script}' can't compile kernels.cpp (kernels.cpp:1: error: too old)" in warning
    assert not list((tmp_path / "cache").iterdir())


def test_the_second_process_compiles_nothing(tmp_path, compiler):
    assert said(start(tmp_path / "cache", compiler)) == ["True"]
    assert said(start(tmp_path / "cache", "/nowhere/c++")) == ["True"]


def test_processes_and_threads_may_compile_at_once(tmp_path, compiler):
    processes = [start(tmp_path / "cache", compiler, "threads") for _ in range(2)]
    assert [said(process) for process in processes] == [["True"], ["True"]]
    assert len((tmp_path / "calls").read_text().split()) <= 2  # one a process, however many threads ask
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]


def test_what_a_killed_compile_left_stops_nobody(tmp_path, compiler):
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    process = start(tmp_path / "cache", slow)
    while not list(tmp_path.glob("cache/*.part")):
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert said(start(tmp_path / "cache", compiler)) == ["True"]


def test_a_damaged_library_is_made_again(tmp_path, compiler):
    assert said(start(tmp_path / "cache", compiler)) == ["True"]
    (kept,) = (tmp_path / "cache").iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content[:5000])
    assert said(start(tmp_path / "cache", compiler)) == ["True"]
    assert kept.read_bytes() == content


def test_a_home_that_can_not_be_written_is_no_hindrance(tmp_path, compiler):
    (tmp_path / "file").write_text("")
    assert said(start(tmp_path / "file" / "cache", compiler)) == ["True"]


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="other processors have no narrower vectors")
@pytest.mark.parametrize("flags", ["-march=x86-64-v3", "-march=x86-64"])
def test_narrower_vectors_give_the_same_outputs(tmp_path, flags):
    script = tmp_path / "compiler"
    script.write_text(f'#!/bin/sh\nexec {shutil.which("c++")} "$@" {flags}\n')
    script.chmod(0o755)
    assert said(start(tmp_path / "cache", script)) == ["True"]
