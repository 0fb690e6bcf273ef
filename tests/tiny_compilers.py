"""Compilers that are scripts, and processes that compile the kernels with them."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from svite.deployment import compiled

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
