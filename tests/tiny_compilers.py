"""Compilers that are scripts, and processes that compile the kernels with them."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from svite.deployment import compiled
from svite.deployment.compiler import Compiler

PROGRAM = """
import sys, threading, warnings
import svite.vit._torchvision, timm, torch
from svite.deployment import compiled
from svite.deployment.compiler import Compiler
from svite.deployment.deploy import deploy
if len(sys.argv) > 1:
    threads = [threading.Thread(target=compiled.kernels_are_there) for _ in range(4)]
    [thread.start() for thread in threads]
small = {"img_size": 12, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}
torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", **small)
images = torch.randn(2, 1, 12, 12)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    names = [f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    models = [deploy(model, images, choice=dict.fromkeys(names, "csr")) for _ in range(2)]
assert torch.allclose(models[0](images), model.eval()(images), atol=1e-4)
print(compiled.kernels_are_there(), *(str(w.message) for w in told if "ernels" in str(w.message)), sep="|")
"""


def library() -> Path:
    """The library that this machine's compiler makes."""
    assert compiled.kernels_are_there()
    return next(Path(path) for path in torch.ops.loaded_libraries if Path(path).name.startswith("kernels-"))


def handing_out(script: Path, version: str = "1.0") -> Path:
    """A compiler that takes a moment to hand out what the real one made, and keeps count."""
    return making(script, f'sleep 0.3\ncp {library()} "$2"\necho x >>{script.parent}/calls', version)


def making(script: Path, commands: str, version: str = "1.0") -> Path:
    """A compiler that says its version, and does this to make "$2"."""
    script.write_text(f"""#!/bin/sh
[ "$1" = --version ] && exec echo {version}
while [ "$1" != -o ]; do shift; done
{commands}
""")
    script.chmod(0o755)
    return script


def start(cache: Path | str, compiler: Path | str, *arguments: str, program: str = PROGRAM) -> subprocess.Popen:
    environment = os.environ | {"SVITE_CACHE": str(cache), "CXX": str(compiler)}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def said(process: subprocess.Popen) -> list[str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip().split("|")


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
