"""Compiling the kernels: no compiler, a full or foreign cache, several at once, one that was killed."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from tiny import vit
from tiny_compilers import handing_out, making, said, start

from svite.deployment import compiled
from svite.deployment.deploy import deploy

ARM = "aarch64-linux-gnu-g++"
pytestmark = pytest.mark.xdist_group("deploy")


@pytest.fixture
def compiler(tmp_path) -> Path:
    return handing_out(tmp_path / "compiler")


def test_without_a_compiler_models_run_dense_with_one_warning(tmp_path):
    there, *warning = said(start(tmp_path, "/nowhere/c++"))
    assert there == "False"
    assert warning == [
        "Sparse layers run as dense ones, for the sparse kernels can't be used: there is no compiler '/nowhere/c++' "
        "(CXX names another)."
    ]
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path):
    script = making(tmp_path / "compiler", "echo kernels.cpp:1: error: too old >&2\nexit 1")
    there, warning = said(start(tmp_path / "cache", script))
    assert there == "False"
    assert f"'{script}' can't compile kernels.cpp (kernels.cpp:1: error: too old)" in warning
    assert not list((tmp_path / "cache").iterdir())


def test_the_second_process_compiles_nothing(tmp_path, compiler):
    assert said(start(tmp_path / "cache", compiler)) == ["True"]
    assert said(start(tmp_path / "cache", compiler)) == ["True"]
    assert (tmp_path / "calls").read_text() == "x\n"


def test_processes_and_threads_may_compile_at_once(tmp_path, compiler):
    processes = [start(tmp_path / "cache", compiler, "threads") for _ in range(2)]
    assert [said(process) for process in processes] == [["True"], ["True"]]
    assert len((tmp_path / "calls").read_text().split()) <= 2  # one a process, however many threads ask
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]


def test_what_a_killed_compile_left_stops_nobody(tmp_path, compiler):
    process = start(tmp_path / "cache", making(tmp_path / "slow", "exec sleep 60"))
    while not list(tmp_path.glob("cache/*.part")):
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert said(start(tmp_path / "cache", compiler)) == ["True"]


def test_a_home_that_can_not_be_written_is_no_hindrance(tmp_path, compiler, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert said(start(tmp_path / "file" / "cache", compiler)) == ["True"]
    assert not list(tmp_path.glob("svite-*"))  # made for that process alone


def test_a_user_without_a_home_is_no_hindrance(tmp_path, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SVITE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "home", homeless)
    assert [folder.parent for folder in compiled._folders()] == [tmp_path]


def test_a_compiler_may_have_arguments(tmp_path, compiler):
    assert said(start(tmp_path / "cache", f"env {compiler}")) == ["True"]


SHARED_OUT = """
import os, sys, torch
from svite.deployment.compiled import kernels_are_there
kernels_are_there()
torch.set_num_threads(int(sys.argv[1]))
before = len(os.listdir("/proc/self/task"))
torch.ops.svite.dense(torch.zeros(1, 8, 16), torch.zeros(400, 8), None, None, False)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux shows them")
@pytest.mark.parametrize("threads", [1, 3])
def test_kernels_run_on_as_many_threads_as_torch(tmp_path, compiler, threads):
    assert said(start(tmp_path, compiler, str(threads), program=SHARED_OUT)) == [str(threads - 1)]


BY_TORCH = """
import svite, timm, torch
from svite.deployment.deploy import deploy
small = {"img_size": 12, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}
torch.manual_seed(0)
model, images = timm.create_model("vit_tiny_patch16_224", **small).eval(), torch.randn(2, 1, 12, 12)
names = [f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
fast = deploy(torch.compile(model, backend="eager"), images, choice=dict.fromkeys(names, "csr"))
print(torch.allclose(torch.compile(fast, backend="eager")(images), model(images), atol=1e-4))
"""


def test_torch_may_compile_a_model_before_and_after(tmp_path, compiler):
    assert said(start(tmp_path, compiler, program=BY_TORCH)) == ["True"]


UNPICKLED = """
import sys
import svite, torch
model, images, expected = torch.load(sys.argv[1], weights_only=False)
print(torch.equal(model(images), expected))
"""


def test_a_deployed_model_is_unpickled_in_another_process(tmp_path, compiler):
    model, images = vit(), torch.randn(2, 1, 12, 12)
    names = [f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    fast = deploy(model, images, choice=dict.fromkeys(names, "csr"))
    torch.save((fast, images, fast(images)), tmp_path / "model.pt")
    assert said(start(tmp_path, compiler, str(tmp_path / "model.pt"), program=UNPICKLED)) == ["True"]
    process = start(tmp_path / "none", "/nowhere/c++", str(tmp_path / "model.pt"), program=UNPICKLED)
    assert "RuntimeError: This model was deployed with kernels that can't be used here" in process.communicate()[1]


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="other processors have no narrower vectors")
@pytest.mark.parametrize(("level", "avx2"), [("-march=x86-64-v3", True), ("-march=x86-64", False)])
def test_narrower_vectors_pass_the_tests_of_the_kernels(tmp_path, level, avx2):
    command = [shutil.which("c++"), "-march=native", level, "-dM", "-E", "-x", "c++", os.devnull]
    macros = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert ("__AVX2__" in macros, "__AVX512F__" in macros) == (avx2, False)
    script = tmp_path / "compiler"
    script.write_text(f'#!/bin/sh\nexec {shutil.which("c++")} "$@" {level}\n')
    script.chmod(0o755)
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).with_name("test_deploy.py"), "-k", "torchs"]
    environment = os.environ | {"SVITE_CACHE": str(tmp_path / "cache"), "CXX": str(script)}
    done = subprocess.run([sys.executable, *tests], env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout
    assert len(list(tmp_path.glob("cache/*.so"))) == 1


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(ARM), reason=f"needs {ARM}")
def test_the_kernels_compile_for_arm(tmp_path):
    flags = [flag for flag in compiled.FLAGS if flag not in ("-march=native", "-shared")]
    include = f"-I{Path(torch.__file__).parent / 'include'}"
    command = [ARM, *flags, include, "-c", str(compiled.SOURCE), "-o", str(tmp_path / "kernels.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
